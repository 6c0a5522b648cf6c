"""A dialog with the ways to make a run fit its graphics card; dismissed with the way that is taken, or None."""

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from engine.memory.fit import Way
from engine.memory.verdict import GIB
from sdtui.format import fit
from sdtui.keys import bindings
from sdtui.memory_meter import Fit
from sdtui.widgets.row_list import Cell, RowList

_WORDS = {"green": ("fits", "good"), "amber": ("tight", "warn"), "red": ("too much", "bad")}
_COST = "The cost is in percent of speed; what is lost in quality is weighed in."


class FitDialog(ModalScreen[Way | None]):
    """Lists the ways by their cost; a digit takes one at once."""

    CSS = """
    FitDialog .dialog { width: 104; }
    FitDialog #way { height: 6; margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("fit"), *bindings("dialog")]

    def __init__(self, found: Fit) -> None:
        super().__init__()
        self._found = found

    def compose(self) -> ComposeResult:
        """Lay out the dialog."""
        with Vertical(classes="dialog pane") as pane:
            pane.border_title = Content("Ways to fit the card")
            yield Static(f"{self._found.text}\n{_COST}", markup=False, classes="dialog-text")
            yield RowList(self._row, name="ways")
            yield Static("", markup=False, id="way")
            yield Static("1-6 take that one   enter take this one   esc close", markup=False, classes="hint")

    def on_mount(self) -> None:
        """Show the ways, the cheapest first."""
        ways = self.query_one(RowList)
        ways.styles.height = len(self._found.ways)
        ways.show_rows(len(self._found.ways))
        ways.focus()
        self._explain()

    def _row(self, index: int, width: int) -> list[Cell]:
        way = self._found.ways[index]
        word, style = _WORDS[way.verdict.color]
        return [
            (f" {index + 1} ", "key"),
            (f"{way.verdict.needed_bytes / GIB:6.1f}G ", ""),
            (fit(word, 6), style),
            (fit(f"cost {way.cost:.0f}", 10), "dim"),
            (fit(way.title, width - 27), ""),
        ]

    @on(RowList.Moved)
    def _explain(self) -> None:
        way = self._found.ways[self.query_one(RowList).cursor]
        lines = [(f"{way.loss}\n", ""), (way.as_set(), "dim")]
        self.query_one("#way", Static).update(Content.assemble(*lines))

    @on(RowList.Chosen)
    def _choose(self, event: RowList.Chosen) -> None:
        self.action_take(event.index)

    def action_take(self, index: int) -> None:
        """Take one of the ways."""
        if index < len(self._found.ways):
            self.dismiss(self._found.ways[index])

    def action_close(self) -> None:
        """Close without a change."""
        self.dismiss(None)

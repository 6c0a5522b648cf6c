"""A dialog with a few choices, each with a sentence; dismissed with the chosen value, or None."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from sdtui.format import fit
from sdtui.keys import bindings
from sdtui.widgets.row_list import Cell, RowList


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One choice: what is returned, its title, and what it means."""

    value: str
    title: str
    text: str = ""


class ChoiceDialog(ModalScreen[str | None]):
    """Asks for one of several choices."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("dialog")]

    def __init__(self, title: str, text: str, choices: Sequence[Choice], *, start: int = 0) -> None:
        super().__init__()
        self._start = start
        self._title = title
        self._text = text
        self._choices = tuple(choices)

    def compose(self) -> ComposeResult:
        """Lay out the dialog."""
        with Vertical(classes="dialog pane") as pane:
            pane.border_title = Content(self._title)
            if self._text:
                yield Static(self._text, markup=False, classes="dialog-text")
            yield RowList(self._row, name="choices")
            yield Static("", markup=False, id="choice-text")
            yield Static("enter choose   esc close", markup=False, classes="hint")

    def on_mount(self) -> None:
        """Show the choices."""
        choices = self.query_one(RowList)
        choices.styles.height = min(len(self._choices), 12)
        choices.show_rows(len(self._choices), cursor=self._start)
        choices.focus()
        self._explain()

    def _row(self, index: int, width: int) -> list[Cell]:
        return [(" ", ""), (fit(self._choices[index].title, width - 1), "")]

    @on(RowList.Moved)
    def _explain(self) -> None:
        self.query_one("#choice-text", Static).update(Content(self._choices[self.query_one(RowList).cursor].text))

    @on(RowList.Chosen)
    def _choose(self, event: RowList.Chosen) -> None:
        self.dismiss(self._choices[event.index].value)

    def action_close(self) -> None:
        """Close without a choice."""
        self.dismiss(None)

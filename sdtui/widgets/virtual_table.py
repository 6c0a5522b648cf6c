"""A table with headings over any sequence; only the rows in view are ever looked at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from engine.errors import safe_text
from sdtui.format import fit
from sdtui.widgets.row_list import Cell, RowList

CELL_LIMIT = 500  # Characters of a value that are looked at: more than any terminal is wide.


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column: its heading, and its width in cells, 0 for a share of what is left."""

    title: str
    width: int = 0
    is_right: bool = False


class VirtualTable(Vertical):
    """Headings above a `RowList`; `values(index)` returns a row's cells, whose text may come from outside."""

    def __init__(
        self, columns: Sequence[Column], values: Callable[[int], Sequence[Cell]], *, name: str, empty: str = ""
    ) -> None:
        super().__init__()
        self.columns = tuple(columns)
        self._values = values
        self.rows = RowList(self._draw, name=name, empty=empty)

    def compose(self) -> ComposeResult:
        """Lay out the table."""
        yield Static("", markup=False, classes="heading")
        yield self.rows

    def set_columns(self, columns: Sequence[Column]) -> None:
        """Show other columns."""
        if self.columns != tuple(columns):
            self.columns = tuple(columns)
            self._show_headings()
            self.rows.refresh()

    def show_rows(self, count: int, *, cursor: int | None = None) -> None:
        """Draw anew with this many rows."""
        self.rows.show_rows(count, cursor=cursor)

    def on_resize(self) -> None:
        """Fit the headings to the columns."""
        self._show_headings()

    def _show_headings(self) -> None:
        cells = self._lay_out([(column.title, "") for column in self.columns], self.size.width)
        self.query_one(Static).update(Content("".join(text for text, _style in cells)))

    def _draw(self, index: int, width: int) -> Sequence[Cell]:
        return self._lay_out(self._values(index), width)

    def _lay_out(self, values: Sequence[Cell], width: int) -> list[Cell]:
        fixed = sum(column.width + 1 for column in self.columns if column.width)
        shares = [column for column in self.columns if not column.width]
        share = (width - fixed) // len(shares) - 1 if shares else 0
        cells: list[Cell] = []
        for column, (text, style) in zip(self.columns, values, strict=False):
            shown = fit(safe_text(text, limit=CELL_LIMIT), column.width or max(1, share), is_right=column.is_right)
            cells += [(shown, style), (" ", "")]
        return cells

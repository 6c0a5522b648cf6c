"""A virtual list: rows are drawn when they come into view, so that a million cost no more than ten."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.segment import Segment
from textual import events
from textual.binding import BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from sdtui.keys import bindings

Cell = tuple[str, str]
"""Text and the name of its style: "", dim, good, bad, warn, key, accent or title."""


class RowList(ScrollView, can_focus=True):
    """Rows with a cursor; `draw(index, width)` returns a row's cells."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("list")]
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "row--dim", "row--good", "row--bad", "row--warn", "row--key", "row--accent", "row--title",
        "row--cursor", "row--cursor-blurred",
    }  # fmt: skip

    cursor = reactive(0)
    count = reactive(0)

    @dataclass
    class Moved(Message):
        """The cursor stands on another row."""

        list: "RowList"
        index: int

        @property
        def control(self) -> "RowList":
            """The list, for `@on` selectors."""
            return self.list

    @dataclass
    class Chosen(Message):
        """A row was taken by Enter or a click on the row under the cursor."""

        list: "RowList"
        index: int

        @property
        def control(self) -> "RowList":
            """The list, for `@on` selectors."""
            return self.list

    def __init__(self, draw: Callable[[int, int], Sequence[Cell]], *, name: str, empty: str = "") -> None:
        super().__init__(id=name)
        self._draw = draw
        self._empty = empty
        self._painted: dict[int, tuple[int, int, list[Cell]]] = {}  # By line: row, width and cells.

    def show_rows(self, count: int, *, cursor: int | None = None) -> None:
        """Draw anew with this many rows, the cursor where it was or at a given row."""
        self.count = count
        self.virtual_size = Size(0, count)
        self.cursor = max(0, min(self.cursor if cursor is None else cursor, count - 1))
        width, height = self.scrollable_content_region.size
        for line in range(height):
            if self._painted.get(line) != self._line(line, width):
                self.refresh(Region(0, line, width, 1))

    def on_resize(self) -> None:
        """Keep the cursor in view."""
        self._follow()

    def watch_cursor(self) -> None:
        """Bring the row into view and tell."""
        self._follow()
        self.refresh()
        self.post_message(self.Moved(self, self.cursor))

    def _follow(self) -> None:
        if self.count:
            self.scroll_to_region(Region(0, self.cursor, 1, 1), animate=False, force=True)

    def render_line(self, y: int) -> Strip:
        """Return the row that stands on line `y` of the view."""
        width = self.scrollable_content_region.width
        self._painted[y] = index, _, cells = self._line(y, width)
        strip = Strip([Segment(text, self._style(style)) for text, style in cells if text])
        strip = strip.adjust_cell_length(width, self.rich_style)
        if index == self.cursor and index < self.count:
            mark = "row--cursor" if self.has_focus else "row--cursor-blurred"
            style = self.get_component_rich_style(mark, partial=True)
            strip = Strip(Segment.apply_style(strip, post_style=style), width)
        return strip

    def _line(self, y: int, width: int) -> tuple[int, int, list[Cell]]:
        """Return the row on line `y`, the width and the row's cells."""
        index = self.scroll_offset.y + y
        if index < self.count:
            return index, width, [*self._draw(index, width)]
        return index, width, [(self._empty if not self.count and y == 0 else "", "dim")]

    def _style(self, name: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return self.get_component_rich_style(f"row--{name}") if name else self.rich_style

    def on_focus(self) -> None:
        """Show the cursor as active."""
        self.refresh()

    def on_blur(self) -> None:
        """Show the cursor as resting."""
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        """Put the cursor under the mouse; a click on the cursor's row takes it."""
        index = self.scroll_offset.y + event.get_content_offset_capture(self).y
        if 0 <= index < self.count:
            if index == self.cursor:
                self.action_select()
            self.cursor = index

    def action_move(self, rows: int) -> None:
        """Move the cursor."""
        self._go(self.cursor + rows)

    def action_move_page(self, pages: int) -> None:
        """Move the cursor by what is in view."""
        self._go(self.cursor + pages * max(1, self.scrollable_content_region.height - 1))

    def action_move_to(self, index: int) -> None:
        """Go to a row; -1 is the last."""
        self._go(index % max(1, self.count))

    def action_select(self) -> None:
        """Take the row under the cursor."""
        if self.count:
            self.post_message(self.Chosen(self, self.cursor))

    def _go(self, index: int) -> None:
        if self.count:
            self.cursor = max(0, min(index, self.count - 1))

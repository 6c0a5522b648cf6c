"""One line with a bar: how much of something is done or used."""

from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from textual.strip import Strip
from textual.widget import Widget

from engine.errors import safe_text
from sdtui.format import bar


class Meter(Widget):
    """Text on the left, a bar that takes the room between, text on the right; the bar goes first on a narrow screen."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"meter--bar", "meter--left", "meter--right"}

    def __init__(self, *, name: str) -> None:
        super().__init__(id=name)
        self._left = ""
        self._right = ""
        self._share = 0.0

    def show(self, left: str, share: float, right: str) -> None:
        """Show texts and a share from 0 to 1."""
        shown = (safe_text(left), share, safe_text(right))
        if shown != (self._left, self._share, self._right):
            self._left, self._share, self._right = shown
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return the line."""
        width = self.content_size.width
        if y:
            return Strip.blank(width, self.rich_style)
        room = width - cell_len(self._left) - cell_len(self._right) - 2
        middle = f" {bar(self._share, room)} " if room >= 4 else "  "
        left = set_cell_size(self._left, max(0, min(cell_len(self._left), width - cell_len(self._right) - 2)))
        style = self.get_component_rich_style
        segments = [
            Segment(left, style("meter--left")),
            Segment(middle, style("meter--bar")),
            Segment(self._right, style("meter--right")),
        ]
        return Strip(segments).adjust_cell_length(width, self.rich_style)

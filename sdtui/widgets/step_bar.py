"""The wizard's first line: the steps with what is wrong in each, and what the run will take."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from engine.errors import Severity
from sdtui.format import SEVERITY_MARKS, fit
from sdtui.pages import PAGES

Marks = Mapping[str, tuple[Severity, int]]
"""For a page's name its gravest severity and how many problems have it."""


class StepBar(Widget):
    """Draws the steps; a click on one asks for it."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "steps--now", "steps--other", "steps--error", "steps--warning", "steps--meter",
    }  # fmt: skip

    @dataclass
    class Clicked(Message):
        """A step was clicked."""

        name: str

    def __init__(self) -> None:
        super().__init__()
        self._now = PAGES[0].name
        self._marks: Marks = {}
        self._meter = ""
        self._spans: list[tuple[int, int, str]] = []

    def show(self, now: str, marks: Marks, meter: str) -> None:
        """Draw the present step, the marks and the meter."""
        self._now, self._marks, self._meter = now, marks, meter
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return the line."""
        width = self.size.width
        if y:
            return Strip.blank(width, self.rich_style)
        segments: list[Segment] = []
        self._spans, x = [], 0
        for number, page in enumerate(PAGES, start=1):
            is_now = page.name == self._now
            severity, count = self._marks.get(page.name, ("info", 0))
            text = f" {number} {page.title.upper() if is_now else page.title}"
            mark = f"{SEVERITY_MARKS[severity]}{count} " if count else " "
            style = self.get_component_rich_style("steps--now" if is_now else "steps--other")
            is_marked = count and not is_now
            mark_style = self.get_component_rich_style(f"steps--{severity}") if is_marked else style
            segments += [Segment(text + (" " if count else ""), style), Segment(mark, mark_style)]
            length = cell_len(text + mark) + bool(count)
            self._spans.append((x, x + length, page.name))
            x += length
        meter = fit(f"{_fitting(self._meter, width - x - 2)} ", width - x, is_right=True)
        segments.append(Segment(meter, self.get_component_rich_style("steps--meter")))
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def on_click(self, event: events.Click) -> None:
        """Ask for the step that was clicked."""
        for start, end, name in self._spans:
            if start <= event.x < end:
                self.post_message(self.Clicked(name))


def _fitting(meter: str, room: int) -> str:
    """Return as many parts of the meter as there is room for, the first ones first: half a number misleads."""
    parts = meter.split("  ")
    while parts and cell_len("  ".join(parts)) > room:
        parts.pop()
    return "  ".join(parts)

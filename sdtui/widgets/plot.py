"""A live plot: zoom, pan, cursor, logarithmic scale; a redraw costs the same for a thousand points and a million."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from textual import events
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

if TYPE_CHECKING:
    from sdtui.chart import Frame, Span, Trace

MIN_STEPS = 10  # As far as it zooms in.
HEADROOM = 0.05  # Share of the steps that the plot of a growing run keeps free at its right end.


class Plot(Widget):
    """Draws traces over steps. Without a window it shows the whole run; a window at the end follows the run."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "plot--axis", "plot--empty", "plot--raw", "plot--smooth", "plot--mark", "plot--cursor",
        "plot--s0", "plot--s1", "plot--s2", "plot--s3", "plot--s4", "plot--s5",
    }  # fmt: skip

    @dataclass
    class CursorMoved(Message):
        """The cursor stands on another step, None when it was put away."""

        plot: "Plot"
        step: float | None

        @property
        def control(self) -> "Plot":
            """The plot, for `@on` selectors."""
            return self.plot

    def __init__(self, *, name: str, is_ascii: bool = False) -> None:
        super().__init__(id=name)
        self.is_log = False
        self.cursor: float | None = None
        self._is_ascii = is_ascii
        self._traces: Sequence[Trace] = ()
        self._marks: Sequence[tuple[int, str]] = ()
        self._last = 1
        self._end = 1.0
        self._window: tuple[float, float] | None = None
        self._frame: Frame | None = None
        self._lines: list[list[tuple[str, str]]] = []
        self._dragged_from: tuple[int, tuple[float, float]] | None = None

    def show(self, traces: "Sequence[Trace]", *, last: int, marks: Sequence[tuple[int, str]] = ()) -> None:
        """Draw traces of a run that has got to step `last`, with marks under some steps."""
        last = max(last, 1)
        if self._window and self.is_following:
            moved = last - self._last
            self._window = (self._window[0] + moved, self._window[1] + moved)
        if not self._end * (1 - HEADROOM) <= last <= self._end:
            # A little room for the steps to come, or every step would squeeze, and send, the whole plot anew.
            is_growing = self._end < last <= self._end * (1 + HEADROOM)
            self._end = last * (1 + HEADROOM) if is_growing else float(last)
        self._traces, self._marks, self._last = traces, marks, last
        self.redraw()

    @property
    def window(self) -> tuple[float, float]:
        """The first and the last step in view."""
        return self._window or (0.0, self._end)

    @property
    def is_fit(self) -> bool:
        """Tell whether the whole run is shown."""
        return self._window is None

    @property
    def is_following(self) -> bool:
        """Tell whether the newest step is in view."""
        return self._window is None or self._window[1] >= self._last

    def toggle_log(self) -> None:
        """Switch between a linear and a logarithmic scale."""
        self.is_log = not self.is_log
        self.redraw()

    def fit(self) -> None:
        """Show the whole run."""
        self._window = None
        self.redraw()

    def zoom(self, factor: float, around: float | None = None) -> None:
        """Show `factor` times the steps, around a step, else the cursor, else the right end."""
        first, last = self.window
        length = min(max((last - first) * factor, MIN_STEPS), self._last)
        if around is None:
            around = self.cursor if self.cursor is not None and first <= self.cursor <= last else last
        share = (around - first) / max(last - first, 1e-9)
        self._look(around - length * share, length)

    def pan(self, share: float) -> None:
        """Move the window by a share of its length."""
        first, last = self.window
        self._look(first + (last - first) * share, last - first)

    def _look(self, first: float, length: float) -> None:
        first = max(0.0, min(first, self._last - length))
        self._window = None if length >= self._last else (first, first + length)
        self.redraw()

    def put_cursor(self, step: float | None) -> None:
        """Put the cursor on a step, moving the window after it, or take it away."""
        self.cursor = None if step is None else max(0.0, min(step, float(self._last)))
        first, last = self.window
        if self.cursor is not None and not first <= self.cursor <= last:
            self._look(self.cursor - (last - first) / 2, last - first)
        self.redraw()
        self.post_message(self.CursorMoved(self, self.cursor))

    def move_cursor(self, cells: int) -> None:
        """Move the cursor by cells, at least a step."""
        if self.cursor is not None:
            first, last = self.window
            cell = (last - first) / max(1, self._frame.width if self._frame else 1)
            self.put_cursor(self.cursor + cells * max(1.0, cell))

    def on_resize(self) -> None:
        """Draw for the new size."""
        self.redraw()

    def redraw(self) -> None:
        """Draw, and paint only the cells that differ: over SSH each byte counts."""
        width, height = self.content_size
        if width < 8 or height < 3:
            self._frame, self._lines = None, []
            return
        from sdtui.chart import View, draw

        first, last = self.window
        view: View = View(first=first, last=last, is_log=self.is_log, is_ascii=self._is_ascii)
        self._frame = draw(
            self._traces, replace(view, cursor=self.cursor, marks=self._marks), width=width, height=height
        )
        before, self._lines = self._lines, self._frame.rows
        if len(before) != len(self._lines):
            self.refresh()
            return
        pairs = enumerate(zip(before, self._lines, strict=True))
        changed = [_changed(y, old, new) for y, (old, new) in pairs if old != new]
        if changed:
            self.refresh(*changed)

    def render_line(self, y: int) -> Strip:
        """Return a drawn line."""
        width = self.content_size.width
        if y >= len(self._lines):
            return Strip.blank(width, self.rich_style)
        style = self.get_component_rich_style
        return Strip([Segment(text, style(f"plot--{name}")) for text, name in self._lines[y]]).adjust_cell_length(width)

    def _step_at(self, x: int) -> float:
        first, last = self.window
        if self._frame is None:
            return last
        return first + (last - first) * (x - self._frame.left + 0.5) / self._frame.width

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Zoom in under the mouse."""
        event.stop()
        self.zoom(0.8, self._step_at(event.x - self.gutter.left))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Zoom out under the mouse."""
        event.stop()
        self.zoom(1.25, self._step_at(event.x - self.gutter.left))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Begin to drag."""
        self.capture_mouse()
        self._dragged_from = (event.screen_x, self.window)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Drag the window along."""
        if self._dragged_from and self._frame:
            x, (first, last) = self._dragged_from
            self._look(first - (event.screen_x - x) * (last - first) / self._frame.width, last - first)

    def on_mouse_up(self, event: events.MouseUp) -> None:
        """End the drag; without a move it puts the cursor there."""
        self.release_mouse()
        if self._dragged_from and self._dragged_from[0] == event.screen_x:
            self.put_cursor(self._step_at(event.x - self.gutter.left))
        self._dragged_from = None


def _changed(y: int, old: "list[Span]", new: "list[Span]") -> Region:
    """Return the cells of a line from the first to the last span that differs."""
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
    left = sum(len(text) for text, _style in new[:same])
    tails = zip(reversed(old[same:]), reversed(new[same:]), strict=False)
    right = sum(len(pair[1][0]) for pair in takewhile(lambda pair: pair[0] == pair[1], tails))
    return Region(left, y, sum(len(text) for text, _style in new) - left - right, 1)

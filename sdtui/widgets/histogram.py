"""Counts as horizontal bars, one line each: a label, the bar, the number."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.segment import Segment
from textual.strip import Strip
from textual.widget import Widget

from sdtui.format import count, fit

_EIGHTHS = " \u258f\u258e\u258d\u258c\u258b\u258a\u2589\u2588"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One line: what is counted, how many, and whether it is to be warned about (shown by a word as well)."""

    label: str
    value: int
    note: str = ""


class Histogram(Widget):
    """Draws bars against the longest; those that do not fit are counted in the last line."""

    COMPONENT_CLASSES = {"histogram--bar", "histogram--warn", "histogram--label"}  # noqa: RUF012 - as Textual has it
    DEFAULT_CSS = """
    Histogram { height: 1fr; min-height: 1; min-width: 8; }
    Histogram > .histogram--bar { color: $primary; }
    Histogram > .histogram--warn { color: $warning; }
    Histogram > .histogram--label { color: $muted; }
    """

    def __init__(self, *, name: str) -> None:
        super().__init__(id=name)
        self._bars: tuple[Bar, ...] = ()

    def show(self, bars: Sequence[Bar]) -> None:
        """Draw other bars."""
        self._bars = tuple(bars)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return one bar."""
        width, height = self.size
        if y >= len(self._bars) or not width:
            return Strip.blank(width, self.rich_style)
        hidden = self._bars[height - 1 :]
        bar = self._bars[y]
        if y == height - 1 and len(hidden) > 1:
            bar = Bar(label=f"+{len(hidden)}", value=sum(bar.value for bar in hidden))
        return self._line(bar, width)

    def _line(self, bar: Bar, width: int) -> Strip:
        labels = max(len(bar.label) for bar in self._bars)
        tails = max(len(f" {count(bar.value)} {bar.note}") for bar in self._bars)
        room = max(1, width - labels - 1 - tails)
        longest = max(1, *(bar.value for bar in self._bars))
        style = self.get_component_rich_style("histogram--warn" if bar.note else "histogram--bar")
        label = self.get_component_rich_style("histogram--label")
        segments = [
            Segment(fit(bar.label, labels, is_right=True) + " ", label),
            Segment(fit(bar_of(bar.value / longest, room), room), style),
            Segment(fit(f" {count(bar.value)} {bar.note}", width - labels - 1 - room), self.rich_style),
        ]
        return Strip(segments).adjust_cell_length(width, self.rich_style)


def bar_of(share: float, width: int) -> str:
    """Return a bar of at most `width` cells in eighths of a cell; something is never drawn as nothing."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    if share > 0:
        eighths = max(1, eighths)
    return _EIGHTHS[8] * (eighths // 8) + _EIGHTHS[eighths % 8].strip()

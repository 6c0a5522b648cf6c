"""The main plot of a run: a metric raw and smoothed, or the loss by band of timesteps or by bucket."""

import math
from typing import Literal

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from sdtui.chart import Trace
from sdtui.format import number
from sdtui.runstate import DECAYS, RunState
from sdtui.widgets.event_log import MARKS
from sdtui.widgets.plot import Plot

METRICS = {"loss": "loss", "learning_rate": "learning rate", "grad_norm": "gradient norm", "seconds": "s/step"}
Split = Literal["", "band", "bucket"]


class RunPlot(Vertical):
    """A plot with a title that tells what it shows and a line that reads off the cursor."""

    def __init__(self, state: RunState, *, name: str, is_ascii: bool) -> None:
        super().__init__(id=name, classes="pane")
        self._state = state
        self._is_ascii = is_ascii
        self._metric = "loss"
        self._split: Split = ""
        self._described = ("", "", "")
        self.plot = Plot(name="plot", is_ascii=is_ascii)

    def compose(self) -> ComposeResult:
        """Lay out the panel."""
        yield self.plot
        yield Static("", markup=False, id="reading")

    def draw(self) -> None:
        """Draw what the run has told so far."""
        state = self._state
        saved, sampled = ("^", "*") if self._is_ascii else (MARKS["saved"], MARKS["sampled"])
        marks = [*((step, sampled) for step in state.samples), *((save.step, saved) for save in state.saves)]
        self.plot.show(traces(state, self._metric, self._split), last=state.step, marks=marks)
        self.describe()

    def describe(self) -> None:
        """Bring title, subtitle and the cursor's reading up to date."""
        shown = traces(self._state, self._metric, self._split)
        title = self._title(shown)
        where = "all steps" if self.plot.is_fit else "newest steps" if self.plot.is_following else "older steps"
        subtitle = f"{where}  {'log' if self.plot.is_log else 'linear'} y"
        text = cursor_text(shown, self.plot.cursor) if self.plot.cursor is not None else ""
        # Each of these paints anew even where nothing differs, which over SSH would cost more than the plot.
        if (title, subtitle, text) == self._described:
            return
        self._described = (title, subtitle, text)
        self.border_title, self.border_subtitle = Content(title), Content(subtitle)
        reading = self.query_one("#reading", Static)
        if reading.display != bool(text):
            reading.display = bool(text)
        reading.update(Content(text))

    def _title(self, shown: list[Trace]) -> str:
        if self._split:
            names = "  ".join(f"{trace.tag} {trace.series.name}" for trace in shown)
            stride = self._state.stride
            part = f"  (1 step of {stride})" if self._split == "band" and stride > 1 else ""
            return f"loss by {'timestep' if self._split == 'band' else 'bucket'}: {names}{part}"
        series = getattr(self._state.curves, self._metric)
        return METRICS[self._metric] + (f"  raw + ema {number(series.decay)}" if series.decay else "")

    def next_metric(self) -> None:
        """Plot the next metric."""
        names = [*METRICS]
        self._metric, self._split = names[(names.index(self._metric) + 1) % len(names)], ""
        self.draw()

    def toggle_split(self, split: Split) -> None:
        """Plot the loss by band of timesteps or by bucket, or as one again."""
        self._metric, self._split = "loss", "" if self._split == split else split
        self.draw()

    def next_smoothing(self) -> None:
        """Take the next smoothing."""
        curves = self._state.curves
        curves.set_decay(DECAYS[(DECAYS.index(curves.loss.decay) + 1) % len(DECAYS)])
        self.draw()

    def toggle_log(self) -> None:
        """Switch the scale."""
        self.plot.toggle_log()
        self.describe()

    def zoom(self, factor: float) -> None:
        """Show so many times the steps."""
        self.plot.zoom(factor)
        self.describe()

    def fit(self) -> None:
        """Show the whole run."""
        self.plot.fit()
        self.describe()

    def move(self, direction: int) -> None:
        """Move the cursor where there is one, else the window."""
        if self.plot.cursor is not None:
            self.plot.move_cursor(direction)
        else:
            self.plot.pan(0.25 * direction)
        self.describe()

    def toggle_cursor(self) -> None:
        """Put the cursor on the newest step in view, or take it away."""
        self.plot.put_cursor(None if self.plot.cursor is not None else self.plot.window[1])

    @on(Plot.CursorMoved)
    def _cursor_moved(self) -> None:
        self.describe()


def traces(state: RunState, metric: str, split: str) -> list[Trace]:
    """Return what the main plot shows: a metric, or the loss by band of timesteps or by bucket."""
    curves = state.curves
    if split:
        parts = [curves.bands[band] for band in sorted(curves.bands)] if split == "band" else curves.buckets(6)
        return [
            Trace(series=part, style=f"s{number}", is_smoothed=bool(part.decay), tag=chr(ord("a") + number))
            for number, part in enumerate(parts)
        ]
    series = {
        "loss": curves.loss, "learning_rate": curves.learning_rate, "grad_norm": curves.grad_norm,
        "seconds": curves.seconds,
    }[metric]  # fmt: skip
    shown = [Trace(series=series, style="raw" if series.decay else "smooth")]
    return [*shown, Trace(series=series, style="smooth", is_smoothed=True)] if series.decay else shown


def cursor_text(shown: list[Trace], step: float) -> str:
    """Return what stands under the cursor."""
    parts: list[str] = []
    seen: set[int] = set()
    for trace in shown:
        found = trace.series.at(step)
        if found is None or id(trace.series) in seen:
            continue
        seen.add(id(trace.series))
        at, raw, smoothed = found
        if not parts:
            parts.append(f"step {at}")
        label = f"{trace.tag} " if trace.tag else ""
        parts.append(f"{label}{raw:.4g}" + ("" if math.isnan(smoothed) else f" ema {smoothed:.4g}"))
    return "  ".join(parts)

"""What a run's files say so far: its phase, curves, samples, saved models and events; no screen and no disk in here."""

import time
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.events import (
    Continued,
    Event,
    Failed,
    Finished,
    Interrupted,
    Paused,
    Progress,
    Sampled,
    Saved,
    Started,
    Step,
)
from sdtui.curvestore import Update
from sdtui.series import Column, Series

Phase = Literal["starting", "running", "paused", "finished", "stopped", "failed", "crashed"]
ENDED: frozenset[Phase] = frozenset(("finished", "stopped", "failed", "crashed"))
DECAYS = (0.98, 0.995, 0.9, 0.0)  # Smoothing to choose from, 0 for none.
BAND_WIDTH = 200  # Timesteps a band.
SPEED_STEPS = 50
EVENT_LIMIT = 20_000


class Curves:
    """The numbers of each step as series; those by bucket only once they are asked for."""

    def __init__(self) -> None:
        self.loss = Series("loss", DECAYS[0])
        self.learning_rate = Series("lr")
        self.grad_norm = Series("grad norm")
        self.seconds = Series("s/step", DECAYS[0])
        self.bands: dict[int, Series] = {}
        self._buckets: dict[int, Series] | None = None
        self._codes = Column("<u4")  # The bucket of each value in `loss`, width in the upper half.

    @property
    def _of_rows(self) -> tuple[tuple[str, Series], ...]:
        return (
            ("loss", self.loss),
            ("learning_rate", self.learning_rate),
            ("grad_norm", self.grad_norm),
            ("seconds", self.seconds),
        )

    def append(self, rows: NDArray[Any]) -> None:
        """Take in rows of metrics.bin; one at or before the last step makes what it repeats void."""
        if not len(rows):
            return
        falls = np.flatnonzero(np.diff(rows["step"]) <= 0) + 1
        for part in np.split(rows, falls):
            before = int(part["step"][0]) - 1
            if len(self.loss) and before < self.loss.steps.values[-1]:
                self._truncate_rows(before)
            for name, series in self._of_rows:
                series.append(part["step"], part[name])
            self._codes.append(part["bucket_width"].astype("<u4") << 16 | part["bucket_height"])
            if self._buckets is not None:
                self._split(self._buckets, len(self._codes) - len(part))

    def _truncate_rows(self, step: int) -> None:
        for series in (*(series for _name, series in self._of_rows), *(self._buckets or {}).values()):
            series.truncate_after(step)
        self._codes.truncate(len(self.loss))

    def append_steps(self, steps: Iterable[Step]) -> None:
        """Take in step events for the losses by band of timesteps."""
        found: dict[int, list[tuple[int, float]]] = {}
        for event in steps:
            losses: dict[int, list[float]] = {}
            for timestep, loss in zip(event.timesteps, event.image_losses, strict=False):
                losses.setdefault(timestep // BAND_WIDTH, []).append(loss)
            for band, values in losses.items():
                found.setdefault(band, []).append((event.step, sum(values) / len(values)))
        for band, pairs in found.items():
            self._band(band, np.array(pairs))

    def _band(self, band: int, pairs: NDArray[Any]) -> None:
        if not 0 <= band < 1000 // BAND_WIDTH:
            return
        first = band * BAND_WIDTH
        series = self.bands.setdefault(band, Series(f"t {first}-{first + BAND_WIDTH - 1}", self.loss.decay))
        last = series.steps.values[-1] if len(series) else -1
        # The newest step line is always read, so it may come a second time.
        pairs = pairs[pairs[:, 0] > last]
        series.append(pairs[:, 0], pairs[:, 1])

    def buckets(self, limit: int) -> list[Series]:
        """Return the loss of the `limit` buckets with the most steps."""
        if self._buckets is None:
            self._buckets = {}
            self._split(self._buckets, 0)
        return sorted(self._buckets.values(), key=len, reverse=True)[:limit]

    def _split(self, buckets: dict[int, Series], first: int) -> None:
        """Give each bucket its values from position `first` on."""
        codes, steps = self._codes.values[first:], self.loss.steps.values[first:]
        losses = self.loss.raw.column.values[first:]
        for code in np.unique(codes).tolist():
            chosen = codes == code
            series = buckets.setdefault(code, Series(f"{code >> 16}x{code & 0xFFFF}", self.loss.decay))
            series.append(steps[chosen], losses[chosen])

    def truncate_bands(self, step: int) -> None:
        """Forget the losses by band beyond a step."""
        for series in self.bands.values():
            series.truncate_after(step)

    def set_decay(self, decay: float) -> None:
        """Smooth all losses anew."""
        for series in (self.loss, self.seconds, *self.bands.values(), *(self._buckets or {}).values()):
            series.set_decay(decay)

    def seconds_per_step(self) -> float:
        """Return the mean seconds of the newest steps, NaN before the first one."""
        newest = self.seconds.raw.column.values[-SPEED_STEPS:]
        return float(np.nanmean(newest)) if len(newest) else float("nan")


class RunState:
    """A run as its events tell it, brought up to date by `apply`."""

    def __init__(self) -> None:
        self.curves = Curves()
        self.started: Started | None = None
        self.progress: Progress | None = None
        self.last_step: Step | None = None
        self.ending: Finished | Failed | Interrupted | None = None
        self.is_paused = False
        self.is_alive = False
        self.is_behind = True
        self.stride = 1
        self.first_time = 0.0
        self.last_time = 0.0
        self.events: list[Event] = []
        self.dropped_events = 0
        self.samples: dict[int, dict[int, Sampled]] = {}
        self.saves: list[Saved] = []

    @property
    def phase(self) -> Phase:
        """What the run is doing; "starting" also while its files are still being read."""
        match self.ending:
            case Finished():
                return "finished"
            case Failed():
                return "failed"
            case Interrupted():
                return "stopped"
        if self.first_time and not self.is_alive and not self.is_behind:
            return "crashed"
        if self.started is None or self.is_behind:
            return "starting"
        return "paused" if self.is_paused else "running"

    @property
    def step(self) -> int:
        """The number of steps done."""
        steps = self.curves.loss.steps.values
        return int(steps[-1]) if len(steps) else (self.started.resumed_from or 0) if self.started else 0

    @property
    def steps(self) -> int:
        """The number of steps planned, 0 while unknown."""
        return self.started.steps if self.started else 0

    def elapsed(self, now: float | None = None) -> float:
        """Return the seconds since training began, to its last event once it has ended."""
        if self.started is None:
            return 0.0
        is_over = self.phase in ENDED
        return max(0.0, (self.last_time if is_over else now or time.time()) - self.started.time)

    def eta(self) -> float:
        """Return the seconds that are left at the present speed, NaN while unknown."""
        return (self.steps - self.step) * self.curves.seconds_per_step()

    def apply(self, update: Update) -> list[Event]:
        """Take in what was read and return the events that are neither steps nor progress."""
        self.is_alive, self.is_behind, self.stride = update.is_alive, update.has_more, update.stride
        if update.is_restarted:
            bands = self.curves.bands
            decay = self.curves.loss.decay
            self.curves = Curves()
            self.curves.bands = bands
            self.curves.set_decay(decay)
        self.curves.append(update.rows)
        shown: list[Event] = []
        steps: list[Step] = []
        for event in update.events:
            self.first_time = self.first_time or event.time
            self.last_time = event.time
            if isinstance(event, Step):
                steps.append(event)
                self.last_step = event
            elif isinstance(event, Progress):
                self.progress = event
            else:
                if isinstance(event, Started):
                    self.curves.append_steps(steps)
                    steps = []
                self._take(event)
                shown.append(event)
        self.curves.append_steps(steps)
        if len(self.events) > EVENT_LIMIT:
            surplus = len(self.events) - EVENT_LIMIT * 3 // 4
            del self.events[:surplus]
            self.dropped_events += surplus
        return shown

    def _take(self, event: Event) -> None:
        match event:
            case Started():
                self._begin(event)
            case Paused() | Continued():
                self.is_paused = isinstance(event, Paused)
            case Sampled():
                self.samples.setdefault(event.step, {})[event.index] = event
            case Saved() if not event.path.startswith("state/"):
                self.saves.append(event)
            case Finished() | Failed() | Interrupted():
                self.ending = event
        self.events.append(event)

    def _begin(self, event: Started) -> None:
        """Start, or start again after a resume, which makes everything beyond its step void."""
        if event.resumed_from is not None:
            step = event.resumed_from
            self.curves.truncate_bands(step)
            self.events = [old for old in self.events if old.step <= step]
            self.saves = [old for old in self.saves if old.step <= step]
            self.samples = {at: drawn for at, drawn in self.samples.items() if at <= step}
        self.started, self.ending, self.is_paused = event, None, False

"""Telling what happens in a run: each event to every listener, progress not too often. Torch-free."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from engine.errors import EngineError, safe_text
from engine.events import Event, Progress, Stage, Step


class Listener(Protocol):
    """Something that is told every event of a run."""

    def emit(self, event: Event) -> None:
        """Take one event."""

    def close(self) -> None:
        """The run has ended."""


@dataclass(slots=True)
class Teller:
    """Hands each event to every listener; the first is the run's own log, without which there is no run."""

    listeners: list[Listener]
    has_started: bool = False
    step: int = 0
    """Steps done, as last told."""
    _loss_sum: float = 0.0
    _steps: int = 0

    @property
    def mean_loss(self) -> float:
        """The mean loss of the steps told so far."""
        return self._loss_sum / max(1, self._steps)

    def __call__(self, event: Event) -> None:
        """Tell all of them; a screen or pipe that is gone is told no more.

        Raises:
            EngineError: The run's log can't be written.
        """
        self.has_started = self.has_started or event.kind == "started"
        self.step = max(self.step, event.step)
        if isinstance(event, Step):
            self._loss_sum += event.loss
            self._steps += 1
        log, *others = self.listeners
        for listener in others:
            try:
                listener.emit(event)
            except OSError:
                self.listeners.remove(listener)
        try:
            log.emit(event)
        except OSError as error:
            cause = safe_text(error.strerror or str(error))
            raise EngineError(f"events.jsonl can't be written ({cause}); free space in output_dir's disk") from error

    def progress(self, stage: Stage) -> Callable[[int, int | None], None]:
        """Return a callback that tells how far a stage is, at most ten times a second; a total of None is unknown."""
        last, told = 0.0, (-1, -1)

        def report(done: int, total: int | None) -> None:
            nonlocal last, told
            now, counts = time.monotonic(), (done, total or 0)
            if (now - last > 0.1 or done == total) and counts != told:
                last, told = now, counts
                self(Progress(stage=stage, done=counts[0], total=counts[1]))

        return report

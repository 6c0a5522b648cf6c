"""Telling what happens in a run: each event to every listener, progress not too often. Torch-free."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from engine.events import Event, Progress, Stage, Step


class Listener(Protocol):
    """Something that is told every event of a run."""

    def emit(self, event: Event) -> None:
        """Take one event."""

    def close(self) -> None:
        """The run has ended."""


@dataclass(slots=True)
class Teller:
    """Hands each event to every listener; the first is the run's own log."""

    listeners: list[Listener]
    has_started: bool = False
    _loss_sum: float = 0.0
    _steps: int = 0

    @property
    def mean_loss(self) -> float:
        """The mean loss of the steps told so far."""
        return self._loss_sum / max(1, self._steps)

    def __call__(self, event: Event) -> None:
        """Tell all of them."""
        self.has_started = self.has_started or event.kind == "started"
        if isinstance(event, Step):
            self._loss_sum += event.loss
            self._steps += 1
        for listener in self.listeners:
            listener.emit(event)

    def progress(self, stage: Stage) -> Callable[[int, int | None], None]:
        """Return a callback that tells how far a stage is, at most ten times a second; a total of None is unknown."""
        last = 0.0

        def report(done: int, total: int | None) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last > 0.1 or done == total:
                last = now
                self(Progress(stage=stage, done=done, total=done if total is None else total))

        return report

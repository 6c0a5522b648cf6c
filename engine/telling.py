"""Telling what happens in a run: each event to every listener, progress not too often. Torch-free."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.events import Event, EventLog, Progress, Stage, Step, Warned
from engine.space import NotWrittenError, refused


class Listener(Protocol):
    """Something that is told every event of a run."""

    def emit(self, event: Event) -> None:
        """Take one event."""

    def close(self) -> None:
        """The run has ended."""


@dataclass(slots=True)
class Teller:
    """Hands each event to the run's own log and to every listener; none of them ends a training."""

    listeners: list[Listener]
    log: EventLog | None = None
    has_started: bool = False
    step: int = 0
    """Steps done, as last told."""
    _loss_sum: float = 0.0
    _steps: int = 0
    _is_log_refused: bool = False

    @property
    def mean_loss(self) -> float:
        """The mean loss of the steps told so far."""
        return self._loss_sum / max(1, self._steps)

    def __call__(self, event: Event) -> None:
        """Tell all of them; a screen or pipe that is gone is told no more, a file that can't be written is named."""
        self.has_started = self.has_started or event.kind == "started"
        self.step = max(self.step, event.step)
        if isinstance(event, Step):
            self._loss_sum += event.loss
            self._steps += 1
        refusals = [refusal for listener in list(self.listeners) if (refusal := self._tell_one(listener, event))]
        if self.log is not None:
            self._keep(self.log, event)
        for refusal in refusals:
            self.warn("log", f"{refusal}; the run goes on without this log")

    def go_on(self, step: int, losses: Sequence[float]) -> None:
        """Count on from the steps before a resume."""
        self.step, self._steps, self._loss_sum = step, len(losses), sum(losses)

    def warn(self, code: str, message: str) -> None:
        """Tell something that the user should know; the run goes on."""
        self(Warned(step=self.step, code=code, message=message))

    def _tell_one(self, listener: Listener, event: Event) -> str:
        try:
            listener.emit(event)
        except (NotWrittenError, OSError) as error:
            self.listeners.remove(listener)
            return str(error) if isinstance(error, NotWrittenError) else ""
        return ""

    def _keep(self, log: EventLog, event: Event) -> None:
        """Write to the run's own log; while the disk refuses, events wait in memory, which is told once."""
        try:
            log.emit(event)
        except OSError as error:
            if not self._is_log_refused:
                self._is_log_refused = True
                self.warn("events", f"{refused(log.path, error)}; the run goes on and writes it later")
            return
        if self._is_log_refused:
            self._is_log_refused = False
            lost = f"; {log.num_lost} of its oldest events are lost" if log.num_lost else ", nothing is lost"
            self.warn("events", f"{log.path.name} can be written again{lost}")

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

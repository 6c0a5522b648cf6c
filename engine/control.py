"""How a run is steered from outside: signals and request files, looked at between two steps. Torch-free."""

import contextlib
import os
import signal
import threading
import types
from collections.abc import Iterator
from pathlib import Path

from engine.errors import EngineError
from engine.events import Event, Progress
from engine.run import Request, RunFolder

STOP_CODES = {"SIGINT": 130, "SIGTERM": 143}  # What a shell reports of a process that a signal ended.
_NAMES = {signal.SIGINT: "SIGINT", signal.SIGTERM: "SIGTERM"}


class Control:
    """Collects what is asked of a run; the loop asks `take()` between steps, so no step is ever torn.

    Until `is_training` is set a signal ends the preparation at once, as there is nothing to save.
    """

    def __init__(self, folder: RunFolder | None = None) -> None:
        self._folder = folder
        self._stop_reason = ""
        self._is_interrupted = False
        self._held: list[Request | str] = []
        self.is_training = False

    @property
    def stop_reason(self) -> str:
        """Why the run should stop after this step: "SIGINT", "SIGTERM", "request" or ""."""
        return self._stop_reason

    def stop(self, reason: str) -> None:
        """Ask the run to stop after the current step; the first reason counts."""
        self._stop_reason = self._stop_reason or reason

    def take(self) -> list[Request | str]:
        """Return the requests that came in since the last call; a reason where one could not be read."""
        held, self._held = self._held, []
        return [*held, *(self._folder.take_requests() if self._folder else [])]

    def emit(self, event: Event) -> None:
        """Look for a stop while the run prepares, which may take hours; other requests wait for the first step.

        Raises:
            EngineError: The run should stop.
        """
        if self.is_training or not isinstance(event, Progress):
            return
        self._held = self.take()
        if self._stop_reason or any(isinstance(held, Request) and held.verb == "stop" for held in self._held):
            raise EngineError("stopped before the first step; nothing was saved, and the folder is as it was")

    def close(self) -> None:
        """Nothing is held open."""

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Turn SIGINT and SIGTERM into a stop after the step, a second SIGINT into an end at once; outlive SIGHUP.

        Only the main thread may set handlers; in any other the caller owns the signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        watched = [signal.SIGINT, signal.SIGTERM]
        before = {number: signal.signal(number, self._on_signal) for number in watched}
        hangup = getattr(signal, "SIGHUP", None)
        if hangup is not None:
            before[hangup] = signal.signal(hangup, lambda _number, _frame: detach())
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: types.FrameType | None) -> None:
        if not self.is_training:
            raise KeyboardInterrupt(_NAMES[signal.Signals(number)])
        if self._is_interrupted and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        self._is_interrupted = True
        self._stop_reason = _NAMES[signal.Signals(number)]


def detach(output: Path = Path(os.devnull)) -> None:
    """Go on without the terminal, whose end would make any later write fail; what is printed goes to `output`."""
    source = os.open(os.devnull, os.O_RDONLY)
    target = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for descriptor, replaced in ((source, 0), (target, 1), (target, 2)):
        os.dup2(descriptor, replaced)
    os.close(source)
    os.close(target)

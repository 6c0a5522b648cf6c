"""How a run is steered from outside: signals and request files, looked at between two steps. Torch-free."""

import contextlib
import os
import signal
import threading
import types
from collections.abc import Iterator

from engine.run import Request, RunFolder

_NAMES = {signal.SIGINT: "SIGINT", signal.SIGTERM: "SIGTERM"}


class Control:
    """Collects what is asked of a run; the loop asks `take()` between steps, so no step is ever torn."""

    def __init__(self, folder: RunFolder | None = None) -> None:
        self._folder = folder
        self._stop_reason = ""

    @property
    def stop_reason(self) -> str:
        """Why the run should stop after this step: "SIGINT", "SIGTERM" or ""."""
        return self._stop_reason

    def stop(self, reason: str) -> None:
        """Ask the run to stop after the current step."""
        self._stop_reason = reason

    def take(self) -> list[Request | str]:
        """Return the requests that came in since the last call; a reason where one could not be read."""
        return self._folder.take_requests() if self._folder else []

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
            before[hangup] = signal.signal(hangup, _detach)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: types.FrameType | None) -> None:
        if self._stop_reason and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self._stop_reason = _NAMES[signal.Signals(number)]


def _detach(_number: int, _frame: types.FrameType | None) -> None:
    """Go on without the terminal: any later write to it would raise EIO and end the run."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)

"""Lets the screen go first: threads that compute in Python ask between portions whether to stop, and wait meanwhile."""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from textual.worker import get_current_worker

if TYPE_CHECKING:
    from sdtui.app import SdtuiApp

WORK_SECONDS = 0.004  # Of a thread between two waits; what the screen does takes at most as much longer each time.
LONGEST = 0.1  # A screen that answers later than this is held up by something else.


class Breath:
    """Called between portions of work: tells whether to stop, and now and then waits until the event loop came round.

    Python runs one thread at a time and is not fair about it: beside a thread that never waits, painting takes twice as
    long or more. A loop that is idle answers at once, so that this costs work next to nothing.
    """

    def __init__(self, soon: Callable[[Callable[[], object]], None], is_stopped: Callable[[], bool]) -> None:
        self._soon = soon
        self._is_stopped = is_stopped
        self._worked = time.thread_time()

    def __call__(self) -> bool:
        """Return whether to stop."""
        if time.thread_time() - self._worked > WORK_SECONDS:
            came_round = threading.Event()
            self._soon(came_round.set)
            came_round.wait(LONGEST)
            self._worked = time.thread_time()
        return self._is_stopped()


def breath_of(app: "SdtuiApp") -> Breath:
    """Return that of the thread of the present worker."""
    worker = get_current_worker()
    return Breath(app.soon, lambda: worker.is_cancelled)

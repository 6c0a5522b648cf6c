"""How often a screen beside a training is drawn: as often as a set share of one processor core allows."""

import time
from collections.abc import Callable

SHARE = 0.01  # Of one core. What drawing takes, a training that fills every core loses.
SHORTEST = 0.25
LONGEST = 2.0  # A screen that moves less often looks dead.
HURRY_SECONDS = 3.0


class Pace:
    """Tells how long to wait before the next look, from what the last one took of the processor."""

    def __init__(self, used: Callable[[], float] = time.thread_time, now: Callable[[], float] = time.monotonic) -> None:
        self._used = used
        self._now = now
        self._used_before = used()
        self._hurries_until = 0.0
        self.hurry()

    def hurry(self) -> None:
        """Look often for a moment, since somebody waits for an answer."""
        self._hurries_until = self._now() + HURRY_SECONDS

    def delay(self) -> float:
        """Return the seconds to wait; what this thread has done since the last call counts as the cost of a look."""
        used = self._used()
        cost, self._used_before = used - self._used_before, used
        if self._now() < self._hurries_until:
            return SHORTEST
        return min(max(SHORTEST, cost / SHARE), LONGEST)

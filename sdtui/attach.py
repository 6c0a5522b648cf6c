"""Follows a run as plain lines, for screen readers, logs and slow links; needs neither Textual nor torch."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

from engine.display import STAGES, Rate, describe, step_line
from engine.events import Event, Failed, Finished, Interrupted, Progress, Started, Step
from engine.run import RunFolder
from sdtui.curvestore import RunReader

LINE_SECONDS = 10.0  # A line for the steps this often.
POLL_SECONDS = 0.5


def attach_plain(folder: RunFolder, *, out: TextIO | None = None, sleep: Callable[[float], None] = time.sleep) -> int:
    """Print what a run has told and tells, until it ends; return 0, or 1 when it failed or its engine is gone.

    Of the steps so far only the newest is printed, of those to come one every ten seconds.
    """
    printer = _Printer(out or sys.stdout)
    reader = RunReader(folder)
    while True:
        update = reader.read()
        for event in update.events:
            printer.show(event)
        if update.has_more:
            continue
        printer.flush()
        if printer.ending is not None:
            return int(isinstance(printer.ending, Failed))
        if not update.is_alive:
            printer.write("the engine is gone without a word: killed, or out of memory")
            return 1
        sleep(POLL_SECONDS)


class _Printer:
    """Turns events into lines, those of steps not too often."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.ending: Event | None = None
        self._out = out
        self._clock = clock
        self._rate = Rate()
        self._steps = 0
        self._due = 0.0
        self._held: Event | None = None

    def show(self, event: Event) -> None:
        """Print an event, or keep it until a line is due."""
        if isinstance(event, Step):
            self._rate.update(event)
        if isinstance(event, Step | Progress):
            self._held = event
            return
        if isinstance(event, Started):
            self._steps, self.ending = event.steps, None
        if isinstance(event, Finished | Failed | Interrupted):
            self.flush(is_due=True)
            self.ending = event
        if text := describe(event):
            self.write(text)

    def flush(self, *, is_due: bool = False) -> None:
        """Print the newest step or progress if a line is due."""
        now = self._clock()
        if self._held is None or (now < self._due and not is_due):
            return
        held, self._held, self._due = self._held, None, now + LINE_SECONDS
        if isinstance(held, Step):
            self.write(step_line(held, self._steps, self._rate))
        elif isinstance(held, Progress):
            self.write(f"{STAGES.get(held.stage, 'working')} {held.done}/{held.total}")

    def write(self, text: str) -> None:
        """Print a line at once."""
        self._out.write(f"{text}\n")
        self._out.flush()

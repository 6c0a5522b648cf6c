"""Reads a run's files as they grow, a bounded piece at a time; for a thread, so that no disk ever stalls a screen.

The steps come from metrics.bin, since a million of them open in well under a second there; from events.jsonl come all
other events, and a sample of the step lines for what only they hold (losses and timesteps of single pictures).
"""

import struct
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.events import EVENTS, METRIC_FIELDS, Event, Step, metric_row, parse_event
from engine.run import RunFolder

ROW = np.dtype(list(METRIC_FIELDS))
ROWS_AT_ONCE = 1 << 15  # Taking these in keeps the event loop for a few milliseconds.
BYTES_AT_ONCE = 1 << 23
LINE_LIMIT = 1 << 26  # A line that never ends is dropped.
PARSED_STEPS = 10_000  # So many step lines are read in full; of a longer run every second, third, ... of them.
_STEP_PREFIX = np.frombuffer(b'{"kind":"step"', np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one look into a run's files brought; `stride` tells that every so many step lines were read in full."""

    rows: NDArray[Any]
    events: tuple[Event, ...]
    stride: int
    is_alive: bool
    is_restarted: bool
    has_more: bool


class RunReader:
    """Reads what is new in a run folder since the last call."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._metrics = _MetricsReader(folder.path / "metrics.bin")
        self._lines = _LineReader(folder.events_path)
        self._stride = 0
        self._is_alive = False
        self._asked_at = 0.0

    def read(self) -> Update:
        """Return the next piece; call again at once while it says that there is more."""
        # Asked first: an engine that ends between the two has written its last event by the time they are read.
        is_alive = self._ask_alive()
        rows, is_restarted, more_rows = self._metrics.read()
        if not self._stride:
            self._stride = max(1, self._metrics.rows_in_file // PARSED_STEPS)
        # The first lines name the run, the rows draw it; the rest of a long log can follow.
        is_waiting = more_rows and self._lines.has_begun
        lines, more_lines = ([], True) if is_waiting else self._lines.read(self._stride)
        events = tuple(event for event in map(parse_event, lines) if event is not None and is_sound(event))
        if self._metrics.is_missing:
            rows = np.frombuffer(b"".join(metric_row(event) for event in events if isinstance(event, Step)), ROW)
        return Update(
            rows=rows,
            events=events,
            stride=self._stride,
            is_alive=is_alive,
            is_restarted=is_restarted,
            has_more=more_rows or more_lines,
        )

    def _ask_alive(self) -> bool:
        now = time.monotonic()
        if now - self._asked_at > 1.0 or not self._asked_at:
            self._is_alive, self._asked_at = self._folder.is_alive(), now
        return self._is_alive


class _MetricsReader:
    """Reads new rows of metrics.bin, from the start again when the file was replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._file_id = 0
        self.is_missing = False
        self.rows_in_file = 0

    def read(self) -> tuple[NDArray[Any], bool, bool]:
        """Return new rows, whether all earlier ones are void, and whether more wait."""
        try:
            # Read, not mapped: a map over a file that shrinks kills the process with SIGBUS.
            with self._path.open("rb") as file:
                status = self._path.stat()
                is_restarted = bool(self._offset) and (status.st_ino != self._file_id or status.st_size < self._offset)
                if is_restarted:
                    self._offset = 0
                self._file_id = status.st_ino
                file.seek(self._offset)
                data = file.read(ROWS_AT_ONCE * ROW.itemsize)
        except OSError:
            # Never written, or not in reach now; rows then come from the events if none were read here before.
            self.is_missing = not self._offset
            return np.empty(0, ROW), False, False
        self.is_missing = False
        self.rows_in_file = status.st_size // ROW.itemsize
        rows = np.frombuffer(data[: len(data) // ROW.itemsize * ROW.itemsize], ROW)
        self._offset += rows.nbytes
        return rows, is_restarted, self.rows_in_file * ROW.itemsize > self._offset


class _LineReader:
    """Reads new whole lines of events.jsonl, of the steps only some."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._torn = b""
        self._steps_seen = 0

    @property
    def has_begun(self) -> bool:
        """Tell whether anything was read yet."""
        return self._offset > 0

    def read(self, stride: int) -> tuple[list[bytes], bool]:
        """Return lines in order (of steps every `stride`-th and the newest), and whether more wait."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(BYTES_AT_ONCE)
        except OSError:
            return [], False
        self._offset += len(data)
        has_more = len(data) == BYTES_AT_ONCE
        data = self._torn + data
        end = data.rfind(b"\n") + 1
        self._torn = data[end:] if len(data) - end <= LINE_LIMIT else b""
        return (self._choose(data, end, stride) if end else []), has_more

    def _choose(self, data: bytes, end: int, stride: int) -> list[bytes]:
        octets = np.frombuffer(data, np.uint8, end)
        ends = np.flatnonzero(octets == ord("\n"))
        starts = np.concatenate(([0], ends[:-1] + 1))
        is_step = ends - starts > len(_STEP_PREFIX)
        for offset, octet in enumerate(_STEP_PREFIX):
            is_step[is_step] = octets[starts[is_step] + offset] == octet
        steps = np.flatnonzero(is_step)
        first = -self._steps_seen % stride
        self._steps_seen += len(steps)
        keep = ~is_step
        keep[steps[first::stride]] = True
        keep[steps[-1:]] = True
        return [data[starts[line] : ends[line]] for line in np.flatnonzero(keep)]


_TYPES: dict[object, tuple[type, ...]] = {
    int: (int,), float: (int, float), str: (str,), bool: (bool,), int | None: (int, type(None)),
    float | None: (int, float, type(None)), tuple[tuple[int, int, float], ...]: (tuple,),
    tuple[str, ...]: (tuple,), tuple[float, ...]: (tuple,), tuple[int, ...]: (tuple,), tuple[int, int]: (tuple,),
}  # fmt: skip
_CHECKS = {cls: [(field.name, _TYPES.get(field.type, (str,))) for field in fields(cls)] for cls in EVENTS.values()}


def is_sound(event: Event) -> bool:
    """Tell whether every value has its declared type, so that a damaged or hostile line can't break a screen."""
    if not all(isinstance(getattr(event, name), kinds) for name, kinds in _CHECKS[type(event)]):
        return False
    if isinstance(event, Step):
        try:
            metric_row(event)
        except (struct.error, TypeError, OverflowError):
            return False
        return all(isinstance(value, (int, float)) for value in (*event.image_losses, *event.timesteps))
    return True

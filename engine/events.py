"""What a run tells: typed events, one JSON object a line in events.jsonl, and the steps as fixed rows in metrics.bin.

Screens draw from these files alone, so a run in this process, one in another and a finished one look the same.
Torch-free.
"""

import contextlib
import errno
import json
import os
import struct
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

from engine.redact import redact

Stage = Literal["scan", "model", "latents", "text", "sample", "save"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a run; `time` is Unix seconds, `step` the number of optimizer steps done."""

    kind: ClassVar[str] = ""
    step: int = 0
    time: float = field(default_factory=time.time)

    def as_line(self) -> str:
        """Return the event as one line of JSON, newline included."""
        return json.dumps({"kind": self.kind, **asdict(self)}, ensure_ascii=True, separators=(",", ":")) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Event):
    """Training begins; with `resumed_from` N, earlier lines beyond step N are void."""

    kind: ClassVar[str] = "started"
    name: str
    steps: int
    epochs: int
    steps_per_epoch: int
    images: int
    """Pictures that are trained on."""
    seed: int
    pid: int
    device: str
    family: str
    trains: tuple[str, ...]
    resumed_from: int | None = None
    held_out: int = 0
    """Pictures that are not trained on, but measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Event):
    """A stage that takes time has got this far; a total of 0 is not known yet."""

    kind: ClassVar[str] = "progress"
    stage: Stage
    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Event):
    """One optimizer step; `loss` is the mean over its images, `wait_seconds` the part of `seconds` spent on data.

    `adapted_rate` is the rate that Prodigy or D-Adaptation has arrived at, d x learning_rate.
    """

    kind: ClassVar[str] = "step"
    loss: float
    learning_rate: float
    grad_norm: float
    images: int
    seconds: float
    wait_seconds: float
    bucket: tuple[int, int]
    peak_memory_bytes: int
    epoch: int
    image_losses: tuple[float, ...] = ()
    timesteps: tuple[int, ...] = ()
    adapted_rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved(Event):
    """A model or a state was written; `path` counts from the run folder."""

    kind: ClassVar[str] = "saved"
    path: str
    bytes: int
    seconds: float
    epoch: int
    removed: tuple[str, ...] = ()
    mode: str = ""
    """Of a state: "copied" where it was written while training went on, "streamed" where training waited."""
    blocked_seconds: float = 0.0
    """Of a state: how long training waited for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled(Event):
    """A sample picture was drawn; `path` counts from the run folder."""

    kind: ClassVar[str] = "sampled"
    path: str
    prompt: str
    index: int
    seed: int
    epoch: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated(Event):
    """The loss on pictures that are not trained on, with the same noise every time.

    `by_bucket` holds (width, height, loss), `by_timestep` (first, end, loss) for each band of timesteps.
    """

    kind: ClassVar[str] = "validated"
    loss: float
    images: int = 0
    seconds: float = 0.0
    by_bucket: tuple[tuple[int, int, float], ...] = ()
    by_timestep: tuple[tuple[int, int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Requested(Event):
    """A request file was answered."""

    kind: ClassVar[str] = "requested"
    verb: str
    accepted: bool
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused(Event):
    """The run waits between two steps."""

    kind: ClassVar[str] = "paused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Continued(Event):
    """The run goes on after a pause."""

    kind: ClassVar[str] = "continued"


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned(Event):
    """Something the user should know; the run goes on."""

    kind: ClassVar[str] = "warning"
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted(Event):
    """The run was stopped from outside before its last step."""

    kind: ClassVar[str] = "interrupted"
    reason: str
    saved: str = ""
    state: str = ""
    """The state to go on from, as a path in the run folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Event):
    """The run ended by an error; `message` names cause and remedy."""

    kind: ClassVar[str] = "failed"
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Event):
    """The run did all its steps."""

    kind: ClassVar[str] = "finished"
    path: str
    seconds: float
    loss: float


EVENTS: dict[str, type[Event]] = {
    cls.kind: cls
    for cls in (
        Started, Progress, Step, Saved, Sampled, Validated, Requested,
        Paused, Continued, Warned, Interrupted, Failed, Finished,
    )
}  # fmt: skip


def parse_event(line: str | bytes) -> Event | None:
    """Return the event of one line, or None for a torn line or a kind this version does not know."""
    try:
        record = json.loads(line)
        cls = EVENTS[record.pop("kind")]
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {name: _tupled(value) for name, value in record.items() if name in known}
        return cls(**values)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _tupled(value: object) -> object:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def read_events(path: Path) -> list[Event]:
    """Return the events that count: lines that a later resume made void are left out."""
    try:
        with path.open("rb") as file:
            return valid_events(event for event in map(parse_event, file) if event is not None)
    except FileNotFoundError:
        return []


def valid_events(events: Iterable[Event]) -> list[Event]:
    """Drop events beyond the step that a later `started` resumed from."""
    kept: list[Event] = []
    for event in events:
        if isinstance(event, Started) and event.resumed_from is not None:
            kept = [old for old in kept if old.step <= event.resumed_from]
        kept.append(event)
    return kept


_ROW = struct.Struct("<qdffffiHHq")
METRIC_FIELDS = (
    ("step", "<i8"), ("time", "<f8"), ("loss", "<f4"), ("learning_rate", "<f4"), ("grad_norm", "<f4"),
    ("seconds", "<f4"), ("images", "<i4"), ("bucket_width", "<u2"), ("bucket_height", "<u2"),
    ("peak_memory_bytes", "<i8"),
)  # fmt: skip


def metric_row(event: Step) -> bytes:
    """Return the fixed-size row of metrics.bin (numpy dtype `METRIC_FIELDS`) for a step."""
    numbers = (event.loss, event.learning_rate, event.grad_norm, event.seconds)
    return _ROW.pack(event.step, event.time, *numbers, event.images, *event.bucket, event.peak_memory_bytes)


def _ends_torn(path: Path) -> bool:
    """Tell whether the last line was cut off by a kill, so that a new one has to begin after it."""
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # Not there, or empty.
        return False


# A descriptor of a disk that went away stays dead when the disk is back, unlike one of a disk that was full.
_DEAD = {
    getattr(errno, name) for name in ("EIO", "ESTALE", "ENODEV", "ENXIO", "ENOTCONN", "EBADF") if hasattr(errno, name)
}


class EventLog:
    """Appends events to a run's files, one `write` a line, so that a reader never sees half of one for long.

    What the disk refuses waits in memory, up to `most_waiting_bytes`, and is written by the next call that can.
    """

    def __init__(self, folder: Path, *, most_waiting_bytes: int = 16 << 20) -> None:
        self._folder = folder
        self.path = folder / "events.jsonl"
        self._most_waiting_bytes = most_waiting_bytes
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._waiting_bytes = 0
        self._is_torn, self._is_dead = _ends_torn(self.path), False
        self.num_lost = 0
        """Events given up, the oldest first, because too many were waiting."""
        self._events: IO[bytes] = self.path.open("ab", buffering=0)
        self._metrics: IO[bytes] = (folder / "metrics.bin").open("ab", buffering=0)

    def emit(self, event: Event) -> None:
        """Write one event, after those that wait.

        Raises:
            OSError: The disk takes no more; the event waits.
        """
        row = metric_row(event) if isinstance(event, Step) else b""
        line = (event.as_line() if row else redact(event.as_line())).encode("ascii")
        self._waiting.append((line, row))
        self._waiting_bytes += len(line) + len(row)
        while self._waiting_bytes > self._most_waiting_bytes:
            self._forget_oldest()
            self.num_lost += 1
        self._write_waiting()

    def void_after(self, step: int) -> None:
        """Drop the rows of later steps from metrics.bin, since the run goes back; their events stay, and are void."""
        rebuild_metrics(self._folder, up_to_step=step)
        self._reopen()

    def close(self) -> None:
        """Close both files, after a last attempt to write what waits."""
        with contextlib.suppress(OSError):
            self._write_waiting()
        for file in (self._events, self._metrics):
            with contextlib.suppress(OSError):
                file.close()

    def _write_waiting(self) -> None:
        try:
            if self._is_dead:
                self._reopen()
            while self._waiting:
                line, row = self._waiting[0]
                self._append_line(line)
                self._waiting[0] = (b"", row)
                self._append_row(row)
                self._waiting_bytes -= len(line)
                self._forget_oldest()
        except OSError as error:
            self._is_dead = self._is_dead or error.errno in _DEAD
            raise

    def _forget_oldest(self) -> None:
        line, row = self._waiting.popleft()
        self._waiting_bytes -= len(line) + len(row)

    def _append_line(self, line: bytes) -> None:
        """Write a line; one that is half written ends before the next one begins."""
        if not line:
            return
        data = b"\n" + line if self._is_torn else line
        written = self._events.write(data)
        self._is_torn = 0 < written < len(data) or (self._is_torn and not written)
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _append_row(self, row: bytes) -> None:
        """Write a row of metrics.bin; half a row would shift all that follow."""
        written = self._metrics.write(row) if row else 0
        if written < len(row):
            self._metrics.truncate(self._metrics.seek(0, os.SEEK_END) - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _reopen(self) -> None:
        """Open both files anew, never making them: where the disk is still away, its mount point is not the run."""
        opened = [
            os.fdopen(os.open(self._folder / name, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0)), "ab", 0)
            for name in ("events.jsonl", "metrics.bin")
        ]
        for file in (self._events, self._metrics):
            with contextlib.suppress(OSError):
                file.close()
        self._events, self._metrics = opened
        self._is_dead, self._is_torn = False, True  # A blank line does no harm.


def rebuild_metrics(folder: Path, *, up_to_step: int | None = None) -> None:
    """Write metrics.bin anew from events.jsonl, when it is missing or, up to a step, before a resume from there."""
    steps = (event for event in read_events(folder / "events.jsonl") if isinstance(event, Step))
    rows = b"".join(metric_row(event) for event in steps if up_to_step is None or event.step <= up_to_step)
    temporary = folder / "metrics.bin.tmp"
    temporary.write_bytes(rows)
    temporary.replace(folder / "metrics.bin")


class EventTail:
    """Follows events.jsonl from its start; `read` returns what is new and keeps a torn last line for later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._torn = b""

    def read(self) -> Iterator[Event]:
        """Yield the events written since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        self._offset += len(data)
        *lines, self._torn = (self._torn + data).split(b"\n")
        for line in lines:
            event = parse_event(line)
            if event is not None:
                yield event

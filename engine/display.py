"""What a headless run shows: a live line on a terminal, plain lines elsewhere; drawn from events alone. Torch-free."""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from engine.errors import EngineError, safe_text
from engine.events import (
    Continued,
    Event,
    Failed,
    Finished,
    Interrupted,
    Paused,
    Progress,
    Requested,
    Sampled,
    Saved,
    Started,
    Step,
    Validated,
    Warned,
)

if TYPE_CHECKING:
    from engine.setting_types import LogLevel
    from engine.settings import LoggingSettings

PLAIN_SECONDS = 10.0  # Without a terminal one line this often, so that a log of a long run stays readable.
STAGES = {
    "scan": "scanning pictures", "model": "loading the model", "latents": "encoding latents",
    "text": "encoding captions", "sample": "drawing samples", "save": "saving",
}  # fmt: skip


def duration(seconds: float) -> str:
    """Return seconds as 1:05 or 2:03:04."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"


def size(count: float) -> str:
    """Return bytes as 1.5 GiB and the like."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _started(event: Started) -> str:
    trains = " and ".join(event.trains)
    return f"training {trains}: {event.steps} steps, {event.epochs} epochs, {event.images} images, {event.device}"


def _saved(event: Saved) -> str:
    removed = f", removed {', '.join(event.removed)}" if event.removed else ""
    return f"saved {event.path} ({size(event.bytes)}, {event.seconds:.1f} s){removed}"


def _interrupted(event: Interrupted) -> str:
    return f"stopped by {event.reason} at step {event.step}" + (f", saved {event.saved}" if event.saved else "")


def _finished(event: Finished) -> str:
    return f"finished {event.step} steps in {duration(event.seconds)}, mean loss {event.loss:.4f}: {event.path}"


_DESCRIPTIONS: dict[type[Event], Callable[[Any], str]] = {
    Started: _started,
    Saved: _saved,
    Sampled: lambda event: f"drew {event.path} ({event.seconds:.1f} s)",
    Validated: lambda event: f"loss {event.loss:.4f} on {event.images} pictures held out, at step {event.step}",
    Warned: lambda event: f"warning: {event.message}",
    Requested: lambda event: f"{event.verb}: {event.message}",
    Paused: lambda _event: "paused",
    Continued: lambda _event: "continued",
    Interrupted: _interrupted,
    Failed: lambda event: f"failed at step {event.step}: {event.message}",
    Finished: _finished,
}


def describe(event: Event) -> str:
    """Return an event that happens seldom as one plain line, or nothing for steps and progress."""
    describer = _DESCRIPTIONS.get(type(event))
    return safe_text(describer(event), limit=1000) if describer else ""


def progress_line(event: Progress) -> str:
    """Return how far a stage is as one line."""
    return f"{STAGES[event.stage]} {event.done}" + (f"/{event.total}" if event.total else "")


class Rate:
    """Loss and speed smoothed over about the last fifty steps."""

    def __init__(self) -> None:
        self.loss = math.nan
        self.seconds = math.nan

    def update(self, step: Step) -> None:
        """Take in one step."""
        self.loss = step.loss if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * step.loss
        # The first steps are slower (allocation, autotuning), so they must not linger in the estimate.
        weight = 0.02 if step.step > 50 else 1 / step.step
        self.seconds = (
            step.seconds if math.isnan(self.seconds) else self.seconds + weight * (step.seconds - self.seconds)
        )


def _rate_text(step: Step) -> str:
    """Return the learning rate that is at work: of Prodigy and D-Adaptation d x lr."""
    return f"{step.learning_rate if step.adapted_rate is None else step.adapted_rate:.3g}"


def step_line(step: Step, total: int, rate: Rate) -> str:
    """Return a step as one line: step, loss, rate, speed, time left, memory."""
    eta = duration((total - step.step) * rate.seconds)
    return (
        f"step {step.step}/{total}  epoch {step.epoch}  loss {step.loss:.4f} (mean {rate.loss:.4f})  "
        f"lr {_rate_text(step)}  {rate.seconds:.2f} s/step  eta {eta}  {size(step.peak_memory_bytes)}"
    )


class PlainDisplay:
    """Plain lines on stderr."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, file: TextIO | None = None) -> None:
        self._clock = clock
        self._owned = file
        self._file = file or sys.stderr  # Of the person; what libraries print is redirected later.
        self._rate = Rate()
        self._total = 0
        self._next = 0.0

    def emit(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Started):
            self._total = event.steps
        if isinstance(event, Step):
            self._rate.update(event)
            if self._due(is_last=event.step == self._total):
                self._write(step_line(event, self._total, self._rate))
        elif isinstance(event, Progress):
            if self._due(is_last=event.done == event.total):
                self._write(progress_line(event))
        elif line := describe(event):
            self._write(line)

    def close(self) -> None:
        """Close the file that was handed over, if one was."""
        if self._owned is not None:
            self._owned.close()

    def _due(self, *, is_last: bool) -> bool:
        now = self._clock()
        if now < self._next and not is_last:
            return False
        self._next = now + PLAIN_SECONDS
        return True

    def _write(self, line: str) -> None:
        self._file.write(f"{line}\n")
        self._file.flush()


class LiveDisplay:
    """A progress bar that stays on the last line of the terminal, events above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        console = Console(file=sys.stderr)  # Of the person; what libraries print is redirected later.
        self._bar: Bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("starting", total=None, note="")
        self._rate = Rate()
        self._bar.start()

    def emit(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Started):
            self._bar.reset(self._task, total=event.steps, description="training", note="")
        if isinstance(event, Step):
            self._rate.update(event)
            self._bar.update(
                self._task, completed=event.step, description=f"epoch {event.epoch}", note=self._note(event)
            )
        elif isinstance(event, Progress):
            note = "" if event.done == event.total else progress_line(event)
            self._bar.update(self._task, note=note)
        elif line := describe(event):
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bar.stop()

    def _note(self, step: Step) -> str:
        total = self._bar.tasks[0].total or step.step
        eta = duration((total - step.step) * self._rate.seconds)
        memory = size(step.peak_memory_bytes)
        return f"loss {self._rate.loss:.4f}  lr {_rate_text(step)}  {self._rate.seconds:.2f} s  eta {eta}  {memory}"


# Levels of the events that are shown; all others are INFO.
_LOG_LEVELS: tuple["LogLevel", ...] = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_LEVELS: dict[type[Event], "LogLevel"] = {Warned: "WARNING", Interrupted: "WARNING", Failed: "ERROR"}


class FilteredDisplay:
    """Shows events from a level on, as plain lines."""

    def __init__(self, display: PlainDisplay, level: "LogLevel") -> None:
        self._display = display
        self._shown = _LOG_LEVELS[_LOG_LEVELS.index(level) :]

    def emit(self, event: Event) -> None:
        """Show one event if it is grave enough."""
        if _LEVELS.get(type(event), "INFO") in self._shown:
            self._display.emit(event)

    def close(self) -> None:
        """Close what it shows on."""
        self._display.close()


def make_display(logging: "LoggingSettings") -> PlainDisplay | LiveDisplay | FilteredDisplay:
    """Return a live display on a terminal that can show one, plain lines elsewhere or where fewer are wanted.

    Raises:
        EngineError: console_log_file can't be written.
    """
    import os

    if logging.console_log_file is not None:
        try:
            file = Path(logging.console_log_file).open("a", encoding="utf-8")  # noqa: SIM115 - closed by the display
        except OSError as error:
            shown = safe_text(logging.console_log_file)
            raise EngineError(f"console_log_file = {shown} can't be written: {error.strerror or error}") from error
        return FilteredDisplay(PlainDisplay(file=file), logging.console_log_level)
    if logging.console_log_level not in ("DEBUG", "INFO"):
        return FilteredDisplay(PlainDisplay(), logging.console_log_level)

    is_terminal = sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    return LiveDisplay() if is_terminal else PlainDisplay()

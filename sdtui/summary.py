"""A run folder in a few words for lists: state, step, loss, time; reads the ends of its event log only."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.errors import safe_text
from engine.events import (
    Continued,
    Event,
    Failed,
    Finished,
    Interrupted,
    Paused,
    Started,
    Step,
    parse_event,
)  # fmt: skip
from engine.run import RunFolder

State = Literal["starting", "running", "paused", "finished", "stopped", "failed", "crashed"]
END_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a list shows of a run."""

    path: Path
    state: State
    time: float
    step: int = 0
    steps: int = 0
    loss: float | None = None
    family: str = ""
    trains: str = ""
    models: int = 0
    message: str = ""

    @property
    def name(self) -> str:
        """The folder's name, safe to show."""
        return safe_text(self.path.name)

    @property
    def is_alive(self) -> bool:
        """An engine owns the folder."""
        return self.state in ("starting", "running", "paused")


def summarise(path: Path) -> RunSummary | None:
    """Return a run in a few words, or None where there is none (any more)."""
    folder = RunFolder(path)
    try:
        modified = folder.events_path.stat().st_mtime
        events = _ends(folder.events_path)
        models = sum(entry.suffix in (".safetensors", ".ckpt") for entry in path.iterdir())
    except OSError:
        return None
    started = next((event for event in reversed(events) if isinstance(event, Started)), None)
    last_step = next((event for event in reversed(events) if isinstance(event, Step)), None)
    return RunSummary(
        path=path,
        state=_state(events, is_alive=folder.is_alive()),
        time=modified,
        step=last_step.step if last_step else 0,
        steps=started.steps if started else 0,
        loss=_mean_loss(events),
        family=safe_text(str(started.family)) if started else "",
        trains=safe_text(" + ".join(started.trains)) if started else "",
        models=models,
        message=_message(events),
    )


def summaries(paths: Iterable[Path]) -> list[RunSummary]:
    """Return the runs among folders, running ones first, then the newest; a folder named twice counts once."""
    unique = dict.fromkeys(path.absolute() for path in paths)
    found = [summary for path in unique if (summary := summarise(path))]
    return sorted(found, key=lambda summary: (not summary.is_alive, -summary.time))


def _ends(path: Path) -> list[Event]:
    """Return the events at both ends of a log; the line that the cut tears is dropped."""
    with path.open("rb") as file:
        head = file.read(END_BYTES)
        length = file.seek(0, 2)
        start = max(len(head), length - END_BYTES)
        file.seek(start)
        tail = file.read()
    is_cut = start > len(head)
    lines = [*head.split(b"\n")[:-1], *tail.split(b"\n")[1:]] if is_cut else (head + tail).split(b"\n")
    return [event for line in lines if (event := parse_event(line)) is not None]


def _state(events: list[Event], *, is_alive: bool) -> State:
    last = next((event for event in reversed(events) if isinstance(event, _TELLING)), None)
    if is_alive:
        return "paused" if isinstance(last, Paused) else "running" if last else "starting"
    endings: dict[type, State] = {Finished: "finished", Failed: "failed", Interrupted: "stopped"}
    return endings.get(type(last), "crashed")


_TELLING = (Started, Step, Paused, Continued, Finished, Failed, Interrupted)


def _mean_loss(events: list[Event]) -> float | None:
    losses = [event.loss for event in events[-50:] if isinstance(event, Step)]
    return sum(losses) / len(losses) if losses else None


def _message(events: list[Event]) -> str:
    last = next((event for event in reversed(events) if isinstance(event, Failed | Interrupted | Finished)), None)
    if isinstance(last, Failed):
        return safe_text(last.message, limit=600)
    if isinstance(last, Interrupted):
        saved = f", saved {last.saved}" if last.saved else ", nothing saved"
        return safe_text(f"stopped by {last.reason}{saved}", limit=600)
    return safe_text(f"saved {last.path}", limit=600) if last else ""


def command_again(path: Path) -> str:
    """Return the command that trains a run once more, in a folder beside it: its own is never written anew."""
    return shlex.join(["sdtui", "train", str(path / "run.toml"), "--set", f"output_dir={path}-again"])

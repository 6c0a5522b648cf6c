"""The run folder: what lies where, who owns it, and how others ask its engine for something. Torch-free."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from engine.errors import EngineError, safe_text
from engine.events import Event, EventTail, read_events
from engine.lock import held, is_held
from engine.space import refused

Verb = Literal["stop", "pause", "continue", "save", "sample", "set"]
_STARTED = b'{"kind":"started"'


def cache_dir() -> Path:
    """Return the folder for latents and the scan index: SDTUI_CACHE_DIR, else the user's cache folder."""
    chosen = os.environ.get("SDTUI_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "sdtui"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Something asked of a running engine, such as {"verb": "stop", "when": "step"}."""

    verb: Verb
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run; all names under it are fixed by the contract in docs/architecture.md."""

    path: Path

    @property
    def events_path(self) -> Path:
        """The append-only event log."""
        return self.path / "events.jsonl"

    @property
    def log_path(self) -> Path:
        """What libraries print."""
        return self.path / "log.txt"

    @property
    def sample_folder(self) -> Path:
        """Sample pictures."""
        return self.path / "sample"

    @property
    def requests_folder(self) -> Path:
        """Files that ask the running engine."""
        return self.path / "requests"

    def holds_run(self) -> bool:
        """Tell whether a run was started here before; one that was killed while it prepared never was."""
        try:
            with self.events_path.open("rb") as file:
                return any(line.startswith(_STARTED) for line in file)
        except OSError:
            return False

    def refuse_run(self) -> None:
        """Refuse a folder that holds a run.

        Raises:
            EngineError: It does; the message names `resume`.
        """
        if self.holds_run():
            shown = safe_text(str(self.path))
            raise EngineError(
                f"{shown} already holds a run: continue it with `sdtui resume {shown}` or choose another output_dir"
            )

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make the folder, or take an existing one that holds no run.

        Raises:
            EngineError: It can't be written, or it holds a run.
        """
        folder = cls(path)
        folder.refuse_run()
        folder.check_writable()
        return folder

    def check_writable(self) -> None:
        """Make the folder where it is missing and try to write into it.

        Raises:
            EngineError: It can't be written.
        """
        try:
            self.requests_folder.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".writable-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise EngineError(f"output_dir {refused(self.path, error)}") from error

    def clear(self) -> None:
        """Remove the events of a run that was killed before it started; call while the folder is locked."""
        for name in ("events.jsonl", "metrics.bin"):
            (self.path / name).unlink(missing_ok=True)

    def discard(self, made: Sequence[Path] = (), *, keeps_log: bool = False) -> None:
        """Remove what a run that never started has left, and of the folders in `made` those that are empty then.

        Call when nothing of it is open or locked any more: Windows removes no open file.
        """
        if self.is_alive():
            return  # Of another engine, which has taken the folder since.
        with contextlib.suppress(OSError):  # What can't be removed does no harm.
            self.clear()
            (self.path / "lock").unlink(missing_ok=True)
            if not keeps_log:
                self.log_path.unlink(missing_ok=True)
            for folder in (self.requests_folder, *sorted(made, reverse=True)):
                folder.rmdir()

    def locked(self) -> AbstractContextManager[str]:
        """Own the folder while the block runs; yields a notice where the disk knows no locks, else "".

        Raises:
            EngineError: Another engine owns it, or one on another computer left its lock.
        """
        return held(self.path / "lock")

    def is_alive(self) -> bool:
        """Tell whether an engine owns the folder now."""
        return is_held(self.path / "lock")

    def events(self) -> list[Event]:
        """Return all events that count."""
        return read_events(self.events_path)

    def follow(self) -> EventTail:
        """Return a reader of the events from the first one on, which can be asked again for new ones."""
        return EventTail(self.events_path)

    def request(self, verb: Verb, **arguments: object) -> Path:
        """Ask the engine for something; it deletes the file and answers with a `requested` event."""
        self.requests_folder.mkdir(parents=True, exist_ok=True)
        name = f"{time.time_ns()}-{verb}.json"
        temporary = self.requests_folder / f".{name}.{os.getpid()}"
        temporary.write_text(json.dumps({"verb": verb, **arguments}), encoding="utf-8")
        return temporary.replace(self.requests_folder / name)

    def take_requests(self) -> list[Request | str]:
        """Remove and return the waiting requests in order; one that can't be read comes back as its reason."""
        try:
            names = sorted(entry.name for entry in os.scandir(self.requests_folder) if entry.name.endswith(".json"))
        except FileNotFoundError:
            return []
        return [_take(self.requests_folder / name) for name in names if not name.startswith(".")]


def missing_folders(path: Path) -> tuple[Path, ...]:
    """Return which of a folder and those it lies in do not exist yet."""
    return tuple(folder for folder in (path, *path.parents) if not folder.exists())


def list_runs(parent: Path) -> list[RunFolder]:
    """Return the runs in a folder and its direct subfolders, newest first."""
    candidates = [parent, *sorted(path for path in parent.iterdir() if path.is_dir())] if parent.is_dir() else []
    runs = [RunFolder(path) for path in candidates if RunFolder(path).holds_run()]
    return sorted(runs, key=lambda run: run.events_path.stat().st_mtime, reverse=True)


def _take(path: Path) -> Request | str:
    try:
        record = json.loads(path.read_bytes()[:65_536])
        verb = record.pop("verb")
        if verb not in get_args(Verb):
            return f"unknown verb {safe_text(str(verb))}"
        return Request(verb=verb, arguments=record)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"{safe_text(path.name)}: not a request ({safe_text(str(error))})"
    finally:
        path.unlink(missing_ok=True)

"""Resumable states on disk: written whole or not at all, told apart when damaged, removed only when replaced.

A state is a folder `state/step-00000500` of .safetensors and JSON files with MANIFEST.json, which names each of them
with its size and SHA-256. It grows under a name of its own and gets its place by one rename, after everything in it is
durable, so whatever bears the name is complete. There is no "latest" file to be wrong: the newest state is the one
with the highest step whose manifest holds. Torch-free.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import EngineError, safe_text
from engine.models.atomic import atomic_file, sync_folder
from engine.space import refused

FORMAT = 1
FOLDER, MANIFEST, STATE_FILE = "state", "MANIFEST.json", "state.json"
KEPT = 2  # Good states that no rule removes: the newest may turn out damaged one day.
_NAME = re.compile(r"step-(\d{8,})")
_LEFTOVER = re.compile(r"\.(?:tmp|trash|bad)-step-\d{8,}-\d+")
_HASH_BYTES = 4 << 20
_MANIFEST_LIMIT = 16_000_000

Progress = Callable[[int, int | None], None]  # Bytes read, bytes in all.


@dataclass(frozen=True, slots=True, kw_only=True)
class StateInfo:
    """A state found in a run folder; `reason` says what is wrong with it, "" where nothing is."""

    path: Path
    step: int
    bytes: int
    time: float
    """When it was written, Unix seconds."""
    reason: str = ""

    @property
    def is_intact(self) -> bool:
        """Whether it can be resumed from, as far as it was looked at."""
        return not self.reason


def state_name(step: int) -> str:
    """Return the folder name of the state after `step` optimizer steps."""
    return f"step-{step:08d}"


def list_states(run_folder: Path) -> tuple[StateInfo, ...]:
    """Return a run's states, newest first, looked at by manifest, sizes and headers: a matter of milliseconds.

    Whatever else lies there is passed over. `verify` reads a state whole.
    """
    folder = run_folder / FOLDER
    try:
        entries = [entry for entry in os.scandir(folder) if _NAME.fullmatch(entry.name)]
    except OSError:
        return ()
    found = [look_at(Path(entry.path)) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return tuple(sorted(found, key=lambda state: -state.step))


def look_at(path: Path) -> StateInfo:
    """Return what a state's manifest says, checked against the sizes of its files."""
    named = _NAME.fullmatch(path.name)
    step = int(named[1]) if named else 0
    try:
        manifest = _read_manifest(path)
        sizes = {name: entry["size"] for name, entry in manifest["files"].items()}
        told = int(manifest["step"]), float(manifest["time"])
    except (OSError, EngineError) as error:
        return StateInfo(path=path, step=step, bytes=0, time=0.0, reason=_reason(error))
    reason = next((reason for name, size in sizes.items() if (reason := _misfit(path / name, size))), "")
    if not reason and named and told[0] != step:
        reason = f"the folder was renamed: its manifest is of step {told[0]}"
    return StateInfo(path=path, step=told[0], bytes=sum(sizes.values()), time=told[1], reason=reason)


def verify(path: Path, progress: Progress | None = None) -> StateInfo:
    """Return the state as `look_at` does, with every byte of it read and compared with its SHA-256."""
    state = look_at(path)
    if not state.is_intact:
        return state
    files = _read_manifest(path)["files"]
    done = 0
    for name, entry in files.items():
        try:
            digest = _hash_of(path / name, lambda count, done=done: progress and progress(done + count, state.bytes))  # type: ignore[misc]
        except OSError as error:
            return _damaged(state, f"{name} can't be read ({error.strerror or error})")
        if digest != entry["sha256"]:
            return _damaged(state, f"{name} is damaged: its content is not what was written")
        done += entry["size"]
    return state


def newest_intact(
    states: Sequence[StateInfo], progress: Progress | None = None
) -> tuple[StateInfo | None, tuple[StateInfo, ...]]:
    """Return the newest state that is whole to the last byte, or None, and the damaged ones that are newer."""
    damaged: list[StateInfo] = []
    for state in states:
        checked = verify(state.path, progress)
        if checked.is_intact:
            return checked, tuple(damaged)
        damaged.append(checked)
    return None, tuple(damaged)


def read_json(path: Path, name: str = STATE_FILE) -> dict[str, Any]:
    """Return one of a state's JSON files.

    Raises:
        EngineError: It is not there or not JSON.
    """
    shown = safe_text(str(path / name))
    try:
        value = json.loads((path / name).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(f"{shown} can't be read ({safe_text(str(error))}); choose another state") from error
    if not isinstance(value, dict):
        raise EngineError(f"{shown} is not a table; choose another state")
    return value


def _damaged(state: StateInfo, reason: str) -> StateInfo:
    return StateInfo(path=state.path, step=state.step, bytes=state.bytes, time=state.time, reason=reason)


def _reason(error: OSError | EngineError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{MANIFEST} is missing: it was not written to its end"
    return str(error) if isinstance(error, EngineError) else f"{MANIFEST} can't be read ({error.strerror or error})"


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return a manifest whose parts have the right types and whose names stay in the folder.

    Raises:
        EngineError: It is damaged, or of a newer format.
    """
    with (path / MANIFEST).open("rb") as file:
        data = file.read(_MANIFEST_LIMIT)
    try:
        manifest = json.loads(data)
        version, files = manifest["format"], manifest["files"]
        sound = all(
            isinstance(entry["size"], int) and isinstance(entry["sha256"], str) and Path(name).name == name
            for name, entry in files.items()
        )
        sound = sound and isinstance(manifest["step"], int) and isinstance(manifest["time"], int | float)
        digest = manifest.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EngineError(f"{MANIFEST} is damaged") from error
    if version != FORMAT:
        raise EngineError(f"{MANIFEST} has format {safe_text(str(version))}; this version reads format {FORMAT}")
    # Compared as bytes: a number has more than one spelling, and one that flipped is no longer what was written.
    if not sound or digest != _digest_of(manifest) or data != _manifest_bytes(manifest):
        raise EngineError(f"{MANIFEST} is damaged")
    return dict(manifest)


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps({**manifest, "sha256": _digest_of(manifest)}, indent=1).encode("ascii")


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _misfit(path: Path, size: int) -> str:
    try:
        found = path.stat().st_size
    except OSError:
        return f"{path.name} is missing"
    return "" if found == size else f"{path.name} is damaged: it has {found} bytes instead of {size}"


def _hash_of(path: Path, progress: Callable[[int], object]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_HASH_BYTES):
            digest.update(data)
            progress(file.tell())
    return digest.hexdigest()


@dataclass(slots=True)
class NewState:
    """A state that is being written: fill it by `add_json` and by files at `path` that are told to `add`."""

    path: Path
    files: dict[str, dict[str, object]]

    def add(self, name: str, sha256: str) -> None:
        """Take a file into the manifest; it is durable already."""
        self.files[name] = {"size": (self.path / name).stat().st_size, "sha256": sha256}

    def add_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write and take in a JSON file.

        Raises:
            EngineError: The disk refuses.
        """
        data = json.dumps(value, indent=1).encode("ascii")
        write_durably(self.path / name, data)
        self.add(name, hashlib.sha256(data).hexdigest())


@contextlib.contextmanager
def new_state(run_folder: Path, step: int, facts: Mapping[str, Any]) -> Iterator[NewState]:
    """Give a folder to fill, which becomes the state of `step` when the block ends well and vanishes when it does not.

    Args:
        run_folder: Where `state/` is or will be.
        step: Optimizer steps done.
        facts: What the manifest says besides the files.

    An intact state of the same step stays as it is; a damaged one makes room.

    Raises:
        NotWrittenError: The disk refuses; the states that were there are untouched.
    """
    folder = run_folder / FOLDER
    final = folder / state_name(step)
    partial = folder / f".tmp-{final.name}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        new = NewState(partial, {})
        yield new
        manifest = {"format": FORMAT, "step": step, "time": time.time(), "files": new.files, **facts}
        write_durably(partial / MANIFEST, _manifest_bytes(manifest))
        sync_folder(partial)
        if final.exists() and verify(final).is_intact:
            return
        if final.exists():
            final.rename(folder / f".bad-{final.name}-{os.getpid()}")
        partial.rename(final)
        sync_folder(folder)
    except OSError as error:
        raise refused(final, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file so that it survives a power cut.

    Raises:
        EngineError: The disk refuses.
    """
    with atomic_file(path, num_bytes=len(data)) as file:
        file.write(data)


def remove_replaced(run_folder: Path, *, up_to_step: int) -> tuple[str, ...]:
    """Remove the states of steps up to `up_to_step`, always leaving the newest two intact ones; return their names.

    A damaged state is no good one, and is left to look at. Only folders with a manifest of ours are touched.
    """
    states = [state for state in list_states(run_folder) if state.is_intact]
    removed = []
    for state in states[KEPT:]:
        if state.step > up_to_step:
            continue
        trash = state.path.with_name(f".trash-{state.path.name}-{os.getpid()}")
        with contextlib.suppress(OSError):  # It stays, which is no reason to end a training.
            state.path.rename(trash)
            removed.append(f"{FOLDER}/{state.path.name}")
            shutil.rmtree(trash, ignore_errors=True)
    return tuple(removed)


def clear_leftovers(run_folder: Path) -> tuple[str, ...]:
    """Remove what a killed engine left half written or half removed; call while the folder is locked."""
    folder = run_folder / FOLDER
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if _LEFTOVER.fullmatch(entry.name))
    except OSError:
        return ()
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)
    return tuple(names)

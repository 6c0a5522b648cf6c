"""Runs with states, what is left of them as hashes, and a machine that dies at any chosen call of the system."""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from engine.headless import run_engine
from engine.resume import resume_run
from engine.settings_io import load_run
from engine.states import list_states, verify
from tests.engine.run_support import Run, new_folder, pictures, tiny_model, write_run

STEPS = 12
EVERYTHING = {
    "max_train_steps": STEPS,
    "save_state": True,
    "save_every_n_steps": 4,
    "save_last_n_steps": 4,
    "use_ema": True,
    "gradient_accumulation_steps": 2,
    "lr_scheduler": "cosine",
    "noise_offset": 0.1,
    "subset": {
        "shuffle_caption": True,
        "flip_aug": True,
        "caption_dropout_rate": 0.3,
        "caption_tag_dropout_rate": 0.2,
    },
}
CALLS = ("open", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir")


class Killed(BaseException):
    """The process is dead: whatever it does from here on does not happen."""


def write(folder: Path, **values: object) -> Path:
    """Write a run.toml that uses all that a state has to hold."""
    return write_run(folder, **{"pictures": pictures(), "model": tiny_model(), **EVERYTHING, **values})


def train(path: Path, **choices: object) -> Run:
    """Train a run.toml in this process."""
    return Run(run_engine(load_run(path), **choices), path.parent / "out")


def go_on(folder: Path, *, listeners=(), **choices: object) -> Run:
    """Resume a run folder in this process."""
    loaded, resume = resume_run(folder, **choices)
    return Run(run_engine(loaded, listeners=listeners, resume=resume), folder)


def hashes(folder: Path, step: int = STEPS) -> dict[str, str]:
    """Return the SHA-256 of all that a state holds of a run's numbers: weights, average, optimizer, losses."""
    state = folder / "state" / f"step-{step:08d}"
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in state.glob("*.safetensors")}


def good_states(folder: Path) -> list[int]:
    """Return the steps of the states that are whole to the last byte."""
    return [state.step for state in list_states(folder) if verify(state.path).is_intact]


class StopAt:
    """A listener that stops a run after a step, as a kill between two steps would leave it: nothing more is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def emit(self, event) -> None:
        if event.kind == "step" and event.step == self.step:
            raise Killed

    def close(self) -> None:
        pass


@contextlib.contextmanager
def dying(monkeypatch, *, under: Path, at: int | None, error: OSError | None = None):
    """Let the process die at the n-th call (from 0) that changes something under a folder; None counts and lives.

    From then on every such call fails, so that nothing is cleaned up. Files are opened through `os` here, and each
    write of them is a call too. With an `error` it does not die: that one call is refused.
    """
    count, dead = 0, False
    calls: list[tuple[str, str]] = []

    def touch(name, path) -> None:
        nonlocal count, dead
        shown = os.fspath(path) if not isinstance(path, int) else str(Path(f"/proc/self/fd/{path}").readlink())
        if not str(shown).startswith(str(under)):
            return
        if dead:
            raise Killed
        if count == at:
            count += 1
            if error is not None:
                raise error
            dead = True
            raise Killed
        count += 1
        calls.append((name, str(shown)))

    def wrap(name, real):
        def wrapper(path, *arguments, **named):
            is_reading = name == "open" and not (arguments and arguments[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if not is_reading:
                touch(name, path)
            return real(path, *arguments, **named)

        return wrapper

    class Writes:
        """A file whose writes are calls."""

        def __init__(self, file) -> None:
            self._file = file

        def write(self, data):
            touch("write", self._file.fileno())
            return self._file.write(data)

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

    real_fdopen = os.fdopen
    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, wrap(name, getattr(os, name)))
        patch.setattr(os, "fdopen", lambda *a, **k: Writes(real_fdopen(*a, **k)))
        yield calls


def copy_run(folder: Path) -> Path:
    """Copy a run folder with its caches to a place from which its relative paths hold, and return the copy."""
    return shutil.copytree(folder.parent, new_folder(), dirs_exist_ok=True) / folder.name

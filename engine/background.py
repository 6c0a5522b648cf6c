"""Training in a process of its own, which outlives the one that started it and its terminal. Torch-free.

The new process shows its preparation on the terminal it was started from. Once the first step is about to begin it
says so on its stdout and from then on writes to the run's log.txt; what started it may then end.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.control import detach
from engine.errors import EngineError
from engine.events import Event, Progress
from engine.run import RunFolder
from engine.settings_io import LoadedSettings

READY = b"ready"


def start_in_background(run: Path, overrides: Sequence[str] = ()) -> int:
    """Start a run and return its process id; see `start_verb_in_background`."""
    return start_verb_in_background(["train", str(run), *(w for override in overrides for w in ("--set", override))])


def start_verb_in_background(words: Sequence[str]) -> int:
    """Start a verb that trains and return its process id once the encoding or the training has begun.

    Raises:
        EngineError: It ended before; why is on stderr.
    """
    command = [sys.executable, "-P", "-m", "engine", *words, "--announce"]
    # Apart from this one's terminal and signals; Windows takes the flags, other systems the session.
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
    assert process.stdout is not None
    with process.stdout as said:
        try:
            if any(READY in line for line in said):
                return process.pid
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    process.wait()
    raise EngineError("the run was not started in the background")


def train_announced(loaded: LoadedSettings) -> int:
    """Train as the process that `start_in_background` waits for."""
    from engine.headless import train_headless

    return train_headless(loaded, [Announcer(loaded)], keeps_log=True)


class Announcer:
    """Says on stdout that the run is under way, and leaves the terminal."""

    def __init__(self, loaded: LoadedSettings) -> None:
        self._log = RunFolder(Path(loaded.settings.saving.output_dir)).log_path
        self._is_waiting = True

    def emit(self, event: Event) -> None:
        """Look for the first event after the model is loaded."""
        is_encoding = isinstance(event, Progress) and event.stage in ("latents", "text")
        if self._is_waiting and (is_encoding or event.kind == "started"):
            self._is_waiting = False
            os.write(1, READY + b"\n")  # sys.stdout is log.txt by now.
            detach(self._log)

    def close(self) -> None:
        """Nothing is held open."""

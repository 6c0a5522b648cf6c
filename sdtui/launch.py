"""Starts a training in a session of its own, so that nothing that happens to this process reaches it."""

import os
import subprocess
import sys
from pathlib import Path

from engine.errors import EngineError


def start_background(run_toml: Path, log: Path) -> int:
    """Start `train` on a run.toml and return the process id; what it prints goes to `log` until its own log is there.

    Raises:
        EngineError: The process can't be started.
    """
    flags = {"start_new_session": True} if os.name == "posix" else {"creationflags": 0x00000008 | 0x00000200}
    command = [sys.executable, "-P", "-m", "engine", "train", str(run_toml)]
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, close_fds=True, **flags
            )
    except OSError as error:
        raise EngineError(f"the training can't be started: {error.strerror or error}") from error
    return process.pid

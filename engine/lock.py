"""The lock of a run folder: one engine in it, freed by the operating system when the process dies. Torch-free.

The file says who owns the folder: the process and, so that no computer's name lies in a run folder, a salted hash of
the host. Locks do not reach other computers on every network disk, and some disks know none: what the file says then
decides, and an owner that can't be asked is never taken for dead.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from engine.errors import EngineError, safe_text

Outcome = Literal["ours", "taken", "unknown"]
_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who wrote the lock file; `born` is when its process began, in Unix seconds, since numbers are given again."""

    pid: int
    is_here: bool
    born: float

    @property
    def shown(self) -> str:
        """The process in words."""
        return f"process {self.pid} on {'this' if self.is_here else 'another'} computer"

    @property
    def is_alive(self) -> bool:
        """Whether its process runs; one on another computer may."""
        if not self.is_here:
            return True
        import psutil  # Late: the first screen looks at no lock's owner.

        with contextlib.suppress(psutil.Error):
            return abs(psutil.Process(self.pid).create_time() - self.born) < 2
        return False


@contextlib.contextmanager
def held(path: Path) -> Iterator[str]:
    """Own the lock file while the block runs; yields a notice where the disk knows no locks, else "".

    Raises:
        EngineError: Another engine owns it, or one on another computer left it.
    """
    shown = safe_text(str(path.parent))
    with path.open("a+b") as file:
        outcome, owner = _try_patiently(file), owner_of(path)
        is_left = outcome == "ours" and owner is not None and not owner.is_here
        if is_left or (outcome == "unknown" and owner is not None and owner.is_alive and not owner.is_here):
            assert owner is not None
            if outcome == "ours":
                unlock(file)
            raise EngineError(
                f"{shown}: {owner.shown} has locked this folder, and from here nobody can tell whether it still "
                f"runs: if it does not, delete {safe_text(str(path))} and start again"
            )
        if outcome == "taken" or (outcome == "unknown" and owner is not None and owner.is_alive):
            by = f" ({owner.shown})" if owner else ""
            raise EngineError(f"{shown}: an engine is already running in this folder{by}; choose another output_dir")
        _write_owner(file)
        try:
            yield "" if outcome == "ours" else f"{shown}: this disk knows no locks; start no second engine in it"
        finally:
            with contextlib.suppress(OSError):  # A disk that is gone has dropped the lock with it.
                file.truncate(0)
                if outcome == "ours":
                    unlock(file)


def is_held(path: Path) -> bool:
    """Tell whether an engine owns the lock file now."""
    try:
        with path.open("r+b") as file:
            outcome = try_lock(file)
            if outcome == "ours":
                unlock(file)
    except OSError:
        return False
    owner = owner_of(path) if outcome == "unknown" else None
    return outcome == "taken" or (owner is not None and owner.is_alive)


def owner_of(path: Path) -> Owner | None:
    """Return who wrote the lock file, None where it is empty or not readable."""
    try:
        record: dict[str, Any] = json.loads(path.read_bytes()[:4096])
        is_here = record["host"] == _host_id(record["salt"])
        return Owner(pid=int(record["pid"]), is_here=is_here, born=float(record["born"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_owner(file: IO[bytes]) -> None:
    import psutil

    salt = secrets.token_hex(8)
    born = psutil.Process().create_time()
    record = {"pid": os.getpid(), "host": _host_id(salt), "salt": salt, "born": born, "started": time.time()}
    file.truncate(0)
    file.write(json.dumps(record).encode("ascii"))
    file.flush()


def _host_id(salt: str) -> str:
    return hashlib.blake2b(f"{salt}\x1f{platform.node()}".encode(), digest_size=8).hexdigest()


def _try_patiently(file: IO[bytes]) -> Outcome:
    """Try four times: a viewer that asks `is_held` holds the lock for an instant."""
    for _ in range(4):
        outcome = try_lock(file)
        if outcome != "taken":
            return outcome
        time.sleep(0.05)
    return "taken"


def _refusal(error: OSError) -> Outcome:
    """Tell a lock that is held from a disk that knows none (NFS without lockd, FAT on some systems, FUSE)."""
    return "taken" if error.errno in _HELD else "unknown"


if sys.platform == "win32":
    import msvcrt

    def try_lock(file: IO[bytes]) -> Outcome:
        """Take the lock: a byte far beyond the text, so that others can still read who owns the folder."""
        try:
            file.seek(1 << 20)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            return _refusal(error)
        return "ours"

    def unlock(file: IO[bytes]) -> None:
        """Give the lock back."""
        file.seek(1 << 20)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def try_lock(file: IO[bytes]) -> Outcome:
        """Take the lock, which ends with the process."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return _refusal(error)
        return "ours"

    def unlock(file: IO[bytes]) -> None:
        """Give the lock back."""
        fcntl.flock(file, fcntl.LOCK_UN)

"""Room on disk: asked before a run starts, and a disk's refusal turned into one sentence. Torch-free."""

import contextlib
import errno
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.errors import EngineError, Problem, safe_text

_GONE = ("its folder is gone (unmounted, moved or deleted)", "bring it back")
_CAUSES = {
    name: words
    for names, words in (
        (("ENOSPC",), ("the disk is full", "make room there")),
        (("EDQUOT",), ("your quota there is used up", "make room there or ask for more")),
        (("EFBIG",), ("the file is larger than this disk or `ulimit -f` allows", "raise the limit")),
        (("EROFS",), ("the disk is read-only", "make it writable")),
        (("EIO", "EREMOTEIO"), ("the disk reports an input/output error", "check this disk")),
        (("EACCES", "EPERM"), ("you may not write there", "change its permissions")),
        (("ENOENT", "ENOTDIR", "ENODEV", "ENXIO", "ENOTCONN", "ESTALE", "EHOSTDOWN", "ETIMEDOUT"), _GONE),
    )
    for name in names
}
# How libraries word a refusal when they drop its number: torch.save, safetensors' Rust, SQLite.
_DISGUISES = {
    "unexpected pos": errno.ENOSPC,
    "PytorchStreamWriter failed": errno.ENOSPC,
    "No space left": errno.ENOSPC,
    "os error 28": errno.ENOSPC,
    "database or disk is full": errno.ENOSPC,
    "File too large": errno.EFBIG,
    "Disk quota exceeded": getattr(errno, "EDQUOT", errno.ENOSPC),
    "Read-only file system": errno.EROFS,
    "readonly database": errno.EROFS,
    "disk I/O error": errno.EIO,
}


class NotWrittenError(EngineError):
    """A file that the disk refuses, for a reason that may pass: whoever writes warns, goes on, and tries again."""


def as_disk_error(error: BaseException) -> OSError | None:
    """Return the OSError that an error is, or that a library has hidden in it; None where it is no disk's refusal."""
    if isinstance(error, OSError):
        return error
    is_library = isinstance(error, RuntimeError | sqlite3.Error) or type(error).__name__ == "SafetensorError"
    if not is_library:
        return None
    text = str(error)
    return next((OSError(code, os.strerror(code)) for words, code in _DISGUISES.items() if words in text), None)


def refused(path: Path, error: BaseException, *, num_bytes: int = 0) -> NotWrittenError:
    """Return a disk's refusal as a sentence: the path, the cause, bytes needed and free, the remedy."""
    found = as_disk_error(error) or OSError(str(error))
    name = errno.errorcode.get(found.errno or 0, "")
    cause, remedy = _CAUSES.get(name, (safe_text(found.strerror or str(found)), "look at that folder"))
    free = free_bytes(path)
    counts = [f"needs {_size(num_bytes)}"] if num_bytes else []
    counts += [f"{_size(free)} are free there"] if free is not None and (num_bytes or name == "ENOSPC") else []
    room = f" ({', '.join(counts)})" if counts else ""
    return NotWrittenError(f"{safe_text(str(path))} can't be written: {cause}{room}; {remedy} or choose another folder")


@contextlib.contextmanager
def writing(path: Path, *, num_bytes: int = 0) -> Iterator[None]:
    """Turn what a disk refuses in the block into a sentence.

    Raises:
        NotWrittenError: It refuses; any other error passes as it is.
    """
    try:
        yield
    except (OSError, RuntimeError, sqlite3.Error) as error:
        if as_disk_error(error) is None:
            raise
        raise refused(path, error, num_bytes=num_bytes) from error


def free_bytes(path: Path) -> int | None:
    """Return the bytes free where a path is or will be, None where that can't be asked."""
    existing = next((folder for folder in (path, *path.absolute().parents) if folder.exists()), None)
    with contextlib.suppress(OSError):
        return None if existing is None else shutil.disk_usage(existing).free
    return None


def _size(num_bytes: int) -> str:
    """Show bytes to the megabyte, and few of them to the byte."""
    return f"{num_bytes / 1e6:,.0f} MB" if num_bytes >= 10_000_000 else f"{num_bytes:,} bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a run will write to one place: without `least_bytes` it can't go on, `most_bytes` may come together."""

    what: str
    path: Path
    least_bytes: int
    most_bytes: int


def find_space_problems(needs: Iterable[Need]) -> tuple[Problem, ...]:
    """Return an error for each disk that can't hold the least of what goes there, a warning where the most won't fit.

    Needs of one disk are added up; a disk that can't be asked is passed over.
    """
    disks: dict[int, list[Need]] = {}
    for need in needs:
        if need.most_bytes:
            disks.setdefault(_disk_of(need.path), []).append(need)
    return tuple(problem for together in disks.values() if (problem := _find_problem(together)) is not None)


def _find_problem(needs: list[Need]) -> Problem | None:
    free = free_bytes(needs[0].path)
    least, most = (sum(getattr(need, name) for need in needs) for name in ("least_bytes", "most_bytes"))
    if free is None or free >= most:
        return None
    is_short = free < least
    words = " and ".join(need.what for need in needs)
    verb = "need" if is_short else "may take up to"
    return Problem(
        code="space" if is_short else "space-tight",
        severity="error" if is_short else "warning",
        where=safe_text(str(needs[0].path)),
        message=f"{words} {verb} {_size(least if is_short else most)}, but the disk has {_size(free)} free",
        fix="make room there, keep fewer models or choose another folder",
    )


def _disk_of(path: Path) -> int:
    existing = next((folder for folder in (path, *path.absolute().parents) if folder.exists()), None)
    with contextlib.suppress(OSError):
        return 0 if existing is None else existing.stat().st_dev
    return 0

"""Files and folders that appear under their name whole or not at all. Torch-free."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from engine.space import refused


@contextlib.contextmanager
def atomic_file(path: Path, *, num_bytes: int = 0) -> Iterator[BinaryIO]:
    """Open a new file that takes `path`'s place when the block ends well, and leaves no trace when it does not.

    `num_bytes` is what it will take, for the message when the disk is full.

    Raises:
        NotWrittenError: The disk refuses it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # os.open rather than tempfile: the file gets the umask's permissions, as any other program's output does.
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(partial, flags, 0o666), "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise refused(path, error, num_bytes=num_bytes) from error
    finally:
        with contextlib.suppress(OSError):  # On a disk that is gone or read-only nothing can be removed either.
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a new folder to fill, which takes `path`'s place when the block ends well.

    Raises:
        NotWrittenError: The disk refuses it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for folder in [partial, *(entry for entry in partial.rglob("*") if entry.is_dir())]:
            sync_folder(folder)
        if path.exists():
            path.rename(replaced)
        partial.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        raise refused(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable; Windows and some network file systems can't, and need not."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

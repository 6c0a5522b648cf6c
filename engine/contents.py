"""Which content a file had when it was last read, so that a run need not read every picture again to name it.

A file counts as unchanged while its size and modification time are. Torch-free.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from engine.space import refused

Signature = tuple[int, int]  # Size in bytes, modification time in nanoseconds.

_TABLE = (
    "CREATE TABLE IF NOT EXISTS contents "
    "(path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, content TEXT) WITHOUT ROWID"
)
_PATIENCE_SECONDS = 30  # Another run may be writing.


class Contents:
    """A table of file contents, in an SQLite file or, where that is None, in memory."""

    def __init__(self, file: Path | None) -> None:
        self.refusal = ""
        """Why the file takes nothing and the table is kept in memory, "" while it takes it."""
        self._kept: dict[bytes, tuple[int, int, str]] = {}
        try:
            self._connection = _open(file)
        except (OSError, sqlite3.Error) as error:
            assert file is not None
            self.refusal = str(refused(file, error))
            self._connection = _connect(":memory:")

    def known(self, paths: Sequence[Path]) -> list[tuple[Signature | None, str | None]]:
        """Return each file's signature (None if it is missing) and its content hash (None if it must be read)."""
        found = []
        for path in paths:
            signature = signature_of(path)
            row = self._row(path)
            found.append((signature, row[2] if row is not None and row[:2] == signature else None))
        return found

    def _row(self, path: Path) -> tuple[int, int, str] | None:
        kept = self._kept.get(_name(path))
        if kept is not None:
            return kept
        question = "SELECT size, mtime_ns, content FROM contents WHERE path = ?"
        with contextlib.suppress(sqlite3.Error):
            row: tuple[int, int, str] | None = self._connection.execute(question, (_name(path),)).fetchone()
            return row
        return None

    def remember(self, entries: Iterable[tuple[Path, Signature | None, str]]) -> None:
        """Keep the content hash of files; the signature is the one from before they were read."""
        rows = [(_name(path), *signature, content) for path, signature, content in entries if signature is not None]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?)", rows)
        except sqlite3.Error:  # A table that can't be written costs a later run time; this one goes on from memory.
            self._kept |= {name: (size, modified, content) for name, size, modified, content in rows}

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def signature_of(path: Path) -> Signature | None:
    """Return what changes when a file is written to, None where it can't be asked."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _name(path: Path) -> bytes:
    return os.fsencode(os.path.abspath(path))  # noqa: PTH100 - Path.absolute leaves ".." in.


def _open(file: Path | None) -> sqlite3.Connection:
    if file is None:
        return _connect(":memory:")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _connect(file)
    except sqlite3.OperationalError:
        raise  # Locked or out of reach, but sound.
    except sqlite3.DatabaseError:
        file.unlink()  # Damaged; it holds nothing that can't be found out again.
        return _connect(file)


def _connect(file: Path | str) -> sqlite3.Connection:
    connection = sqlite3.connect(file, timeout=_PATIENCE_SECONDS)
    try:
        connection.execute("PRAGMA synchronous = OFF")  # Written often; what power loss spoils is read anew.
        connection.execute(_TABLE)
    except sqlite3.Error:
        connection.close()
        raise
    return connection

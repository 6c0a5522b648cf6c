"""The scan index: what was read from pictures and captions, kept so that a rescan only looks at times and sizes.

One SQLite file in the cache folder; each row holds a portion of a folder as columns in JSON, which is read and written
five times as fast as a row for each picture. Several programs may use it; losing it costs one full scan. Torch-free.
"""

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Self

from engine.dataset.examine import Portion, portion_from
from engine.errors import safe_text

FILE_NAME = "index.sqlite"
_VERSION = 3  # Count up whenever what is read from a file, or how it is kept, changes.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS portion (
  folder BLOB, kind TEXT, number INTEGER, columns TEXT, PRIMARY KEY (folder, kind, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS content (
  path BLOB PRIMARY KEY, modified INTEGER, size INTEGER, hash TEXT
) WITHOUT ROWID;
"""


class Index:
    """The index of a cache folder; where it can't be used, it forgets and `notice` says why."""

    def __init__(self, cache_dir: Path) -> None:
        self.notice = ""
        self._path = cache_dir / FILE_NAME
        self._database = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Keep what was put and close the file."""
        try:
            self._database.commit()
        except sqlite3.Error as error:
            self._give_up(error)
        self._database.close()

    def portions(self, folder: str, kind: str, check: Callable[[], None] = lambda: None) -> list[Portion]:
        """Return what is kept of a folder; `kind` tells apart different ways to caption its pictures.

        `check` is called between portions, and what it raises is passed on.
        """
        query = "SELECT columns FROM portion WHERE folder = ? AND kind = ? ORDER BY number"
        try:
            rows = self._database.execute(query, (os.fsencode(folder), kind)).fetchall()
            portions = []
            for (text,) in rows:
                check()
                portions.append(portion_from(json.loads(text)))
        except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
            self._give_up(error)
            return []
        return portions

    def put(self, folder: str, kind: str, portions: Iterable[tuple[int, str]], *, count: int) -> None:
        """Keep the numbered portions (as JSON) that changed, of a folder that now has `count` portions."""
        key = os.fsencode(folder)
        rows = [(key, kind, number, text) for number, text in portions]
        try:
            with self._database:
                self._database.execute(
                    "DELETE FROM portion WHERE folder = ? AND kind = ? AND number >= ?", (key, kind, count)
                )
                self._database.executemany("INSERT OR REPLACE INTO portion VALUES (?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def hashes(
        self,
        paths: Sequence[str],
        modified: Sequence[int],
        sizes: Sequence[int],
        check: Callable[[], None] = lambda: None,
    ) -> list[str]:
        """Return the content hash of each picture, "" where it is not known for the file's time and size.

        `check` is called every thousand rows, and what it raises is passed on.
        """
        known: dict[tuple[bytes, int, int], str] = {}
        try:
            rows = self._database.execute("SELECT path, modified, size, hash FROM content")
            while part := rows.fetchmany(1000):
                check()
                known.update(((path, time, size), digest) for path, time, size, digest in part)
        except sqlite3.Error as error:
            self._give_up(error)
            known = {}  # What a damaged file told before it failed is not to be trusted.
        keys = zip(map(os.fsencode, paths), modified, sizes, strict=True)
        return [known.get((path, int(time), int(size)), "") for path, time, size in keys]

    def remember_hashes(self, rows: Iterable[tuple[str, int, int, str]]) -> None:
        """Keep content hashes found while decoding: (path, time in ns, size in bytes, hash)."""
        encoded = [(os.fsencode(path), int(time), int(size), digest) for path, time, size, digest in rows]
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO content VALUES (?, ?, ?, ?)", encoded)
        except sqlite3.Error as error:
            self._give_up(error)

    def _open(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return _connect(self._path)
        except sqlite3.OperationalError as error:  # Locked, read-only or full: the file itself may be sound.
            return self._in_memory(error)
        except sqlite3.DatabaseError as error:
            return self._rebuild(error)
        except OSError as error:
            return self._in_memory(error)

    def _rebuild(self, error: Exception) -> sqlite3.Connection:
        self._note("was damaged and is built anew", error)
        try:
            for suffix in ("", "-wal", "-shm", "-journal"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            return _connect(self._path)
        except (OSError, sqlite3.Error) as second:
            return self._in_memory(second)

    def _in_memory(self, error: Exception) -> sqlite3.Connection:
        self._note("can't be used, so every scan reads all headers", error)
        return _connect(":memory:")

    def _give_up(self, error: Exception) -> None:
        """Go on without the file; a damaged one is removed, so that the next scan builds it anew."""
        is_damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        with closing(self._database):
            pass
        if is_damaged or not isinstance(error, sqlite3.Error):
            self._database = self._rebuild(error)
        else:
            self._database = self._in_memory(error)

    def _note(self, what: str, error: Exception) -> None:
        self.notice = f"the scan index {safe_text(str(self._path))} {what} ({safe_text(str(error))})"


def _connect(path: Path | str) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=10)
    try:
        # A write-ahead log survives a killed process and lets others read meanwhile; on file systems without shared
        # memory SQLite stays with its older journal by itself.
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        if database.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            database.executescript("DROP TABLE IF EXISTS portion; DROP TABLE IF EXISTS content;")
            database.execute(f"PRAGMA user_version = {_VERSION}")
        database.executescript(_SCHEMA)
    except sqlite3.Error:
        database.close()
        raise
    return database

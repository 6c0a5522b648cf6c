"""What captioning has changed, with the bytes before each change: the way back, and where to go on. Torch-free.

One file of JSON lines for each change of a data set, in the user's cache folder: a header, then for every file written
`{"path", "before", "after"}`, `before` being the old bytes (deflated, base64; null where there was no file) and `after`
the hash of the new ones. A line is on the disk before its file is replaced, so a process that is killed loses nothing:
what the journal names is either done (the file has the hash) or still as before.
"""

import base64
import contextlib
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from engine.errors import EngineError, safe_text
from engine.run import cache_dir

_SUFFIX, _UNDONE, _PARTIAL = ".jsonl", ".undone", ".sdtui.tmp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One file to be written: its bytes before (None: there is none) and after (None: it is to be removed)."""

    path: Path
    before: bytes | None
    after: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """What an undo did: files put back, and files left alone because they were changed since."""

    label: str
    restored: tuple[Path, ...]
    kept: tuple[Path, ...]


def journal_folder(root: Path) -> Path:
    """Return where the changes of a data set are kept: by the folder's path."""
    name = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=8).hexdigest()
    return cache_dir() / "captioning" / name


class Journal:
    """The changes that one command makes to a data set."""

    def __init__(self, root: Path, label: str, *, identity: str = "", model: str = "") -> None:
        """Begin a change, or go on with an interrupted one of the same `identity`.

        `identity` says what is being done with which options; empty begins anew. `model` is noted.
        """
        self.root = root
        self.label = label
        self.done: dict[str, dict[str, Any]] = {}
        """Files that the interrupted change has seen to, by path."""
        self.notes: dict[str, dict[str, Any]] = {}
        """What the interrupted change has noted, by key."""
        folder = journal_folder(root)
        self._file = (_interrupted(folder, identity) if identity else None) or _new_file(folder)
        if self._file.exists():
            rows = list(_rows(self._file))
            self.done = {row["path"]: row for row in rows if "path" in row}
            self.notes = {row["key"]: row for row in rows if "key" in row}
            _drop_torn_line(self._file)
            _drop_partial_files({Path(path).parent for path in self.done})
        header = {"label": label, "root": str(root), "identity": identity, "model": model, "time": time.time()}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._file.open("a", encoding="utf-8")
        except OSError as error:
            raise EngineError(_cannot(self._file, error)) from error
        if not self.done and not self.notes:
            self._append([header])

    @property
    def path(self) -> Path:
        """The journal's own file."""
        return self._file

    def apply(self, changes: Sequence[Change], notes: Sequence[Mapping[str, Any]] = ()) -> None:
        """Write files, each whole or not at all, after noting what they were; `notes` are kept beside them.

        Raises:
            EngineError: The disk is full or a file can't be written; what was written stays undoable.
        """
        self._append([*map(_row, changes), *notes])
        for change in changes:
            _replace(change.path, change.after)

    def close(self, *, is_finished: bool) -> None:
        """End the change; an unfinished one is gone on with by the next of the same identity."""
        if is_finished:
            self._append([{"finished": True}])
        self._stream.close()

    def _append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        try:
            self._stream.write("".join(json.dumps(row) + "\n" for row in rows))
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise EngineError(_cannot(self._file, error)) from error


def commit(root: Path, label: str, changes: Sequence[Change]) -> None:
    """Make one change that ends at once: a single edit, a merge, a cleaning.

    Raises:
        EngineError: A file can't be written.
    """
    changes = [change for change in changes if change.before != change.after]
    if changes:
        journal = Journal(root, label)
        try:
            journal.apply(changes)
        finally:
            journal.close(is_finished=True)


def is_done(row: Mapping[str, Any]) -> bool:
    """Tell whether what a journal's line announces has come about, judged by the file itself."""
    return bool(_hash(_current(_path(row))) == row["after"])


def undo(root: Path, *, is_forced: bool = False) -> Undone:
    """Take back the newest change of a data set, byte for byte.

    A file that was edited since is left alone, unless `is_forced`.

    Raises:
        EngineError: There is nothing to undo, or a file can't be written.
    """
    for file in reversed(_files(journal_folder(root))):
        rows = list(_rows(file))
        changes = [row for row in rows if "path" in row]
        if changes:
            return _undo(file, str(rows[0].get("label", "")), changes, is_forced=is_forced)
    raise EngineError(f"{safe_text(str(root))}: nothing that was captioned, tagged or edited here is left to undo")


def _undo(file: Path, label: str, changes: Sequence[Mapping[str, Any]], *, is_forced: bool) -> Undone:
    restored, kept = [], []
    for row in reversed(changes):
        path, before = _path(row), _before(row)
        current = _current(path)
        if current == before:
            continue
        if _hash(current) != row["after"] and not is_forced:
            kept.append(path)
            continue
        _replace(path, before)
        restored.append(path)
    file.replace(file.with_suffix(_UNDONE))
    return Undone(label=label, restored=tuple(restored), kept=tuple(kept))


def _interrupted(folder: Path, identity: str) -> Path | None:
    """Return the newest change, if it is this very one and did not end."""
    for file in reversed(_files(folder)):
        rows = list(_rows(file))
        is_open = not any("finished" in row for row in rows)
        return file if rows and is_open and rows[0].get("identity") == identity else None
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{_SUFFIX}")) if folder.is_dir() else []


def _new_file(folder: Path) -> Path:
    return folder / f"{time.time_ns():020}{_SUFFIX}"


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines; a torn last one, from a process that was killed, announced nothing."""
    with file.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    yield row


def _drop_torn_line(file: Path) -> None:
    with file.open("rb+") as stream:
        raw = stream.read()
        stream.truncate(raw.rfind(b"\n") + 1)


def _drop_partial_files(folders: Iterable[Path]) -> None:
    """Remove what a killed process was writing when it ended."""
    for folder in folders:
        for partial in folder.glob(f".*{_PARTIAL}"):
            owner = partial.name.removesuffix(_PARTIAL).removeprefix(".")
            if owner.isdecimal() and not psutil.pid_exists(int(owner)):
                partial.unlink(missing_ok=True)


def _row(change: Change) -> dict[str, Any]:
    before = None if change.before is None else base64.b64encode(zlib.compress(change.before)).decode()
    # surrogateescape keeps names that are not UTF-8; JSON writes them as escapes.
    return {"path": os.fspath(change.path), "before": before, "after": _hash(change.after)}


def _path(row: Mapping[str, Any]) -> Path:
    return Path(row["path"])


def _before(row: Mapping[str, Any]) -> bytes | None:
    return None if row["before"] is None else zlib.decompress(base64.b64decode(row["before"]))


def _current(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EngineError(f"{safe_text(str(path))}: can't be read ({error.strerror or error})") from error


def _hash(data: bytes | None) -> str | None:
    return None if data is None else hashlib.blake2b(data, digest_size=16).hexdigest()


def _replace(path: Path, data: bytes | None) -> None:
    """Put bytes in a file's place at once. The rename alone is atomic; the journal, not fsync, covers power loss."""
    target = path.resolve() if path.is_symlink() else path
    partial = target.with_name(f".{os.getpid()}{_PARTIAL}")  # Short: the picture's name may fill 255 bytes.
    try:
        if data is None:
            target.unlink(missing_ok=True)
            return
        partial.write_bytes(data)
        if target.exists():
            partial.chmod(target.stat().st_mode & 0o777)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise EngineError(_cannot(path, error)) from error


def _cannot(path: Path, error: OSError) -> str:
    return (
        f"{safe_text(str(path))}: can't be written ({error.strerror or error}); free space or permissions, then repeat"
    )

"""The texts of a data set, read and changed: caption files beside the pictures, or one metadata file. Torch-free."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

from engine.captioning.journal import Change
from engine.captioning.metadata import Metadata, TextField, dump
from engine.captioning.tags import split_tags
from engine.captioning.textfile import NEW_FILE, decode, read_bytes
from engine.dataset.findings import Findings
from engine.dataset.walk import walk
from engine.errors import EngineError, Problem, safe_text

Mode = Literal["replace", "append", "prepend", "skip"]


class Texts(Protocol):
    """Where texts are read from and written to; keys name pictures."""

    root: Path
    """What the journal of changes is kept for."""

    def keys(self) -> Sequence[str]:
        """Return the keys of all pictures, in order."""

    def read(self, key: str) -> str | None:
        """Return a picture's text, None where it has none.

        Raises:
            EngineError: The text can't be read; the message names file and byte.
        """

    def changes(self, texts: Mapping[str, str]) -> list[Change]:
        """Return the writes that give pictures these texts."""


def combine(old: str | None, new: str, mode: Mode, *, separator: str = ", ", is_tags: bool = False) -> str | None:
    """Return the text to write, None where nothing is to be written.

    "skip" leaves every text alone that is there; appended or prepended tags are only those not there yet.
    """
    if not old or not old.strip():
        return new
    if mode == "skip":
        return None
    if mode == "replace":
        return new if new != old else None
    old = old.strip()
    if is_tags:
        present = set(split_tags(old, separator.strip() or separator))
        new = separator.join(tag for tag in split_tags(new, separator.strip() or separator) if tag not in present)
    if not new:
        return None
    return f"{old}{separator}{new}" if mode == "append" else f"{new}{separator}{old}"


def diff(key: str, old: str | None, new: str) -> str:
    """Return a change as lines for a person: the key, what goes, what comes."""
    lines = [safe_text(key, limit=1000)]
    lines += [f"  - {safe_text(line, limit=1000)}" for line in (old or "").split("\n") if old]
    lines += [f"  + {safe_text(line, limit=1000)}" for line in new.split("\n")]
    return "\n".join(lines)


@dataclass(slots=True)
class FolderTexts:
    """Caption files beside the pictures of a folder; a key is a picture's path from there, with "/"."""

    root: Path
    extension: str = ".caption"
    recursive: bool = False
    problems: tuple[Problem, ...] = ()
    """What the folder holds that is left out."""
    _names: list[str] | None = None

    def __post_init__(self) -> None:
        """Check what would only fail later.

        Raises:
            EngineError: There is no such folder, or the extension is none.
        """
        check_extension(self.extension)
        if not self.root.is_dir():
            raise EngineError(f"{safe_text(str(self.root))}: no such folder of pictures; check the path")

    def keys(self) -> Sequence[str]:
        """Return the pictures."""
        if self._names is None:
            findings = Findings()
            root = os.path.abspath(self.root)  # noqa: PTH100 - walk counts in strings
            listings = walk(root, recursive=self.recursive, caption_suffixes=(self.extension,), findings=findings)
            self._names = [
                Path(listing.folder, name).relative_to(root).as_posix()
                for listing in listings
                for name in listing.names
            ]
            self.problems = findings.problems()
        return self._names

    def picture(self, key: str) -> Path:
        """Return the picture's file."""
        return self.root / key

    def file(self, key: str) -> Path:
        """Return the caption file of a picture, which need not exist."""
        return self.root / PurePosixPath(key).with_suffix(self.extension)

    def read(self, key: str) -> str | None:
        """Return the text beside a picture."""
        path = self.file(key)
        raw = read_bytes(path)
        return None if raw is None else decode(raw, str(path)).text

    def changes(self, texts: Mapping[str, str]) -> list[Change]:
        """Return a write for each picture, in the encoding that its file has; of one stem twice the last counts."""
        changes: dict[Path, Change] = {}
        for key, text in texts.items():
            path = self.file(key)
            before = read_bytes(path)
            changes[path] = Change(path=path, before=before, after=_bytes_like(before, path, text))
        return [change for change in changes.values() if change.before != change.after]


def check_extension(extension: str) -> None:
    """Refuse what is no file extension.

    Raises:
        EngineError: It has no dot in front, or would make the picture its own caption.
    """
    if not extension.startswith(".") or len(extension) < 2 or "/" in extension or "\\" in extension:
        raise EngineError(f"--caption_extension {safe_text(extension)}: expected an extension such as .txt or .caption")


def _bytes_like(before: bytes | None, path: Path, text: str) -> bytes:
    """Return the new bytes in the old file's encoding; one that can't be told becomes UTF-8, since it is replaced."""
    try:
        like = NEW_FILE if before is None else decode(before, str(path))
    except EngineError:
        like = NEW_FILE
    return like.with_text(text)


@dataclass(slots=True)
class MetadataTexts:
    """The captions or tags of a metadata file, .json or .jsonl."""

    root: Path
    """The file."""
    field: TextField = "tags"
    may_be_new: bool = False
    """A file that is not there yet is an empty one."""
    _data: Metadata | None = None

    @property
    def data(self) -> Metadata:
        """The file's entries."""
        if self._data is None:
            is_new = self.may_be_new and not self.root.exists()
            self._data = {} if is_new else load_metadata(self.root)
        return self._data

    def keys(self) -> Sequence[str]:
        """Return the keys."""
        return list(self.data)

    def read(self, key: str) -> str | None:
        """Return an entry's text."""
        text = self.data.get(key, {}).get(self.field)
        if text is not None and not isinstance(text, str):
            raise EngineError(f"{safe_text(str(self.root))}: {safe_text(key)}: {self.field} is no text")
        return text

    def changes(self, texts: Mapping[str, str], sizes: Mapping[str, Sequence[int]] | None = None) -> list[Change]:
        """Return the one write of the file; where a picture's width and height are given, they go with its text."""
        data = {key: dict(entry) for key, entry in self.data.items()}
        for key, text in texts.items():
            entry = data.setdefault(key, {})
            entry[self.field] = text
            if sizes and key in sizes:
                entry["image_size"] = list(sizes[key])
        return [metadata_change(self.root, data)]


def metadata_change(path: Path, data: Mapping[str, Mapping[str, Any]]) -> Change:
    """Return the write of a whole metadata file."""
    text = dump(data, is_lines=path.suffix.lower() == ".jsonl")
    return Change(path=path, before=_existing(path), after=text.encode())


def _existing(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EngineError(f"{safe_text(str(path))}: can't be read ({error.strerror or error})") from error


def load_metadata(path: Path) -> Metadata:
    """Read a metadata file with all members of its entries.

    Raises:
        EngineError: It can't be read, or is not metadata; the message names the line.
    """
    raw = _existing(path)
    shown = safe_text(str(path))
    if raw is None:
        raise EngineError(f"{shown}: no such metadata file; `data merge` writes one")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EngineError(f"{shown}: byte {error.start} is not UTF-8; save the file in UTF-8 encoding") from error
    return _from_lines(text, shown) if path.suffix.lower() == ".jsonl" else _checked(_parse(text, shown), shown)


def _parse(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise EngineError(f"{where}:{error.lineno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{where}: not valid JSON: {safe_text(str(error))}") from error


def _checked(data: object, shown: str) -> Metadata:
    if not isinstance(data, dict) or not all(isinstance(entry, dict) for entry in data.values()):
        raise EngineError(f'{shown}: expected an object such as {{"picture.png": {{"caption": "..."}}}}')
    return data


def _from_lines(text: str, shown: str) -> Metadata:
    data: Metadata = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = _parse(line, f"{shown}:{number}")
        key = row.pop("image_path", None) if isinstance(row, dict) else None
        if not isinstance(row, dict) or not isinstance(key, str):
            raise EngineError(f'{shown}:{number}: expected an object with "image_path"')
        data[key] = row
    return data


def open_texts(path: Path, *, field: TextField, extension: str, recursive: bool) -> FolderTexts | MetadataTexts:
    """Return the texts of a folder, or of a .json or .jsonl file.

    Raises:
        EngineError: It is neither.
    """
    if path.suffix.lower() in {".json", ".jsonl"} and not path.is_dir():
        return MetadataTexts(path, field)
    return FolderTexts(path, extension, recursive)


def read_all(texts: Texts, keys: Iterable[str]) -> tuple[dict[str, str | None], list[str]]:
    """Return the texts of many pictures, and a sentence for each that can't be read."""
    found: dict[str, str | None] = {}
    problems = []
    for key in keys:
        try:
            found[key] = texts.read(key)
        except EngineError as error:
            problems.append(str(error))
    return found, problems

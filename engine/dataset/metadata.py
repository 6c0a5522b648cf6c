"""sd-scripts' metadata files: pictures with captions and tags as one JSON object, or as JSONL. Torch-free."""

# Strings and os calls: making a Path of each name costs more than reading the file.
# ruff: noqa: PTH100, PTH113, PTH117, PTH118, PTH122, PTH208

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.dataset.captions import caption_text
from engine.dataset.findings import Findings
from engine.dataset.walk import PICTURE_SUFFIXES
from engine.errors import EngineError, safe_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A picture of a metadata file: its key as written, and the caption and tags it has there."""

    key: str
    caption: str | None = None
    tags: str | None = None

    def text(self, separator: str, *, enable_wildcard: bool) -> str:
        """Return caption and tags joined as sd-scripts does."""
        return caption_text(self.caption, self.tags, separator, enable_wildcard=enable_wildcard)


def read_metadata(path: Path, findings: Findings) -> list[Entry]:
    """Read a metadata file; entries that can't be used are added to `findings`.

    `train_resolution` and `image_size` are not read: sizes come from the pictures, after their orientation.

    Raises:
        EngineError: The file can't be read, is not UTF-8 or not JSON; the message names the line or byte.
    """
    text = _read_text(path)
    rows = _json_lines(text, path, findings) if path.suffix.lower() == ".jsonl" else _json_object(text, path)
    return list(_entries(rows, path, findings))


def _read_text(path: Path) -> str:
    shown = safe_text(str(path))
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise EngineError(f"{shown}: can't be read ({error.strerror or error})") from error
    if raw[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        raise EngineError(f"{shown}: byte 0 begins UTF-16; save the file in UTF-8 encoding")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"byte {error.start} is not UTF-8; save the file in UTF-8 encoding"
        raise EngineError(f"{shown}:{line}: {message}") from error


def _json_object(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    shown = safe_text(str(path))
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise EngineError(f"{shown}:{error.lineno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{shown}: not valid JSON: {safe_text(str(error))}") from error
    if not isinstance(data, dict):
        raise EngineError(f'{shown}: expected an object such as {{"picture.png": {{"caption": "..."}}}}')
    yield from data.items()


def _json_lines(text: str, path: Path, findings: Findings) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            findings.add("bad-metadata", where, f"not valid JSON: {safe_text(reason)}")
            continue
        key = row.get("image_path") if isinstance(row, dict) else None
        if isinstance(key, str) and key:
            yield key, row
        else:
            findings.add("bad-metadata", where, 'expected an object with "image_path"')


def _entries(rows: Iterator[tuple[str, Any]], path: Path, findings: Findings) -> Iterator[Entry]:
    for key, row in rows:
        caption, tags = (row.get("caption"), row.get("tags")) if isinstance(row, dict) else (0, 0)
        if (caption is None or isinstance(caption, str)) and (tags is None or isinstance(tags, str)):
            yield Entry(key=key, caption=caption, tags=tags)
        else:
            detail = f"{safe_text(key)}: expected an object whose caption and tags are text"
            findings.add("bad-metadata", str(path), detail)


def locate(entries: Sequence[Entry], image_dir: Path, findings: Findings) -> dict[str, Entry]:
    """Return the entries by the path of their picture; what has none, or leads out of `image_dir`, is a finding.

    A key is an absolute path, a path relative to `image_dir`, or such a path without extension.
    """
    root = os.path.abspath(image_dir)
    inside = os.path.join(root, "")
    listed: dict[str, dict[str, str]] = {}
    found: dict[str, Entry] = {}
    for entry in entries:
        path = os.path.normpath(os.path.join(root, entry.key))
        if not os.path.isabs(entry.key) and not path.startswith(inside):
            findings.add("outside-image-dir", entry.key, f"leads out of {safe_text(root)}")
            continue
        if not _is_picture_name(path) or not os.path.isfile(path):
            by_stem = _by_stem(path, listed)
            if by_stem is None:
                findings.add("missing-picture", entry.key, f"there is no {safe_text(path)}")
                continue
            findings.add("stem-key", entry.key, f"has no extension; {safe_text(by_stem)} is used")
            path = by_stem
        if path in found:
            findings.add("twice", path, "named twice; the first is used")
        found.setdefault(path, entry)
    return found


def _is_picture_name(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in PICTURE_SUFFIXES


def _by_stem(path: str, listed: dict[str, dict[str, str]]) -> str | None:
    """Return the picture that has the path as its stem; each folder is listed once."""
    folder, stem = os.path.split(path)
    if folder not in listed:
        try:
            names = sorted(os.listdir(folder), reverse=True)
        except OSError:
            names = []
        # Reversed, so that of a.jpg and a.png the first in the alphabet wins.
        listed[folder] = {os.path.splitext(name)[0]: name for name in names if _is_picture_name(name)}
    name = listed[folder].get(stem)
    return os.path.join(folder, name) if name else None

"""A portion of a folder's pictures examined: header and caption of each, read once and known again. Torch-free.

Everything is kept as columns rather than objects: a million pictures then cost neither the garbage collector nor the
index more than a few lists.
"""

# Strings and os calls: making a Path of each name costs more than reading the file.
# ruff: noqa: PTH116, PTH118

import gc
import json
import os
import stat
import sys
from array import array
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.dataset.findings import FindingKind
from engine.dataset.headers import OPEN_FLAGS, BadPictureError, read_header

MAX_CAPTION_BYTES = 65_536
_UNKNOWN = -1  # A time that no file has: what carries it is examined again.
_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "PNG": (".png", ".PNG"), "JPEG": (".jpg", ".jpeg", ".JPG", ".JPEG"), "MPO": (".jpg", ".jpeg", ".JPG", ".JPEG"),
    "WEBP": (".webp", ".WEBP"), "BMP": (".bmp", ".BMP"), "AVIF": (".avif", ".AVIF"), "JXL": (".jxl", ".JXL"),
}  # fmt: skip


@dataclass(slots=True, kw_only=True, eq=False)
class Portion:
    """What is known about some pictures of one folder; a column each, sizes upright, width 0 for a bad picture.

    `stamps` holds four numbers for each: time and size of the picture, time and size of its caption file.
    `notes` holds (name, kind, detail) for what is to be told.
    """

    names: list[str]
    caption_names: list[str]
    stamps: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    orientations: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    notes: list[tuple[str, FindingKind, str]] = field(default_factory=list)


# The names come last: whoever asked a helper process for a portion has them already.
_READ_COLUMNS = ("stamps", "widths", "heights", "orientations", "captions", "notes")
_COLUMNS = (*_READ_COLUMNS, "names", "caption_names")


def columns_to_json(portion: Portion, columns: Sequence[str] = _COLUMNS) -> str:
    """Return columns of a portion as one line of JSON; stamps in base 64, for large numbers are slow to write."""
    values = [getattr(portion, name) for name in columns]
    values[0] = b2a_base64(array("q", portion.stamps).tobytes(), newline=False).decode("ascii")
    return json.dumps(values, separators=(",", ":"))


def portion_from(columns: Sequence[Any]) -> Portion:
    """Return the portion that has these columns.

    Raises:
        ValueError: They are not what `columns_to_json` writes.
    """
    named = dict(zip(_COLUMNS, columns, strict=True))
    named["stamps"] = array("q", a2b_base64(named["stamps"])).tolist()
    named["notes"] = [tuple(note) for note in named["notes"]]
    portion = Portion(**named)
    if not len(portion.names) == len(portion.captions) == len(portion.widths) == len(portion.stamps) // 4:
        raise ValueError("columns of different lengths")
    return portion


Known = Mapping[str, tuple[Portion, int]]


def examine(folder: str, names: Sequence[str], caption_names: Sequence[str], known: Known) -> Portion:
    """Read what is not known yet, or changed since, about the pictures `names` of a folder.

    `known` maps names to where an earlier portion holds them.
    """
    prefix = os.path.join(folder, "")
    portion = Portion(names=list(names), caption_names=list(caption_names))
    for name, caption_name in zip(names, caption_names, strict=True):
        earlier = known.get(name)
        if earlier is not None and _is_unchanged(prefix, name, caption_name, *earlier):
            _copy(portion, name, *earlier)
            continue
        _read_picture(prefix, name, portion)
        if caption_name:
            _read_caption(prefix, caption_name, portion)
        else:
            portion.stamps += (0, 0)
            portion.captions.append("")
    return portion


def serve() -> None:
    """Answer each line of standard input, [folder, names, caption names], with the other columns of its portion.

    Before them stands how often the disk was waited for. What a helper process runs until its parent is gone.
    """
    gc.disable()  # Nothing here refers to itself, and the process is short-lived.
    if hasattr(os, "nice"):
        os.nice(10)  # Whoever asked draws a screen or trains, and either goes first.
    for line in sys.stdin:
        folder, names, caption_names = json.loads(line)
        os.chdir(folder)  # Names alone are opened faster than whole paths.
        before = _num_waits()
        portion = examine("", names, caption_names, {})
        sys.stdout.write(f"{_num_waits() - before} {columns_to_json(portion, _READ_COLUMNS)}\n")
        sys.stdout.flush()


def _num_waits() -> int:
    """Return how often this process gave its core away to wait; 0 where the system doesn't tell."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def is_current(folder: str, names: Sequence[str], caption_names: Sequence[str], portion: Portion) -> bool:
    """Whether an earlier portion holds just these files, and each still has its time and size."""
    if portion.names != names or portion.caption_names != caption_names:
        return False
    prefix = os.path.join(folder, "")
    stamps: list[int] = []
    try:
        for name, caption_name in zip(names, caption_names, strict=True):
            status = os.stat(prefix + name)
            stamps += (status.st_mtime_ns, status.st_size)
            if caption_name:
                status = os.stat(prefix + caption_name)
                stamps += (status.st_mtime_ns, status.st_size)
            else:
                stamps += (0, 0)
    except OSError:
        return False
    return stamps == portion.stamps


def _is_unchanged(prefix: str, name: str, caption_name: str, portion: Portion, index: int) -> bool:
    if portion.caption_names[index] != caption_name:
        return False
    try:
        status = os.stat(prefix + name)
        stamps = [status.st_mtime_ns, status.st_size, 0, 0]
        if caption_name:
            status = os.stat(prefix + caption_name)
            stamps[2:] = status.st_mtime_ns, status.st_size
    except OSError:
        return False
    return stamps == portion.stamps[4 * index : 4 * index + 4]


def _copy(portion: Portion, name: str, earlier: Portion, index: int) -> None:
    portion.stamps += earlier.stamps[4 * index : 4 * index + 4]
    portion.widths.append(earlier.widths[index])
    portion.heights.append(earlier.heights[index])
    portion.orientations.append(earlier.orientations[index])
    portion.captions.append(earlier.captions[index])
    caption_name = earlier.caption_names[index]
    portion.notes += [note for note in earlier.notes if note[0] in {name, caption_name}]


def _read_picture(prefix: str, name: str, portion: Portion) -> None:
    """Append a picture's stamp and header; one that can't be used gets the width 0 and a note."""
    modified, size, width, height, orientation = _UNKNOWN, 0, 0, 0, 1
    try:
        fd = os.open(prefix + name, OPEN_FLAGS)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise BadPictureError("not-a-picture", "no regular file")
            modified, size = status.st_mtime_ns, status.st_size
            header = read_header(fd, size)
        finally:
            os.close(fd)
        width, height, orientation, true_format, is_animated = header
        if is_animated:
            portion.notes.append((name, "animated", "animated; its first frame is used"))
        if not name.endswith(_SUFFIXES.get(true_format, ())):
            _note_format(name, true_format, portion)
    except BadPictureError as error:
        portion.notes.append((name, error.kind, error.detail))
    except OSError as error:
        modified = _UNKNOWN  # Permissions may change without the file's time.
        portion.notes.append((name, "unreadable", why_unreadable(prefix + name, error)))
    portion.stamps += (modified, size)
    portion.widths.append(width)
    portion.heights.append(height)
    portion.orientations.append(orientation)


def _note_format(name: str, true_format: str, portion: Portion) -> None:
    if not name.lower().endswith(_SUFFIXES.get(true_format, ())):
        portion.notes.append((name, "wrong-extension", f"a {true_format} file under another name; it is used"))


def _read_caption(prefix: str, name: str, portion: Portion) -> None:
    """Append a caption file's stamp and text; lines are stripped and empty ones left out."""
    modified, size, text = _UNKNOWN, 0, ""
    try:
        fd = os.open(prefix + name, OPEN_FLAGS)
        try:
            status = os.fstat(fd)
            modified, size = status.st_mtime_ns, status.st_size
            raw = os.read(fd, min(size, MAX_CAPTION_BYTES)) if stat.S_ISREG(status.st_mode) else b""
        finally:
            os.close(fd)
        text = raw.decode("utf-8").strip()
        if size > MAX_CAPTION_BYTES or not text or "\n" in text or not text.isprintable():
            text = _mend(raw, size, name, portion)
    except UnicodeDecodeError:
        text = _mend(raw, size, name, portion)
    except OSError as error:
        modified = _UNKNOWN
        portion.notes.append((name, "unreadable", why_unreadable(prefix + name, error)))
    portion.stamps += (modified, size)
    portion.captions.append(text)


def _mend(raw: bytes, size: int, name: str, portion: Portion) -> str:
    """Return the text of an unusual caption: of several lines, with a byte-order mark, cut, or in a wrong encoding."""
    if size > MAX_CAPTION_BYTES:
        portion.notes.append((name, "long-caption", f"{size} bytes; only the first 64 KB are read"))
        raw = _whole_characters(raw)
    if raw[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        portion.notes.append((name, "caption-encoding", "its byte 0 begins UTF-16, not UTF-8"))
        return ""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        detail = f"byte {error.start} (0x{raw[error.start]:02x}) is not UTF-8"
        portion.notes.append((name, "caption-encoding", detail))
        return ""
    if "\0" in text:
        detail = f"byte {raw.index(0)} is NUL, so this is no UTF-8 text"
        portion.notes.append((name, "caption-encoding", detail))
        return ""
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n")]
    text = "\n".join(line for line in lines if line)
    if not text:
        portion.notes.append((name, "empty-caption", "the caption is empty"))
    return text


def _whole_characters(raw: bytes) -> bytes:
    """Return UTF-8 bytes without the first part of a character that was cut in two."""
    for length in range(1, 4):
        if raw[-length] >= 0xC0:
            return raw[:-length]
        if raw[-length] < 0x80:
            break
    return raw


def why_unreadable(path: str, error: OSError) -> str:
    """Return the cause, with owner and mode where permissions are it."""
    reason = f"can't be read ({error.strerror or error})"
    if not isinstance(error, PermissionError):
        return reason
    try:
        status = os.stat(path)
        owner = Path(path).owner()
    except (OSError, KeyError, NotImplementedError):  # No name for the owner, or a system without owners.
        return reason
    return f"{reason}: it belongs to {owner}, mode {stat.filemode(status.st_mode)}"

"""The picture and caption files of a folder, found in one pass over its entries. Torch-free."""

# Strings and os calls: making a Path of each name costs more than reading the file.
# ruff: noqa: PTH115, PTH116

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from engine.dataset.findings import Findings
from engine.errors import safe_text

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl"})
_SUFFIX_SPELLINGS = PICTURE_SUFFIXES | {suffix.upper() for suffix in PICTURE_SUFFIXES}
_OTHER_SUFFIXES = frozenset({".gif", ".tif", ".tiff", ".heic", ".heif", ".jp2", ".psd", ".svg", ".tga"})
_CHECKED = 1000  # Entries listed between two questions whether to go on.


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The pictures of one folder, sorted, and each one's caption file (or "" for none)."""

    folder: str
    names: list[str]
    caption_names: list[str]


def walk(
    root: str,
    *,
    recursive: bool,
    caption_suffixes: tuple[str, ...],
    findings: Findings,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Listing]:
    """Yield every folder that holds pictures; what is left out is added to `findings`.

    Links are followed, each folder once, so that a loop of links ends. `check` is called every thousand entries.
    """
    waiting = [root]
    seen: set[tuple[int, int]] = set()
    while waiting:
        folder = waiting.pop()
        try:
            if recursive and not _is_new(folder, seen, findings):
                continue
            listing, inner = _list(folder, caption_suffixes, findings, check)
        except OSError as error:
            reason = f"the folder can't be read ({error.strerror or error})"
            findings.add("unreadable-folder", folder, reason)
            continue
        if recursive:
            waiting += sorted(inner, reverse=True)
        if listing.names:
            yield listing


def _is_new(folder: str, seen: set[tuple[int, int]], findings: Findings) -> bool:
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        findings.add("link-loop", folder, "leads back to a folder that was read already")
        return False
    seen.add(identity)
    return True


def _list(
    folder: str, caption_suffixes: tuple[str, ...], findings: Findings, check: Callable[[], None]
) -> tuple[Listing, list[str]]:
    """Return the folder's pictures with their captions, and the folders inside it."""
    names: list[str] = []
    stems: dict[str, set[str]] = {suffix: set() for suffix in caption_suffixes}
    inner: list[str] = []
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number % _CHECKED == 0:
                check()
            name = entry.name
            dot = name.rfind(".")
            suffix = name[dot:]
            if suffix in stems:
                stems[suffix].add(name[:dot])
                continue
            try:
                if suffix in _SUFFIX_SPELLINGS and entry.is_file():
                    names.append(name)
                elif entry.is_dir():
                    inner.append(entry.path)
                elif suffix.lower() in PICTURE_SUFFIXES | _OTHER_SUFFIXES:
                    _sort_out(entry, suffix.lower(), names, findings)
            except OSError as error:  # A link that leads to itself.
                findings.add("not-a-file", entry.path, f"can't be followed ({error.strerror or error})")
    names.sort()
    check()
    return Listing(folder=folder, names=names, caption_names=_pair(names, stems, check)), inner


def _sort_out(entry: os.DirEntry[str], suffix: str, names: list[str], findings: Findings) -> None:
    """Decide on an entry that is named like a picture, but neither plainly one nor a folder."""
    if suffix in _OTHER_SUFFIXES:
        findings.add("other-format", entry.path, "its format is not trained on")
    elif entry.is_file():  # A suffix of mixed case.
        names.append(entry.name)
    elif entry.is_symlink():
        target = safe_text(os.readlink(entry.path))
        findings.add("not-a-file", entry.path, f"a link that leads nowhere ({target})")
    else:
        findings.add("not-a-file", entry.path, "no regular file but a pipe, socket or device")


def _pair(names: list[str], stems_of: dict[str, set[str]], check: Callable[[], None]) -> list[str]:
    """Return the caption file of each picture: the first suffix that there is one for, else ""."""
    stems = [name[: name.rfind(".")] for name in names]
    found = [""] * len(names)
    for suffix, known in reversed(stems_of.items()):
        check()
        found = [stem + suffix if stem in known else other for stem, other in zip(stems, found, strict=True)]
    return found

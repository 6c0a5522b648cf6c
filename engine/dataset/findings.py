"""What a scan finds wrong or worth saying about files, gathered so that a thousand bad files stay readable. Torch-free.

Each file is named once; a kind that more than a few dozen files share is told with its count and the first names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from engine.dataset.headers import BadKind
from engine.errors import Problem, Severity, safe_text

BadFile = (
    BadKind
    | Literal["too-large", "unreadable", "missing-picture", "outside-image-dir", "caption-encoding", "bad-metadata"]
)
FindingKind = (
    BadFile
    | Literal[
        "unreadable-folder", "no-pictures", "no-caption", "empty-caption", "long-caption", "animated",
        "wrong-extension", "not-a-file", "link-loop", "other-format", "stem-key", "twice", "index",
    ]
)  # fmt: skip

LISTED = 20
_NAMED = 5


class Finding(NamedTuple):
    """One file (or folder) and what is to say about it."""

    path: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """How a kind is told: its severity, many files at once (after the count), and the remedy."""

    severity: Severity
    many: str
    fix: str = ""


_REPLACE = "replace it or take it out of the data set"
_CONVERT = "save the caption as UTF-8 text"
TEXTS: Mapping[FindingKind, Text] = {
    "empty": Text(severity="error", many="files are empty", fix=_REPLACE),
    "not-a-picture": Text(severity="error", many="files are no pictures", fix=_REPLACE),
    "refused-format": Text(severity="error", many="files have a format that is not read", fix="convert it to PNG"),
    "damaged": Text(severity="error", many="pictures are damaged", fix=_REPLACE),
    "too-large": Text(
        severity="error", many="pictures have too many pixels", fix="save it smaller, or raise max_image_pixels"
    ),
    "unreadable": Text(severity="error", many="files can't be read", fix="change its permissions"),
    "missing-picture": Text(
        severity="error", many="pictures of the metadata file are missing", fix="check image_dir, or clean the file"
    ),
    "outside-image-dir": Text(
        severity="error", many="keys of the metadata file lead out of image_dir", fix="write an absolute path"
    ),
    "caption-encoding": Text(severity="error", many="captions are not UTF-8 text", fix=_CONVERT),
    "bad-metadata": Text(severity="error", many="entries of the metadata file can't be used", fix="mend the file"),
    "unreadable-folder": Text(severity="error", many="folders can't be read", fix="change its permissions"),
    "no-pictures": Text(severity="error", many="folders hold no pictures", fix="check image_dir and recursive"),
    "no-caption": Text(
        severity="warning", many="pictures have no caption and are trained without one", fix="caption them"
    ),
    "empty-caption": Text(
        severity="warning", many="captions are empty; their pictures are trained without one", fix="caption them"
    ),
    "long-caption": Text(severity="warning", many="captions are longer than 64 KB and are cut there"),
    "animated": Text(severity="warning", many="pictures are animated; their first frame is used"),
    "wrong-extension": Text(severity="info", many="pictures have another format than their name says"),
    "not-a-file": Text(severity="warning", many="entries are no regular files and are left out"),
    "link-loop": Text(severity="warning", many="links lead back to a folder that was read already"),
    "other-format": Text(
        severity="info", many="pictures in other formats are left out", fix="convert them to PNG, JPEG or WebP"
    ),
    "stem-key": Text(severity="info", many="keys of the metadata file have no extension; pictures were found by name"),
    "twice": Text(severity="warning", many="pictures are named twice in one subset; the first is used"),
    "index": Text(severity="warning", many="notes about the scan index"),
}
BAD_FILES = frozenset(name for part in get_args(BadFile) for name in get_args(part) or (part,))


class Findings:
    """What was found so far: how many files of each kind, and the first of them; bounded, however bad the data is."""

    def __init__(self) -> None:
        self._counts: dict[FindingKind, int] = {}
        self._first: dict[FindingKind, list[Finding]] = {}

    def add(self, kind: FindingKind, path: str, detail: str) -> None:
        """Count one file."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        first = self._first.setdefault(kind, [])
        if len(first) < LISTED:
            first.append(Finding(path, detail))

    def problems(self, *, is_skipping: bool = False) -> tuple[Problem, ...]:
        """Return the findings, errors first; with `is_skipping` bad files are warnings, for they are left out."""
        told = [problem for kind in self._counts for problem in self._told(kind, is_skipping)]
        rank = {"error": 0, "warning": 1, "info": 2}
        return tuple(sorted(told, key=lambda problem: rank[problem.severity]))

    def _told(self, kind: FindingKind, is_skipping: bool) -> list[Problem]:
        text, count, first = TEXTS[kind], self._counts[kind], self._first[kind]
        severity: Severity = "warning" if is_skipping and kind in BAD_FILES else text.severity
        # Captions and formats come by the hundred; only what stops a run is worth a line for each file.
        if count <= (LISTED if text.severity == "error" else 1):
            return [
                Problem(code=kind, severity=severity, where=safe_text(path), message=detail, fix=text.fix)
                for path, detail in first
            ]
        names = ", ".join(safe_text(finding.path) for finding in first[:_NAMED])
        more = f" and {count - _NAMED} more" if count > _NAMED else ""
        message = f"{count} {text.many}: {names}{more}"
        return [Problem(code=kind, severity=severity, where="", message=message, fix=text.fix)]

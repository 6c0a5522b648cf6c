"""What the pictures and captions were when a state was written, and how they differ now. Torch-free.

A picture is the same while its size and time of change are; where the time alone differs, its content decides.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.dataset.scan import Catalog
from engine.errors import safe_text

DATASET_FILE = "dataset.json"
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetChange:
    """The keys of pictures that differ between then and now."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    """Other content or size."""
    captions: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        return not (self.added or self.removed or self.pictures or self.captions)

    def lines(self) -> list[str]:
        """Return one line for each kind of difference, with the first few names."""
        kinds = (
            (self.added, "added"),
            (self.removed, "removed"),
            (self.pictures, "with another picture"),
            (self.captions, "with another caption"),
        )
        return [f"{len(keys)} {words}: {_listed(keys)}" for keys, words in kinds if keys]


def ledger(catalog: Catalog, contents: Mapping[int, str] | None = None) -> dict[str, Any]:
    """Return a table of the pictures by key: file size, time of change, width, height, caption's digest, content.

    `contents` holds the content hashes that are known, by row: a file is hashed when it is decoded, not for this.
    """
    known = contents or {}
    columns = (catalog.file_sizes_N, catalog.modified_N, catalog.sizes_N2[:, 0], catalog.sizes_N2[:, 1])
    numbers = zip(*(column.tolist() for column in columns), strict=True)
    return {
        key: [*row, _digest(caption), known.get(place, "")]
        for place, (key, row, caption) in enumerate(zip(catalog.keys, numbers, catalog.captions, strict=True))
    }


def find_changes(
    before: Mapping[str, Sequence[Any]], catalog: Catalog, content_of: Callable[[Path], str]
) -> DatasetChange:
    """Compare a saved table with the pictures found now; only files with a new time of change are read."""
    now = ledger(catalog)
    paths = dict(zip(catalog.keys, catalog.paths, strict=True))
    pictures, captions = [], []
    for key in before.keys() & now.keys():
        size, modified, width, height, caption, content = before[key]
        new_size, new_modified, new_width, new_height, new_caption, _ = now[key]
        is_same = (size, width, height) == (new_size, new_width, new_height)
        if is_same and modified != new_modified:
            is_same = bool(content) and content_of(Path(paths[key])) == content
        if not is_same:
            pictures.append(key)
        if caption != new_caption:
            captions.append(key)
    return DatasetChange(
        added=tuple(sorted(now.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - now.keys())),
        pictures=tuple(sorted(pictures)),
        captions=tuple(sorted(captions)),
    )


def _digest(caption: str) -> str:
    return hashlib.blake2b(caption.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(safe_text(key) for key in keys[:_SHOWN]) + more

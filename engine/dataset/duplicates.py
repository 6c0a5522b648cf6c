"""Pictures that are byte for byte the same file: found and reported, never removed. Torch-free."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from engine.dataset.index import Index
from engine.dataset.scan import Catalog, ScanCancelledError


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateGroup:
    """Rows of the catalog that hold the same picture under different paths, and the hash they share."""

    rows: tuple[int, ...]
    content: str


def find_duplicates(
    catalog: Catalog, *, cache_dir: Path, cancel: Callable[[], bool] = lambda: False
) -> tuple[DuplicateGroup, ...]:
    """Return the groups of equal pictures, in the catalog's order.

    Only pictures of equal length are read; hashes that the scan index knows already are not computed again. A file that
    can't be read is left out: decoding will name it.

    Raises:
        ScanCancelledError: `cancel` said so.
    """
    rows = _with_equal(range(len(catalog)), lambda row: int(catalog.file_sizes_N[row]))
    paths = [catalog.paths[row] for row in rows]
    stamps = [(int(catalog.modified_N[row]), int(catalog.file_sizes_N[row])) for row in rows]
    with Index(cache_dir) as index:
        hashes = index.hashes(paths, [time for time, _ in stamps], [size for _, size in stamps])
        found = []
        for position, digest in enumerate(hashes):
            if cancel():
                raise ScanCancelledError("the search for duplicates was stopped")
            if not digest:
                hashes[position] = _hash(paths[position])
                found.append((paths[position], *stamps[position], hashes[position]))
        index.remember_hashes(row for row in found if row[-1])
    content = dict(zip(rows, hashes, strict=True))
    groups: dict[str, list[int]] = {}
    for row in _with_equal((row for row in rows if content[row]), content.__getitem__):
        groups.setdefault(content[row], []).append(row)
    return tuple(
        DuplicateGroup(rows=tuple(group), content=digest)
        for digest, group in groups.items()
        if len({catalog.paths[row] for row in group}) > 1
    )


def _with_equal(rows: Iterable[int], value: Callable[[int], int | str]) -> list[int]:
    """Return the rows whose value another row has too."""
    kept = list(rows)
    counts: dict[int | str, int] = {}
    for row in kept:
        counts[value(row)] = counts.get(value(row), 0) + 1
    return [row for row in kept if counts[value(row)] > 1]


def _hash(path: str) -> str:
    """Return the hash that names a picture by its bytes, as engine.pixels.content_hash does; "" if it can't be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return ""

"""The pictures of all data sets with their sizes and captions, from headers alone. Torch-free.

Dimension key: N pictures, 2 = (width, height).
"""

# Strings and os calls: making a Path of each name costs more than reading the file.
# ruff: noqa: PTH100, PTH118

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from engine.dataset.config import DatasetConfig, Subset
from engine.dataset.examine import Known, Portion, columns_to_json, examine, is_current
from engine.dataset.findings import BAD_FILES, Findings
from engine.dataset.helper import Helper, num_helpers
from engine.dataset.index import Index
from engine.dataset.metadata import Entry, locate, read_metadata
from engine.dataset.walk import Listing, walk
from engine.errors import EngineError, Problem

PORTION = 256  # Pictures examined at a time: what progress, cancelling and the index count in.
_SLOW_SECONDS = 40e-6  # For one picture: above it we wait for a disk or a network, and threads help.
_THREADS = 16
_FRESH = 1024  # Pictures that the index did not know, after which helper processes are thought of,
_WORTH_HELPERS = 16_384  # and how many must remain: to start them takes as long as to read some 5000 headers.
_KEEP_EVERY = 64  # Portions put into the index at once.

Progress = Callable[[int, int | None], None]
Cancel = Callable[[], bool]
Check = Callable[[], None]


class ScanCancelledError(EngineError):
    """The scan was stopped on request; what was read so far is kept in the index."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Catalog:
    """Every usable picture once for each subset that holds it, as columns.

    A key names a picture for good: its path relative to image_dir, in POSIX style (after `subset<number>/` where two
    subsets have it). `subsets_N` counts into `DatasetConfig.subsets`; sizes are upright, after the orientation.
    """

    keys: list[str]
    paths: list[str]
    sizes_N2: NDArray[np.int32]
    orientations_N: NDArray[np.uint8]
    captions: list[str]
    subsets_N: NDArray[np.int16]
    repeats_N: NDArray[np.int32]
    modified_N: NDArray[np.int64]
    """Time of the last change in nanoseconds."""
    file_sizes_N: NDArray[np.int64]
    """Bytes."""
    problems: tuple[Problem, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def only(self, rows: NDArray[np.int64]) -> "Catalog":
        """Return the catalog of some of the pictures, with all its problems."""
        return Catalog(
            keys=[self.keys[row] for row in rows],
            paths=[self.paths[row] for row in rows],
            sizes_N2=self.sizes_N2[rows],
            orientations_N=self.orientations_N[rows],
            captions=[self.captions[row] for row in rows],
            subsets_N=self.subsets_N[rows],
            repeats_N=self.repeats_N[rows],
            modified_N=self.modified_N[rows],
            file_sizes_N=self.file_sizes_N[rows],
            problems=self.problems,
        )


@dataclass(slots=True, kw_only=True)
class _Columns:
    """A catalog while it grows."""

    keys: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    orientations: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    """Four for each picture, as in a portion."""
    subsets: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """The files of one subset, listed but not yet read."""

    number: int
    subset: Subset
    listings: list[Listing]
    entries: Mapping[str, Entry] | None
    """By path, where a metadata file has the captions."""

    @property
    def kind(self) -> str:
        """What tells its portions in the index from those of a subset that finds captions in another way."""
        return "" if self.entries is not None else "|".join(_caption_suffixes(self.subset))


@dataclass(frozen=True, kw_only=True)
class _Folder:
    """A listing beside what the index has of its folder."""

    job: _Job
    listing: Listing
    portions: list[Portion]

    @cached_property
    def known(self) -> Known:
        """Where each picture's earlier facts stand; asked for only when a portion has changed."""
        return {name: (portion, row) for portion in self.portions for row, name in enumerate(portion.names)}

    def examine(self, number: int, helper: Helper | None = None) -> tuple[Portion, str]:
        """Return one portion; also as JSON for the index, or "" where the index has it already."""
        part = slice(number * PORTION, (number + 1) * PORTION)
        names, caption_names = self.listing.names[part], self.listing.caption_names[part]
        if number < len(self.portions):
            earlier = self.portions[number]
            if is_current(self.listing.folder, names, caption_names, earlier):
                return earlier, ""
        if helper is not None and not self.portions:
            return helper.examine(self.listing.folder, names, caption_names)
        portion = examine(self.listing.folder, names, caption_names, self.known)
        return portion, columns_to_json(portion)

    @property
    def count(self) -> int:
        """How many portions the folder has."""
        return -(-len(self.listing.names) // PORTION)


_Task = tuple[_Folder, int]
_Done = tuple[_Folder, int, tuple[Portion, str]]


def scan(
    config: DatasetConfig,
    *,
    cache_dir: Path,
    progress: Progress = lambda _done, _total: None,
    cancel: Cancel = lambda: False,
) -> Catalog:
    """Find the pictures of all subsets and read their headers and captions; unchanged files come from the index.

    Args:
        config: The data sets.
        cache_dir: Where the index is kept.
        progress: Called with pictures done and their total, which is None while folders are still being listed.
        cancel: Asked every few milliseconds of work; true ends the scan.

    Raises:
        ScanCancelledError: `cancel` said so.
        EngineError: A metadata file can't be read.
    """
    findings, columns = Findings(), _Columns()
    done, jobs, check = 0, [], partial(_check, cancel)
    for number, subset in enumerate(config.subsets):
        jobs.append(_list_subset(number, subset, findings, check))
        progress(sum(len(listing.names) for job in jobs for listing in job.listings), None)
        check()
    total = sum(len(listing.names) for job in jobs for listing in job.listings)
    with Index(cache_dir) as index:
        for folder, portion in _examined(jobs, index, total, check):
            _add(folder, portion, columns, findings, config.max_pixels)
            check()
            done += len(portion.names)
            progress(done, total)
        if index.notice:
            findings.add("index", "", index.notice)
    return _catalog(config, columns, findings)


def _check(cancel: Cancel) -> None:
    if cancel():
        raise ScanCancelledError("the scan was stopped; what was read so far is kept for the next one")


def _caption_suffixes(subset: Subset) -> tuple[str, ...]:
    return tuple(dict.fromkeys([subset.caption_extension, ".txt"]))


def _list_subset(number: int, subset: Subset, findings: Findings, check: Check) -> _Job:
    entries: Mapping[str, Entry] | None = None
    if subset.metadata_file is None:
        suffixes = _caption_suffixes(subset)
        folder = os.path.abspath(subset.image_dir)
        found = walk(folder, recursive=subset.recursive, caption_suffixes=suffixes, findings=findings, check=check)
        listings = list(found)
    else:
        entries = locate(read_metadata(subset.metadata_file, findings), subset.image_dir, findings)
        listings = _listings_of(entries)
    if not listings:
        findings.add("no-pictures", str(subset.metadata_file or subset.image_dir), "no pictures were found in it")
    return _Job(number=number, subset=subset, listings=listings, entries=entries)


def _listings_of(paths: Iterable[str]) -> list[Listing]:
    folders: dict[str, list[str]] = {}
    for path in sorted(paths):
        folder, name = os.path.split(path)
        folders.setdefault(folder, []).append(name)
    return [Listing(folder=folder, names=names, caption_names=[""] * len(names)) for folder, names in folders.items()]


def _examined(jobs: Sequence[_Job], index: Index, total: int, check: Check) -> Iterator[tuple[_Folder, Portion]]:
    """Yield every portion in order, and keep what changed in the index."""
    changed: list[tuple[int, str]] = []
    for folder, number, (portion, text) in _in_parallel_if_worth_it(_tasks(jobs, index, check), total):
        if text:
            changed.append((number, text))
        if changed and (len(changed) >= _KEEP_EVERY or number == folder.count - 1):
            index.put(folder.listing.folder, folder.job.kind, changed, count=folder.count)
            changed = []
        yield folder, portion


def _tasks(jobs: Sequence[_Job], index: Index, check: Check) -> Iterator[_Task]:
    for job in jobs:
        for listing in job.listings:
            portions = index.portions(listing.folder, job.kind, check)
            folder = _Folder(job=job, listing=listing, portions=portions)
            for number in range(folder.count):
                yield folder, number


def _in_parallel_if_worth_it(tasks: Iterator[_Task], total: int) -> Iterator[_Done]:
    """Examine portions one after another until it is known what limits us.

    A cold disk or a network lets each file wait, and sixteen threads wait better than one. A warm page cache answers in
    microseconds: threads would only fight for the interpreter lock (measured: half the speed), but helper processes pay
    off for a large folder that the index does not know, be the disk cold or not: beside a busy screen, which holds the
    lock, either looks alike from here.
    """
    seen, fresh, seconds = 0, 0, 0.0
    for folder, number in tasks:
        start = time.perf_counter()
        result = folder.examine(number)
        seconds += time.perf_counter() - start
        seen += len(result[0].names)
        fresh += len(result[0].names) if result[1] else 0
        yield folder, number, result
        is_slow = seen >= PORTION and seconds > _SLOW_SECONDS * seen
        is_worth_helpers = fresh >= (PORTION if is_slow else _FRESH) and total - seen >= _WORTH_HELPERS
        if is_worth_helpers and num_helpers():
            helpers: list[Helper | None] = [Helper() for _ in range(num_helpers())]
            try:
                yield from _in_threads(tasks, helpers)
            finally:
                for helper in helpers:
                    if helper is not None:
                        helper.close()
        elif is_slow:
            yield from _in_threads(tasks, [None] * _THREADS)


def _in_threads(tasks: Iterator[_Task], helpers: list[Helper | None]) -> Iterator[_Done]:
    """Examine the remaining portions in a thread for each helper (or None, for a thread that works itself).

    While helpers wait for the disk, more of them are added to the list.
    """
    free = SimpleQueue[Helper | None]()
    for helper in helpers:
        free.put(helper)

    def work(folder: _Folder, number: int) -> tuple[Portion, str]:
        helper = free.get()
        try:
            return folder.examine(number, helper)
        finally:
            free.put(helper)

    waiting: deque[tuple[_Folder, int, Future[tuple[Portion, str]]]] = deque()
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="scan")
    try:
        for folder, number in tasks:
            if len(helpers) < _THREADS and any(helper is not None and helper.waits for helper in helpers):
                helpers.append(Helper())
                free.put(helpers[-1])
            waiting.append((folder, number, pool.submit(work, folder, number)))
            if len(waiting) > 2 * len(helpers):
                done = waiting.popleft()
                yield done[0], done[1], done[2].result()
        for done in waiting:
            yield done[0], done[1], done[2].result()
    finally:
        pool.shutdown(cancel_futures=True)


def _add(folder: _Folder, portion: Portion, columns: _Columns, findings: Findings, max_pixels: int) -> None:
    """Take a portion into the catalog and tell what is to be told about it."""
    job, prefix = folder.job, os.path.join(folder.listing.folder, "")
    bad = {name for name, kind, detail in portion.notes if kind in BAD_FILES}
    for name, kind, detail in portion.notes:
        findings.add(kind, prefix + name, detail)
    for name, width, height in zip(portion.names, portion.widths, portion.heights, strict=True):
        if width * height > max_pixels:
            bad.add(name)
            detail = f"{width}x{height} is over the limit of {max_pixels / 1e6:g} megapixels"
            findings.add("too-large", prefix + name, detail)
    if bad:
        portion = _without(portion, bad)
    if job.entries is None and "" in portion.caption_names:
        for name, caption_name in zip(portion.names, portion.caption_names, strict=True):
            if not caption_name:
                findings.add("no-caption", prefix + name, "has no caption file and is trained without caption")
    key_prefix = _key_prefix(folder.listing.folder, job.subset.image_dir)
    columns.keys += [key_prefix + name for name in portion.names]
    columns.paths += [prefix + name for name in portion.names]
    columns.widths += portion.widths
    columns.heights += portion.heights
    columns.orientations += portion.orientations
    columns.captions += portion.captions if job.entries is None else _texts(job, prefix, portion.names)
    columns.stamps += portion.stamps
    columns.subsets += [job.number] * len(portion.names)


def _without(portion: Portion, bad: AbstractSet[str]) -> Portion:
    """Return the portion without the pictures whose file or caption file is bad."""
    files = zip(portion.names, portion.caption_names, strict=True)
    rows = [row for row, pair in enumerate(files) if bad.isdisjoint(pair)]
    return Portion(
        names=[portion.names[row] for row in rows],
        caption_names=[portion.caption_names[row] for row in rows],
        stamps=[stamp for row in rows for stamp in portion.stamps[4 * row : 4 * row + 4]],
        widths=[portion.widths[row] for row in rows],
        heights=[portion.heights[row] for row in rows],
        orientations=[portion.orientations[row] for row in rows],
        captions=[portion.captions[row] for row in rows],
    )


def _texts(job: _Job, prefix: str, names: Iterable[str]) -> list[str]:
    assert job.entries is not None
    options = job.subset.caption
    entries = (job.entries[prefix + name] for name in names)
    return [entry.text(options.caption_separator, enable_wildcard=options.enable_wildcard) for entry in entries]


def _key_prefix(folder: str, image_dir: Path) -> str:
    """Return the folder's path from image_dir in POSIX style; a folder elsewhere keeps its whole path."""
    root = os.path.abspath(image_dir)
    if folder == root:
        return ""
    inside = os.path.join(root, "")
    return Path(folder.removeprefix(inside)).as_posix() + "/"


def _catalog(config: DatasetConfig, columns: _Columns, findings: Findings) -> Catalog:
    repeats = np.array([subset.num_repeats for subset in config.subsets], np.int32)
    subsets_N = np.array(columns.subsets, np.int16)
    stamps_N4 = np.array(columns.stamps, np.int64).reshape(-1, 4)
    return Catalog(
        keys=_distinct(columns.keys, columns.subsets),
        paths=columns.paths,
        sizes_N2=np.array([columns.widths, columns.heights], np.int32).T.copy(),
        orientations_N=np.array(columns.orientations, np.uint8),
        captions=columns.captions,
        subsets_N=subsets_N,
        repeats_N=repeats[subsets_N],
        modified_N=stamps_N4[:, 0].copy(),
        file_sizes_N=stamps_N4[:, 1].copy(),
        problems=findings.problems(is_skipping=config.skip_bad_images),
    )


def _distinct(keys: list[str], subsets: list[int]) -> list[str]:
    """Return the keys; one that an earlier subset has already is told apart by its own subset's number."""
    if not subsets or subsets[-1] == subsets[0]:
        return keys
    seen: set[str] = set()
    distinct = []
    for key, number in zip(keys, subsets, strict=True):
        distinct.append(f"subset{number + 1}/{key}" if key in seen else key)
        seen.add(key)
    return distinct

"""Captioning a data set: decode ahead, describe in batches, write behind; each picture once. Torch-free."""

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.captioning.base import Captioner, Described
from engine.captioning.journal import Journal, is_done
from engine.captioning.pictures import load_prepared
from engine.captioning.tags import split_tags
from engine.captioning.texts import FolderTexts, MetadataTexts, Mode, combine
from engine.display import duration
from engine.errors import EngineError, safe_text
from engine.pixels import Array

_WRITES_BEHIND = 64  # Batches of texts that may wait for a slow disk, which then takes them at once.

Cancel = Callable[[], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a picture: its description, the text before and after (None: left as it was), or an error."""

    key: str
    described: Described | None = None
    size: tuple[int, int] | None = None
    """Width and height of the picture, upright."""
    old: str | None = None
    new: str | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be captioned, and where the texts go."""

    pictures: FolderTexts
    texts: FolderTexts | MetadataTexts
    """The folder itself for caption files beside the pictures, else a metadata file."""
    captioner: Captioner
    mode: Mode = "replace"
    separator: str = ", "
    batch_size: int = 8
    workers: int = 2
    keys: Sequence[str] | None = None
    """Which pictures; None for all."""
    full_path: bool = False
    """In metadata: name pictures by their whole path."""
    is_dry: bool = False


@dataclass(slots=True, kw_only=True)
class Summary:
    """Counts of a run; `frequencies` are those of tags written."""

    described: int = 0
    written: int = 0
    kept: int = 0
    """Left alone because they had a text, or would not change."""
    resumed: int = 0
    """Done already by the interrupted run that this one went on with."""
    errors: list[str] = field(default_factory=list)
    frequencies: Counter[str] = field(default_factory=Counter)
    is_cancelled: bool = False
    seconds: float = 0.0


Listener = Callable[[Result], None]
Progress = Callable[[int, int, float], None]
"""Pictures done, pictures to do, pictures a second."""


def caption_pictures(
    work: Work,
    *,
    progress: Progress = lambda _done, _total, _rate: None,
    cancel: Cancel = lambda: False,
    listener: Listener = lambda _result: None,
) -> Summary:
    """Describe pictures and write what they are called.

    An interrupted run is gone on with by the same call: what its journal shows as done is not done again.

    Raises:
        EngineError: The captioner fails, or a text can't be written; a picture that can't be read only is counted.
    """
    start, summary = time.perf_counter(), Summary()
    label = f"{work.captioner.name}, {work.mode}"
    identity = f"{work.captioner.identity} {work.mode} {work.separator} {_place(work)}"
    journal = None if work.is_dry else Journal(work.texts.root, label, identity=identity, model=work.captioner.source)
    try:
        with closing(_Writer(work, journal, summary, listener)) as writer:
            todo = _todo(work, writer, summary)
            with closing(_batches(work, todo)) as batches:
                for done, batch in batches:
                    writer.take(batch)
                    progress(done, len(todo), done / max(1e-6, time.perf_counter() - start))
                    if done < len(todo) and cancel():
                        summary.is_cancelled = True
                        break
        if not summary.is_cancelled:
            writer.finish()
    finally:
        if journal is not None:
            journal.close(is_finished=not summary.is_cancelled and writer.is_finished)
    summary.seconds = time.perf_counter() - start
    return summary


def _place(work: Work) -> str:
    texts = work.texts
    return f"{texts.root} {texts.extension if isinstance(texts, FolderTexts) else texts.field} {work.full_path}"


def _todo(work: Work, writer: "_Writer", summary: Summary) -> list[tuple[str, Path]]:
    """Return the pictures that are not done yet, without looking into any of them."""
    todo = []
    for key in work.pictures.keys() if work.keys is None else work.keys:
        if writer.is_done(key):
            summary.resumed += 1
        elif work.mode == "skip" and writer.has_text(key):
            summary.kept += 1
        else:
            todo.append((key, work.pictures.picture(key)))
    return todo


Batch = list[tuple[str, Any]]
Seen = tuple[Described, tuple[int, int]]
"""What is said of a picture, and its size."""


def _batches(work: Work, todo: Sequence[tuple[str, Path]]) -> Generator[tuple[int, Batch], None, None]:
    """Yield prepared pictures (or the errors in their place) with the number of pictures up to there."""
    ahead = work.workers + work.batch_size

    def prepare(pixels_HWC: Array) -> tuple[Any, tuple[int, int]]:
        height, width = pixels_HWC.shape[:2]
        return work.captioner.prepare(pixels_HWC), (width, height)

    loaded = load_prepared(todo, prepare, workers=work.workers, ahead=ahead)
    batch: Batch = []
    with closing(loaded):
        for done, item in enumerate(loaded, start=1):
            batch.append(item)
            if len(batch) == work.batch_size:
                yield done, batch
                batch = []
        if batch:
            yield len(todo), batch


class _Writer:
    """Describes batches, and writes them in one thread behind, each after its note in the journal."""

    def __init__(self, work: Work, journal: Journal | None, summary: Summary, listener: Listener) -> None:
        self._work = work
        self._journal = journal
        self._summary = summary
        self._listener = listener
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="captions")
        self._waiting: deque[Future[None]] = deque()
        self._pending: deque[dict[str, Seen]] = deque()
        self._new: dict[str, str] = {}
        """Of a metadata file, which is written once at the end."""
        self._sizes: dict[str, Sequence[int]] = {}
        self.is_finished = False
        if journal is not None:
            self._new = {key: row["text"] for key, row in journal.notes.items() if row["text"] is not None}
            self._sizes = {key: row["size"] for key, row in journal.notes.items() if row.get("size")}

    def is_done(self, key: str) -> bool:
        """Tell whether the interrupted run saw to a picture."""
        if self._journal is None:
            return False
        name = self._name(key)
        if name in self._journal.notes:
            return True
        if isinstance(self._work.texts, MetadataTexts):
            return False
        row = self._journal.done.get(str(self._work.texts.file(key)))
        return row is not None and is_done(row)

    def has_text(self, key: str) -> bool:
        """Tell whether a picture has a text; one that can't be read counts as one."""
        try:
            return bool((self._work.texts.read(self._name(key)) or "").strip())
        except EngineError:
            return True

    def _name(self, key: str) -> str:
        """Return the key of a picture where the texts go."""
        if isinstance(self._work.texts, MetadataTexts) and self._work.full_path:
            return self._work.pictures.picture(key).absolute().as_posix()
        return key

    def take(self, batch: Batch) -> None:
        """Describe a batch and hand it to the writing thread."""
        good = [(key, prepared) for key, prepared in batch if not isinstance(prepared, EngineError)]
        for key, error in batch:
            if isinstance(error, EngineError):
                self._tell(Result(key=key, error=str(error)))
        if good:
            keys = [key for key, _ in good]
            described = self._work.captioner.describe([prepared for _, (prepared, _) in good], keys)
            sizes = [size for _, (_, size) in good]
            self._pending.append(dict(zip(keys, zip(described, sizes, strict=True), strict=True)))
            self._waiting.append(self._pool.submit(self._write_pending))
        while len(self._waiting) > _WRITES_BEHIND:
            self._waiting.popleft().result()

    def _write_pending(self) -> None:
        """Write all that waits: however slow the disk, the journal is made durable once for all of it."""
        described: dict[str, Seen] = {}
        while self._pending:
            described |= self._pending.popleft()
        if described:
            self._write(described)

    def _write(self, described: Mapping[str, Seen]) -> None:
        work = self._work
        results = [self._result(key, said, size) for key, (said, size) in described.items()]
        new = {self._name(result.key): result.new for result in results if result.new is not None}
        if self._journal is not None and isinstance(work.texts, FolderTexts):
            # What is left as it is gets a note, so that a run that goes on does not look at it again.
            notes = [{"key": result.key, "text": None} for result in results if result.new is None and not result.error]
            self._journal.apply(work.texts.changes(new), notes)
        elif self._journal is not None:
            sized: list[dict[str, Any]] = [
                {"key": self._name(result.key), "text": result.new, "size": result.size}
                for result in results
                if not result.error
            ]
            self._journal.apply([], sized)
            self._new |= new
            self._sizes |= {note["key"]: note["size"] for note in sized}
        for result in results:
            self._tell(result)

    def _result(self, key: str, said: Described, size: tuple[int, int]) -> Result:
        work = self._work
        try:
            old = work.texts.read(self._name(key))
        except EngineError as error:
            if work.mode != "replace":
                return Result(key=key, described=said, size=size, error=str(error))
            old = None
        is_tags = work.captioner.kind == "tags"
        new = combine(old, said.text, work.mode, separator=work.separator, is_tags=is_tags)
        return Result(key=key, described=said, size=size, old=old, new=new)

    def _tell(self, result: Result) -> None:
        summary = self._summary
        summary.described += result.described is not None
        if result.error:
            summary.errors.append(result.error)
        elif result.new is None:
            summary.kept += 1
        else:
            summary.written += 1
        if result.described is not None and self._work.captioner.kind == "tags":
            separator = self._work.separator.strip() or self._work.separator
            summary.frequencies.update(split_tags(result.described.text, separator))
        self._listener(result)

    def finish(self) -> None:
        """Write the metadata file, where the texts go into one."""
        if self._journal is not None and isinstance(self._work.texts, MetadataTexts) and self._new:
            changes = self._work.texts.changes(self._new, self._sizes)
            self._journal.apply([change for change in changes if change.before != change.after])
        self.is_finished = True

    def close(self) -> None:
        """Wait for what is being written; errors of the writing thread come up here."""
        try:
            while self._waiting:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown()


def progress_text(done: int, total: int, rate: float) -> str:
    """Return how far a run is as one line."""
    left = duration((total - done) / rate) if rate > 0 else "?"
    return f"{done}/{total} pictures  {rate:.1f}/s  eta {left}"


def summary_text(summary: Summary) -> str:
    """Return what a run has done as one line."""
    parts = [f"{summary.described} described", f"{summary.written} written", f"{summary.kept} kept"]
    if summary.resumed:
        parts.append(f"{summary.resumed} were done before")
    if summary.errors:
        parts.append(f"{len(summary.errors)} failed")
    return safe_text(", ".join(parts)) + f" in {duration(summary.seconds)}"

"""What the pictures and captions of a plan are like: tokens, tags, and what is wrong, each with its files. Torch-free.

Everything here is pure and meant for a thread: 100,000 captions take about two seconds.

Dimension key: N pictures.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from engine.dataset.captions import CaptionOptions, process_caption
from engine.dataset.duplicates import DuplicateGroup
from engine.dataset.findings import BAD_FILES
from engine.errors import Problem, Severity
from engine.plan import Plan
from engine.rng import python_rng
from engine.tokens import ClipTokenizer, capacity, count_tokens, load_tokenizer

Rows = NDArray[np.int64]

PORTION = 100  # Captions looked at between two questions whether to go on,
MATCHED = 1000  # and names and captions searched.
TAGS_KEPT = 5000
_COUNT = re.compile(r"(\d+) ")
_RANK: Mapping[Severity, int] = {"error": 0, "warning": 1, "info": 2}
_TITLES = {
    "no-caption": "without caption", "empty-caption": "empty captions", "missing-picture": "missing pictures",
    "caption-encoding": "captions not in UTF-8", "wrong-extension": "other format than named",
    "other-format": "formats left out", "long-caption": "captions over 64 KB", "missing-path": "paths not found",
    "animated": "animated, first frame used", "twice": "named twice", "too-large": "too many pixels",
    "not-a-picture": "not pictures", "refused-format": "formats not read",
}  # fmt: skip


class StoppedError(Exception):
    """Somebody asked to stop; nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Pictures (rows of the catalog) and other files that share a finding, and the change of settings that mends it."""

    code: str
    severity: Severity
    title: str
    count: int
    rows_N: Rows
    files: tuple[tuple[str, str], ...] = ()
    """Place and message of what is no row of the catalog."""
    fix: str = ""
    changes: Mapping[str, object] | None = None
    peers: Mapping[int, int] | None = None
    """For duplicates: another row that holds the same picture."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataFacts:
    """What the captions of a plan are like."""

    tokens_N: NDArray[np.int32]
    """Tokens of each caption shown in full, without begin and end and before truncation."""
    limit: int
    """Tokens that the text encoder takes."""
    tags: tuple[tuple[str, int], ...]
    """The most frequent tags (or words, where captions are sentences) with their counts, the most frequent first."""
    num_tags: int
    is_words: bool

    @property
    def truncated_N(self) -> Rows:  # noqa: N802 - a shape suffix
        """The rows whose caption is cut, the longest first."""
        rows_N = np.flatnonzero(self.tokens_N > self.limit)
        return rows_N[np.argsort(-self.tokens_N[rows_N], kind="stable")]


# ---- captions


def full_caption(plan: Plan, row: int) -> str:
    """Return a picture's caption as it is at its longest: nothing dropped, all tokens warmed up, not shuffled."""
    options = _full(plan.subset_of(row).caption)
    key = plan.catalog.keys[row] if options.enable_wildcard else ""
    rng = python_rng(plan.settings.training.seed, "caption", 1, key, 0)
    return process_caption(plan.catalog.captions[row], options, rng, epoch=1, step=1, max_steps=1)


@cache
def tokenizer(*, v2: bool) -> ClipTokenizer:
    """Return the tokenizer of a family, read once."""
    return load_tokenizer(v2=v2)


def tokens_of(plan: Plan, caption: str) -> int:
    """Return the tokens of one caption before truncation."""
    model = plan.settings.model
    return count_tokens([caption], tokenizer(v2=bool(model.v2)), weighted=model.weighted_captions)[0]


def kept_length(plan: Plan, caption: str) -> int:
    """Return how many characters of a caption the text encoder reads, to the end of the last whole word."""
    limit = capacity(plan.settings.model.max_token_length)
    if tokens_of(plan, caption) <= limit:
        return len(caption)
    ends = [match.end() for match in re.finditer(r"\S+", caption)]
    return ends[bisect_right(ends, limit, key=lambda end: tokens_of(plan, caption[:end])) - 1]


def examine(plan: Plan, *, is_stopped: Callable[[], bool] = lambda: False) -> DataFacts:
    """Count tokens and tags of all captions.

    Raises:
        StoppedError: `is_stopped` said so.
    """
    model = plan.settings.model
    clip = tokenizer(v2=bool(model.v2))
    options = [_full(subset.caption) for subset in plan.config.subsets]
    tokens: list[int] = []
    tags: Counter[str] = Counter()
    words: Counter[str] = Counter()
    parts = 0
    for captions in _portions(plan, options):
        _check(is_stopped)
        tokens += count_tokens([text for text, _ in captions], clip, weighted=model.weighted_captions)
        for text, separator in captions:
            found = [part.strip() for part in text.split(separator)]
            tags.update(part for part in found if part)
            words.update(text.lower().replace(separator, " ").split())
            parts += len(found)
    is_words = parts < 2 * len(tokens)
    counts = words if is_words else tags
    return DataFacts(
        tokens_N=np.array(tokens, np.int32),
        limit=capacity(model.max_token_length),
        tags=tuple(counts.most_common(TAGS_KEPT)),
        num_tags=len(counts),
        is_words=is_words,
    )


def _check(is_stopped: Callable[[], bool]) -> None:
    if is_stopped():
        raise StoppedError


def _full(options: CaptionOptions) -> CaptionOptions:
    """Return options under which nothing is dropped, but separators still do what they do in training."""
    return replace(
        options,
        caption_dropout_rate=0.0,
        caption_dropout_every_n_epochs=0,
        caption_tag_dropout_rate=0.0,
        shuffle_caption=False,
        token_warmup_step=1 if options.splits else 0,  # Keeps the caption taken apart; past its end at step 1.
    )


def _portions(plan: Plan, options: Sequence[CaptionOptions]) -> Iterator[list[tuple[str, str]]]:
    """Yield captions with their separators, a portion at a time."""
    subsets = plan.catalog.subsets_N
    for start in range(0, plan.num_images, PORTION):
        rows = range(start, min(start + PORTION, plan.num_images))
        yield [(full_caption(plan, row), options[int(subsets[row])].caption_separator) for row in rows]


def is_same_data(one: Plan, other: Plan) -> bool:
    """Tell whether two plans have the same files and captions and read them alike, so that their facts are the same."""
    return (
        one.settings.model == other.settings.model
        and [subset.caption for subset in one.config.subsets] == [subset.caption for subset in other.config.subsets]
        and np.array_equal(one.catalog.modified_N, other.catalog.modified_N)
        and np.array_equal(one.catalog.subsets_N, other.catalog.subsets_N)
        and one.catalog.paths == other.catalog.paths
        and one.catalog.captions == other.catalog.captions
    )


# ---- finding pictures


def matching(plan: Plan, rows_N: Rows, text: str, *, is_stopped: Callable[[], bool] = lambda: False) -> Rows:
    """Return those rows whose name or caption holds a text, whatever its case.

    Raises:
        StoppedError: `is_stopped` said so.
    """
    wanted = text.casefold()
    keys, captions = plan.catalog.keys, plan.catalog.captions
    found = []
    for number, row in enumerate(rows_N.tolist()):
        if number % MATCHED == 0:
            _check(is_stopped)
        if wanted in keys[row].casefold() or wanted in captions[row].casefold():
            found.append(row)
    return np.array(found, np.int64)


def enlarged(plan: Plan) -> Rows:
    """Return the rows that are smaller than they are trained, those enlarged most first."""
    factor_N = (plan.resized_N2 / plan.catalog.sizes_N2).max(axis=1)
    rows_N = np.flatnonzero(factor_N > 1)
    return rows_N[np.argsort(-factor_N[rows_N], kind="stable")]


# ---- what is wrong


def groups_of(
    problems: Sequence[Problem],
    plan: Plan | None = None,
    facts: DataFacts | None = None,
    duplicates: Sequence[DuplicateGroup] = (),
) -> tuple[Group, ...]:
    """Return every finding once, with all its files, errors first."""
    groups = [_told(code, found, plan) for code, found in _by_code(problems).items()]
    if plan is not None:
        groups += _own(plan, facts, duplicates)
    return tuple(sorted(groups, key=lambda group: (_RANK[group.severity], -group.count)))


def _by_code(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    found: dict[str, list[Problem]] = {}
    for problem in problems:
        found.setdefault(problem.code, []).append(problem)
    return found


def _told(code: str, problems: list[Problem], plan: Plan | None) -> Group:
    """Return what the scan told; it names a few dozen files at most, so missing captions are looked up again."""
    count = sum(int(told[1]) if (told := _COUNT.match(p.message)) and not p.where else 1 for p in problems)
    rows_N = np.array([], np.int64)
    if plan is not None and code in {"no-caption", "empty-caption"}:
        rows_N = np.flatnonzero([not caption for caption in plan.catalog.captions])
    is_bad_file = code in BAD_FILES and problems[0].severity == "error"
    return Group(
        code=code,
        severity=min((problem.severity for problem in problems), key=_RANK.__getitem__),
        title=_TITLES.get(code, code.replace("-", " ")),
        count=count,
        rows_N=rows_N,
        files=() if len(rows_N) else tuple((problem.where, problem.message) for problem in problems),
        fix=f"go on without {'it' if count == 1 else 'them'}" if is_bad_file else problems[0].fix,
        changes={"skip_bad_images": True} if is_bad_file else None,
    )


def _own(plan: Plan, facts: DataFacts | None, duplicates: Sequence[DuplicateGroup]) -> Iterator[Group]:
    """Yield what can be said only now that sizes, buckets and captions are known."""
    rows_N = enlarged(plan)
    if len(rows_N):
        part = all(part.enable_bucket for part in plan.config.datasets)
        yield Group(
            code="enlarged", severity="info", title="enlarged", count=len(rows_N), rows_N=rows_N,
            fix="keep small pictures small" if part else "", changes={"bucket_no_upscale": True} if part else None,
        )  # fmt: skip
    if facts is not None and len(facts.truncated_N):
        wider = {75: 150, 150: 225}.get(facts.limit)
        yield Group(
            code="truncated", severity="warning", title=f"over {facts.limit} tokens",
            count=len(facts.truncated_N), rows_N=facts.truncated_N,
            fix=f"read {wider} tokens" if wider else "shorten them",
            changes={"max_token_length": wider} if wider else None,
        )  # fmt: skip
    rows = [row for group in duplicates for row in group.rows]
    if rows:
        peers = {row: group.rows[0] if row != group.rows[0] else group.rows[1] for group in duplicates
                 for row in group.rows}  # fmt: skip
        yield Group(
            code="duplicates", severity="warning", title="the same picture twice", count=len(rows),
            rows_N=np.array(rows, np.int64), peers=peers,
        )  # fmt: skip


def token_bins(tokens_N: NDArray[np.int32], limit: int, bins: int = 6) -> list[tuple[str, int, bool]]:
    """Return (label, captions, is cut) of equal ranges up to the limit, and one range beyond it."""
    edges = [round(limit * number / (bins - 1)) for number in range(bins)]
    rows = []
    for number, (low, high) in enumerate(pairwise(edges)):
        first = low + 1 if number else 0
        rows.append((f"{first}-{high}", int(((tokens_N >= first) & (tokens_N <= high)).sum()), False))
    return [*rows, (f"{limit + 1}+", int((tokens_N > limit).sum()), True)]

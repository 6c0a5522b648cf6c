"""Scores of a tagger to tags, by sd-scripts' options; its two faults (order of first tags, replacement) left behind.

Torch-free, pure. Dimension key: T tags.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.errors import EngineError, safe_text

Category = Literal["rating", "general", "character", "other"]
_FACE = 3  # Characters up to which underscores are part of a face, such as ^_^.


@dataclass(frozen=True, slots=True, kw_only=True)
class TagOptions:
    """What is made of the scores; names and defaults are those of tag_images_by_wd14_tagger.py.

    `undesired_tags` and `always_first_tags` are compared with tags as they are written, after all replacements.
    """

    thresh: float = 0.35
    general_threshold: float | None = None
    character_threshold: float | None = None
    use_rating_tags: bool = False
    use_rating_tags_as_last_tag: bool = False
    remove_underscore: bool = False
    character_tags_first: bool = False
    character_tag_expand: bool = False
    undesired_tags: tuple[str, ...] = ()
    always_first_tags: tuple[str, ...] = ()
    tag_replacement: Mapping[str, str] = field(default_factory=dict)
    caption_separator: str = ", "

    def threshold(self, category: Category) -> float:
        """Return from which score on a tag of a category is taken."""
        chosen = self.character_threshold if category == "character" else self.general_threshold
        return self.thresh if chosen is None else chosen


@dataclass(frozen=True, kw_only=True)
class TagNames:
    """The tags of a model in the order of its outputs, each with its category, and what the options make of them."""

    names: tuple[str, ...]
    categories: tuple[Category, ...]
    options: TagOptions

    @cached_property
    def written(self) -> tuple[str, ...]:
        """The tags as they are written."""
        return tuple(self._written(name, kind) for name, kind in zip(self.names, self.categories, strict=True))

    def _written(self, name: str, category: Category) -> str:
        options = self.options
        parts = [name]
        if options.character_tag_expand and category == "character":
            parts = _expanded(name)
        if options.remove_underscore:
            parts = [part.replace("_", " ") if len(part) > _FACE else part for part in parts]
        parts = [options.tag_replacement.get(part, part) for part in parts]
        text = options.caption_separator.join(part for part in parts if part)
        # A rule may name the tag as the model spells it, too.
        return options.tag_replacement.get(name, text)

    @cached_property
    def _thresholds(self) -> NDArray[np.float32]:
        """Ratings are no matter of a threshold: the likeliest one is it."""
        return np.array(
            [np.inf if kind == "rating" else self.options.threshold(kind) for kind in self.categories], np.float32
        )

    def tags(self, scores_T: NDArray[np.float32]) -> list[str]:
        """Return the tags of one picture: general, then characters (or the other way round), a rating, as asked for."""
        places = np.flatnonzero(scores_T >= self._thresholds).tolist()
        characters = [self.written[place] for place in places if self.categories[place] == "character"]
        others = [self.written[place] for place in places if self.categories[place] != "character"]
        tags = characters + others if self.options.character_tags_first else others + characters
        rating = self._rating(scores_T)
        if self.options.use_rating_tags:
            tags = [*rating, *tags]
        elif self.options.use_rating_tags_as_last_tag:
            tags = [*tags, *rating]
        undesired = set(self.options.undesired_tags)
        tags = [tag for tag in dict.fromkeys(tags) if tag and tag not in undesired]
        first = [tag for tag in self.options.always_first_tags if tag in tags]
        return [*first, *(tag for tag in tags if tag not in first)]

    def _rating(self, scores_T: NDArray[np.float32]) -> list[str]:
        places = [place for place, kind in enumerate(self.categories) if kind == "rating"]
        return [self.written[max(places, key=lambda place: scores_T[place])]] if places else []

    def text(self, scores_T: NDArray[np.float32]) -> str:
        """Return the tags of one picture as a line."""
        return self.options.caption_separator.join(self.tags(scores_T))

    def ranked(self, scores_T: NDArray[np.float32], most: int = 20) -> tuple[tuple[str, float], ...]:
        """Return the likeliest tags with their scores."""
        order = np.argsort(-scores_T, kind="stable")[:most].tolist()
        return tuple((self.written[place], float(scores_T[place])) for place in order)


def _expanded(name: str) -> list[str]:
    """Return `name_(series)` as name and series; of `name_(costume)_(series)` the last is the series."""
    if not name.endswith(")") or "(" not in name:
        return [name]
    head, _, tail = name[:-1].rpartition("(")
    return [head.removesuffix("_"), tail]


def parse_replacements(text: str) -> dict[str, str]:
    r"""Read `source1,target1;source2,target2`; a backslash before a comma or semicolon makes it part of the tag.

    Raises:
        EngineError: A part is no pair.
    """
    pairs: dict[str, str] = {}
    for part in _split_escaped(text, ";"):
        if not part.strip():
            continue
        words = [word.replace("\\,", ",").replace("\\;", ";").strip() for word in _split_escaped(part, ",")]
        if len(words) != 2 or not words[0]:
            raise EngineError(f"--tag_replacement {safe_text(part)}: expected source,target")
        pairs[words[0]] = words[1]
    return pairs


def _split_escaped(text: str, separator: str) -> list[str]:
    parts = [""]
    is_escaped = False
    for char in text:
        if char == separator and not is_escaped:
            parts.append("")
        else:
            parts[-1] += char
        is_escaped = char == "\\" and not is_escaped
    return parts


def read_list(text: str, separator: str = ",") -> tuple[str, ...]:
    """Return the tags of an option such as `1girl,1boy`."""
    return tuple(tag.strip() for tag in text.split(separator.strip() or separator) if tag.strip())


def check_thresholds(options: TagOptions) -> None:
    """Refuse thresholds that take everything or nothing by mistake.

    Raises:
        EngineError: One is not between 0 and 1.
    """
    for name, value in (
        ("thresh", options.thresh),
        ("general_threshold", options.general_threshold),
        ("character_threshold", options.character_threshold),
    ):
        if value is not None and not 0 <= value <= 1:
            raise EngineError(f"--{name} {value}: expected a number from 0 to 1")


def same_length(names: Sequence[str], outputs: int, where: str) -> None:
    """Refuse a list of tags that belongs to another model.

    Raises:
        EngineError: The numbers differ.
    """
    if len(names) != outputs:
        raise EngineError(
            f"{safe_text(where)}: lists {len(names)} tags but the model has {outputs} outputs; take both from one model"
        )

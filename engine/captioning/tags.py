"""Lines of tags: taking apart, editing over a selection, counting. Torch-free, pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from engine.errors import EngineError, safe_text


def split_tags(text: str, separator: str = ",") -> list[str]:
    """Return the tags of a line, stripped, the empty ones left out."""
    return [tag.strip() for tag in text.replace("\n", separator).split(separator) if tag.strip()]


@dataclass(frozen=True, slots=True, kw_only=True)
class TagEdit:
    """What to do to each line of tags, in this order: rename, remove, add in front, add at the end, order.

    `rename` maps old to new tags ("" removes); `remove` may hold * and ?. `first` are brought to the front in the
    order given where they occur; `sort` puts the others in the order of the alphabet.
    """

    rename: Mapping[str, str] = field(default_factory=dict)
    remove: Sequence[str] = ()
    prepend: Sequence[str] = ()
    append: Sequence[str] = ()
    first: Sequence[str] = ()
    sort: bool = False

    def apply(self, text: str, separator: str = ", ") -> str:
        """Return the line with the edit done; each tag stays once, at its first place."""
        tags = [self.rename.get(tag, tag) for tag in split_tags(text, separator.strip() or separator)]
        tags = [tag for tag in tags if tag and not any(fnmatchcase(tag, pattern) for pattern in self.remove)]
        present = set(tags)
        tags = [tag for tag in self.prepend if tag not in present] + tags
        tags += [tag for tag in self.append if tag not in set(tags)]
        rank = {tag: place for place, tag in enumerate(self.first)}
        tags = sorted(dict.fromkeys(tags), key=lambda tag: rank.get(tag, len(rank)))
        if self.sort:
            tags.sort(key=lambda tag: (rank.get(tag, len(rank)), tag))
        return separator.join(tags)


def parse_renames(words: Iterable[str]) -> dict[str, str]:
    """Read `old=new` words.

    Raises:
        EngineError: One of them has no "=" or no tag before it.
    """
    renames = {}
    for word in words:
        old, equals, new = word.partition("=")
        if not equals or not old.strip():
            raise EngineError(f"--rename {safe_text(word)}: expected OLD=NEW")
        renames[old.strip()] = new.strip()
    return renames


@dataclass(frozen=True, slots=True)
class TagQuery:
    """Which pictures: `cat, !dog | bird*` are those with a cat and no dog, or with a tag that begins with bird."""

    text: str

    def matches(self, tags: Sequence[str]) -> bool:
        """Tell whether a picture's tags are meant; an empty query means all."""
        if not self.text.strip():
            return True
        return any(
            all(_has(tags, term.strip()) for term in split_tags(choice)) for choice in self.text.split("|") if choice
        )


def _has(tags: Sequence[str], term: str) -> bool:
    if term.startswith("!"):
        return not _has(tags, term[1:].strip())
    return any(fnmatchcase(tag, term) for tag in tags)


@dataclass(frozen=True, slots=True, kw_only=True)
class TagStatistics:
    """Counts over the texts of a data set."""

    pictures: int
    without_text: int
    tags: int
    """Different tags."""
    mean_tags: float
    characters: int
    """Of the longest text."""
    most_frequent: tuple[tuple[str, int], ...]

    def as_json(self) -> dict[str, object]:
        """Return the JSON object of `data stats --json`."""
        return {
            "pictures": self.pictures,
            "without_text": self.without_text,
            "tags": self.tags,
            "mean_tags": round(self.mean_tags, 3),
            "longest_characters": self.characters,
            "most_frequent": [{"tag": tag, "pictures": count} for tag, count in self.most_frequent],
        }


def statistics(texts: Iterable[str | None], *, most: int = 20, separator: str = ",") -> TagStatistics:
    """Count tags; the most frequent first, those of the same count by the alphabet."""
    counts: Counter[str] = Counter()
    pictures = without = longest = total = 0
    for text in texts:
        pictures += 1
        tags = split_tags(text or "", separator)
        without += not tags
        longest = max(longest, len(text or ""))
        total += len(tags)
        counts.update(set(tags))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return TagStatistics(
        pictures=pictures,
        without_text=without,
        tags=len(counts),
        mean_tags=total / max(1, pictures - without),
        characters=longest,
        most_frequent=tuple(ranked[:most]),
    )

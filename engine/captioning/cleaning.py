"""Cleaning by a table that the user may edit: whole tags, whole words. Torch-free, pure but for reading the table."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import Field, ValidationError

from engine.captioning import classic
from engine.captioning.tags import split_tags
from engine.errors import EngineError, safe_text
from engine.resources import FOLDER
from engine.settings import Section
from engine.toml import nearest, read_toml

CLASSIC = "classic"
TABLES: Mapping[str, Path] = {
    "default": FOLDER / "cleaning.toml",
    "drawings": FOLDER / "cleaning_drawings.toml",
}

_SHORT = 3  # Characters up to which a tag with underscores is a face such as ^_^ or >_<.


class Several(Section):
    """What can't be told apart between several people."""

    people: list[str] = Field([], description="Tags that say there are several people; * and ? stand for anything.")
    features: list[list[str]] = Field([], description="Lists of tags of which one person has one.")
    # An underscore keeps Python's own word out of the attribute's name; the file says `except`.
    except_: list[str] = Field([], alias="except", description="Tags that a pattern with * does not mean.")


class TagRules(Section):
    """How tags are cleaned."""

    underscores: bool = Field(True, description="Turn underscores into blanks.")
    duplicates: bool = Field(True, description="Keep the first of the same tag twice.")
    covered: bool = Field(True, description="Drop a tag that is the last word of a longer one.")
    remove: list[str] = Field([], description="Tags to drop; * and ? stand for anything.")
    several: Several = Field(default_factory=Several, description="What goes where several people are.")
    rename: dict[str, str] = Field({}, description="Tags to replace by others, or by nothing.")


class CaptionRules(Section):
    """How captions are cleaned."""

    blanks: bool = Field(True, description="Turn several blanks into one.")
    repeats: bool = Field(True, description="Turn the same word twice in a row into one.")
    replace: dict[str, str] = Field({}, description="Whole words to replace, in this order.")


class CleaningTable(Section):
    """The rules of a cleaning table."""

    tags: TagRules = Field(default_factory=TagRules, description="How tags are cleaned.")
    captions: CaptionRules = Field(default_factory=CaptionRules, description="How captions are cleaned.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaner:
    """Two functions: of a line of tags, and of a caption."""

    tags: Callable[[str], str]
    caption: Callable[[str], str]


def make_cleaner(rules: str) -> Cleaner:
    """Return the cleaner for "classic", "default", "drawings" or a table's path.

    Raises:
        EngineError: It is no such name and no readable table; every wrong key is named.
    """
    if rules == CLASSIC:
        return Cleaner(tags=classic.clean_tags, caption=classic.clean_caption)
    path = TABLES.get(rules, Path(rules))
    if rules not in TABLES and not path.is_file():
        known = [CLASSIC, *TABLES]
        hint = nearest(rules, known)
        raise EngineError(f"--rules {safe_text(rules)}: neither a table of rules nor one of {', '.join(known)}{hint}")
    file = read_toml(path)
    try:
        table = CleaningTable.model_validate(file.data)
    except ValidationError as error:
        lines = [f"{file.place(*detail['loc'])}: {detail['msg']}" for detail in error.errors(include_url=False)]
        raise EngineError("\n".join(lines)) from error
    return Cleaner(
        tags=lambda text: clean_tag_line(text, table.tags),
        caption=lambda text: clean_words(text, table.captions),
    )


def clean_tag_line(text: str, rules: TagRules) -> str:
    """Return a line of tags cleaned by whole-tag rules, joined by ", "."""
    tags = split_tags(text)
    if rules.underscores:
        tags = [tag if len(tag) <= _SHORT else tag.replace("_", " ") for tag in tags]
    tags = [rules.rename.get(tag, tag) for tag in tags]
    tags = [tag for tag in tags if tag and not _is_any(tag, rules.remove)]
    if any(_is_any(tag, rules.several.people) for tag in tags):
        for feature in rules.several.features:
            found = [tag for tag in tags if _is_feature(tag, feature, rules.several)]
            if len(set(found)) > 1:
                tags = [tag for tag in tags if tag not in found]
    if rules.duplicates:
        tags = list(dict.fromkeys(tags))
    if rules.covered:
        endings = {ending for tag in tags for ending in _endings(tag)}
        tags = [tag for tag in tags if tag not in endings]
    return ", ".join(tags)


def _is_any(tag: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(tag, pattern) for pattern in patterns)


def _is_feature(tag: str, patterns: Sequence[str], several: Several) -> bool:
    return tag in patterns or (_is_any(tag, patterns) and tag not in several.except_)


def _endings(tag: str) -> list[str]:
    """Return the shorter tags that a tag says more exactly: of "white collared shirt" the other two."""
    words = tag.split(" ")
    return [" ".join(words[start:]) for start in range(1, len(words))]


def clean_words(text: str, rules: CaptionRules) -> str:
    """Return a caption cleaned by whole-word rules; lines stay lines."""
    return "\n".join(_clean_line(line, rules) for line in text.split("\n"))


def _clean_line(line: str, rules: CaptionRules) -> str:
    for old, new in rules.replace.items():
        line = _until_still(rf"(?<!\w){re.escape(old)}(?!\w)", new, line)
    if rules.repeats:
        line = _until_still(r"(?<!\w)(\w+)\s+\1(?!\w)", r"\1", line)
    if rules.blanks or rules.replace:
        line = re.sub(r"\s+", " ", line).strip()
        line = re.sub(r" ([,.;])", r"\1", line)
    return line


def _until_still(pattern: str, new: str, line: str) -> str:
    for _round in range(20):  # A rule that brings its own word back would never come to rest.
        changed = re.sub(pattern, new, line, flags=re.IGNORECASE)
        if changed == line:
            break
        line = changed
    return line

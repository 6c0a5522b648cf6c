"""sd-scripts' cleaning of tags and captions, character for character, faults included. Torch-free, pure.

Its rules replace inside words ("personal" becomes "girlal"); engine/captioning/cleaning.py has rules for whole words.
"""

import re

_HAIR_LENGTH = re.compile(r", (long|short|medium) hair, ")
_HAIR = re.compile(r", ([\w\-]+) hair, ")
_WORD = re.compile(r", ([\w\-]+|hair ornament), ")
# What can't be told apart once several people are in the picture: dropped where there is more than one of a kind.
_OF_ONE_PERSON = (
    _HAIR_LENGTH,
    re.compile(r", (bob|hime) cut, "),
    re.compile(r", [\w\-]+ eyes, "),
    re.compile(r", ([\w\-]+ sleeves|sleeveless), "),
    re.compile(
        r", (ponytail|braid|ahoge|twintails|[\w\-]+ bun|single hair bun|single side bun|two side up|two tails"
        r"|[\w\-]+ braid|sidelocks), "
    ),
)
_KEPT_HAIR = ", @@@, "
_REPLACEMENTS = (
    ("anime anime", "anime"),
    ("young ", ""),
    *((f"{adjective} {noun}", plain) for adjective, noun, plain in (
        ("anime", "girl", "girl"), ("cartoon", "female", "girl"), ("cartoon", "lady", "girl"),
        ("cartoon", "character", "girl"), ("cartoon", "woman", "girl"), ("cartoon", "women", "girls"),
        ("cartoon", "girl", "girl"), ("anime", "female", "girl"), ("anime", "lady", "girl"),
        ("anime", "character", "girl"), ("anime", "woman", "girl"), ("anime", "women", "girls"),
    )),
    ("lady", "girl"),
    ("female", "girl"),
    ("woman", "girl"),
    ("women", "girls"),
    ("people", "girls"),
    ("person", "girl"),
    ("a cartoon figure", "a figure"),
    ("a cartoon image", "an image"),
    ("a cartoon picture", "a picture"),
    ("an anime cartoon image", "an image"),
    ("a cartoon anime drawing", "a drawing"),
    ("a cartoon drawing", "a drawing"),
    ("girl girl", "girl"),
)  # fmt: skip


def clean_tags(tags: str) -> str:
    """Return a line of tags cleaned as `clean_captions_and_tags.py` does it.

    Underscores become blanks (`^_^` stays), everything from the first ", rating" on goes, what can't be told apart
    between several girls or boys goes, and so does a word that another tag ends with ("shirt" beside "white shirt").
    """
    tags = "^_^".join(part.replace("_", " ") for part in tags.split("^_^"))
    tags = tags.split(", rating", 1)[0]
    # Every tag gets separators of its own, since a match uses up both.
    tags = f", {tags.replace(', ', ', , ')}, "
    if "girls" in tags or "boys" in tags:
        tags = _without_features(tags)
    for word in _WORD.findall(tags):
        if re.search(rf", ((\w+) )+{word}, ", tags):
            tags = tags.replace(f", {word}, ", "")
    return tags.replace(", , ", ", ")[2:-2]


def _without_features(tags: str) -> str:
    for pattern in _OF_ONE_PERSON:
        tags = _without_several(tags, pattern)
    length = _HAIR_LENGTH.search(tags)
    if length is None:
        return _without_several(tags, _HAIR)
    # A hair length that all of them share is no colour, so it is kept out of the count.
    tags = _without_several(_HAIR_LENGTH.sub(_KEPT_HAIR, tags), _HAIR)
    return tags.replace(_KEPT_HAIR, length[0])


def _without_several(tags: str, pattern: re.Pattern[str]) -> str:
    return pattern.sub("", tags) if len(pattern.findall(tags)) > 1 else tags


def clean_caption(caption: str) -> str:
    """Return a caption with sd-scripts' replacements of 2022, in their order, each until nothing changes any more."""
    for old, new in _REPLACEMENTS:
        while old in caption:
            caption = caption.replace(old, new)
    return caption

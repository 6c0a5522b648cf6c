"""A picture's caption as it is shown at one step: wildcards, shuffling, dropping; sd-scripts' rules. Torch-free."""

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_WILDCARD = re.compile(r"\{([^}]+)\}")
# What stands for {{ and }} while wildcards are replaced; made longer where a caption contains it.
_OPEN, _CLOSE = "\u2985", "\u2986"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionOptions:
    """What is done to the captions of a subset; names and defaults are sd-scripts'.

    `replacements` maps text to its replacement; under "" stands what replaces whole captions (one of a list is drawn).
    """

    caption_prefix: str | None = None
    caption_suffix: str | None = None
    caption_dropout_rate: float = 0.0
    caption_dropout_every_n_epochs: int = 0
    enable_wildcard: bool = False
    shuffle_caption: bool = False
    token_warmup_step: float = 0
    token_warmup_min: int = 1
    caption_tag_dropout_rate: float = 0.0
    keep_tokens_separator: str = ""
    keep_tokens: int = 0
    caption_separator: str = ","
    secondary_separator: str | None = None
    replacements: Mapping[str, str | Sequence[str]] = field(default_factory=dict)

    @property
    def splits(self) -> bool:
        """Whether captions are taken apart at the separator and joined again with ", "."""
        return self.shuffle_caption or self.token_warmup_step > 0 or self.caption_tag_dropout_rate > 0


def is_static(options: CaptionOptions) -> bool:
    """Whether a caption is the same at every step, so that what the text encoder makes of it can be kept."""
    is_dropped = options.caption_dropout_rate > 0 or options.caption_dropout_every_n_epochs > 0
    is_drawn = options.enable_wildcard or not isinstance(options.replacements.get("", ""), str)
    return not (options.splits or is_dropped or is_drawn)


def process_caption(
    caption: str, options: CaptionOptions, rng: random.Random, *, epoch: int, step: int, max_steps: int
) -> str:
    """Return the caption to train on.

    Args:
        caption: The text as read, possibly of several lines.
        options: What to do to it.
        rng: Where draws come from; their number and order are sd-scripts'.
        epoch: Counted from 1.
        step: Optimizer steps done, from 0; only token warmup asks for it.
        max_steps: Optimizer steps of the whole run, for a warmup given as a share of it.
    """
    if options.caption_prefix:
        caption = f"{options.caption_prefix} {caption}"
    if options.caption_suffix:
        caption = f"{caption} {options.caption_suffix}"
    if _is_dropped(options, rng, epoch):
        return ""
    caption = _draw_wildcards(caption, rng) if options.enable_wildcard else caption.split("\n")[0]
    if options.splits:
        fixed, flexible, suffix = _split(caption, options)
        flexible = flexible[: _warm_length(len(flexible), options, step, max_steps)]
        if options.shuffle_caption:
            rng.shuffle(flexible)
        if options.caption_tag_dropout_rate > 0:
            flexible = [token for token in flexible if rng.random() >= options.caption_tag_dropout_rate]
        caption = ", ".join([*fixed, *flexible, *suffix])
    if options.secondary_separator:
        caption = caption.replace(options.secondary_separator, options.caption_separator)
    return _replace(caption, options.replacements, rng)


def caption_text(caption: str | None, tags: str | None, separator: str = ",", *, enable_wildcard: bool = False) -> str:
    """Join the caption and the tags of a metadata entry; with wildcards every line of the caption gets the tags."""
    caption, tags = caption or "", tags or ""
    if enable_wildcard:
        tags = tags.replace("\n", separator)
        lines = [line for line in caption.split("\n") if line.strip()]
    else:
        lines = [caption] if caption else []
    return "\n".join(f"{line}{separator}{tags}" for line in lines) if tags and lines else "\n".join(lines) or tags


def _is_dropped(options: CaptionOptions, rng: random.Random, epoch: int) -> bool:
    if options.caption_dropout_rate > 0 and rng.random() < options.caption_dropout_rate:
        return True
    every = options.caption_dropout_every_n_epochs
    return every > 0 and epoch % every == 0


def _draw_wildcards(caption: str, rng: random.Random) -> str:
    """Draw one line, then one of each {a|b|c}; {{ and }} are plain braces."""
    if "\n" in caption:
        caption = rng.choice(caption.split("\n"))
    opening, closing = _OPEN, _CLOSE
    while opening in caption or closing in caption:
        opening, closing = opening + _OPEN, closing + _CLOSE
    caption = caption.replace("{{", opening).replace("}}", closing)
    caption = _WILDCARD.sub(lambda match: rng.choice(match[1].split("|")), caption)
    return caption.replace(opening, "{").replace(closing, "}")


def _split(caption: str, options: CaptionOptions) -> tuple[list[str], list[str], list[str]]:
    """Return the tokens that stay in front, those that may move or drop out, and those that stay at the end."""
    separator = options.caption_separator
    mark = options.keep_tokens_separator
    if mark and mark in caption:
        parts = caption.split(mark, 2)
        fixed, flexible, suffix = (
            [token.strip() for token in part.split(separator) if token.strip()] for part in [*parts, ""][:3]
        )
        return fixed, flexible, suffix
    tokens = [token.strip() for token in caption.strip().split(separator)]
    return tokens[: options.keep_tokens], tokens[options.keep_tokens :], []


def _warm_length(count: int, options: CaptionOptions, step: int, max_steps: int) -> int:
    """Return how many of `count` movable tokens are shown at a step: from the minimum up to all of them."""
    warmup = options.token_warmup_step
    if warmup < 1:
        warmup = math.floor(warmup * max_steps)
    if step >= warmup:
        return count
    least = options.token_warmup_min
    return math.floor(step * ((count - least) / warmup)) + least


def _replace(caption: str, replacements: Mapping[str, str | Sequence[str]], rng: random.Random) -> str:
    for old, new in replacements.items():
        text = new if isinstance(new, str) else rng.choice(new)
        caption = caption.replace(old, text) if old else text
    return caption

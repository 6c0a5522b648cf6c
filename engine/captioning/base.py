"""What every captioner offers, and the options it is made with. Torch-free."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from engine.captioning.tagging import TagOptions
from engine.pixels import Array
from engine.setting_types import CaptionerName, MixedPrecision

Kind = Literal["caption", "tags"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a captioner says of a picture: the text to write, and for taggers the likeliest tags with their scores."""

    text: str
    scores: tuple[tuple[str, float], ...] = ()


class Captioner(Protocol):
    """A model that describes pictures."""

    name: CaptionerName
    kind: Kind
    source: str
    """The model: a folder, or repository and commit on the hub."""
    identity: str
    """Differs whenever a picture could get another text: only its equal goes on with an interrupted run."""

    def prepare(self, pixels_HWC: Array) -> Any:  # noqa: ANN401 - what `describe` takes is the captioner's own affair
        """Turn a whole picture, RGB uint8, into the model's input; called in several threads."""

    def describe(self, batch: Sequence[Any], keys: Sequence[str]) -> list[Described]:
        """Describe prepared pictures; `keys` name them, so that what is drawn for one is drawn again the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionerOptions:
    """How a captioner is made; names are those of sd-scripts' make_captions.py where it has one.

    `model` is a folder or hub id, "" for the captioner's usual one.
    """

    model: str = ""
    revision: str = ""
    """Of a model on the hub: a branch, tag or commit; "" for the newest."""
    tags: TagOptions = field(default_factory=TagOptions)
    beam_search: bool = False
    num_beams: int = 1
    top_p: float = 0.9
    min_length: int = 5
    max_length: int = 75
    seed: int = 42
    mixed_precision: MixedPrecision = "no"
    num_threads: int = 0
    """Of the model on the CPU; 0 for all cores."""


Progress = Callable[[str], None]


def identity_of(folder: Path, names: Sequence[str], *options: object) -> str:
    """Return a name for a model and its options: by its files' names, sizes and times."""
    stamps = [(name, (folder / name).stat().st_size, (folder / name).stat().st_mtime_ns) for name in names]
    return hashlib.blake2b(repr((str(folder), stamps, options)).encode(), digest_size=12).hexdigest()

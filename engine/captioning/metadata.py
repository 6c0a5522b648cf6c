"""Metadata of a data set from its caption files: merging, and the cleaning by sd-scripts' rules. Torch-free, pure.

A metadata object maps keys to `{"caption": str, "tags": str, ...}`; other members of an entry are kept as they are.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from engine.captioning.classic import clean_caption, clean_tags
from engine.dataset.walk import PICTURE_SUFFIXES
from engine.errors import EngineError, safe_text

__all__ = [
    "Keys",
    "MergeOptions",
    "Metadata",
    "MissingTextError",
    "TextField",
    "clean_caption",
    "clean_tags",
    "dump",
    "merge",
]

TextField = Literal["caption", "tags"]
Keys = Literal["path", "classic"]
Metadata = dict[str, dict[str, Any]]

EXTENSIONS: Mapping[TextField, str] = {"caption": ".caption", "tags": ".txt"}
_CLASSIC_SUFFIXES = frozenset(
    suffix for lower in (".png", ".jpg", ".jpeg", ".webp", ".bmp") for suffix in (lower, lower.upper())
)


class MissingTextError(EngineError, FileNotFoundError):
    """A picture has no caption file, where the classic rules ask for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """How pictures are named and found; names are those of sd-scripts' tools.

    `keys` "classic" names a picture by its stem (so a.jpg and a.png are one), demands a caption file of every picture
    and knows the suffixes of sd-scripts; "path" names it by its path below the folder, which is what training finds.
    `full_path` names it by its whole path. `caption_extension` None is .caption for captions and .txt for tags.
    """

    keys: Keys = "classic"
    full_path: bool = False
    recursive: bool = False
    caption_extension: str | None = None


def merge(
    files: Mapping[str, str | None],
    in_json: Mapping[str, Mapping[str, Any]] | None = None,
    options: MergeOptions | None = None,
    *,
    field: TextField = "caption",
    image_dir: str = "",
) -> Metadata:
    """Return the metadata with the text of every picture's caption file taken in.

    Args:
        files: What lies in the folder, by path from it with "/": None for pictures, the text for caption files.
        in_json: The metadata so far; what is said there of other pictures and in other members stays.
        options: How pictures are named; by default as sd-scripts names them.
        field: "caption" for what merge_captions_to_metadata.py does, "tags" for merge_dd_tags_to_metadata.py.
        image_dir: The folder, put in front of the path where `full_path` asks for it.

    Raises:
        MissingTextError: A picture has no caption file, under the classic rules; it is a FileNotFoundError too.
        EngineError: `recursive` without `full_path` under the classic rules, where stems would collide.
    """
    options = options or MergeOptions()
    if options.keys == "classic" and options.recursive and not options.full_path:
        raise EngineError("--recursive needs --full_path under --keys classic: stems of several folders would collide")
    extension = options.caption_extension or EXTENSIONS[field]
    metadata = {key: dict(entry) for key, entry in (in_json or {}).items()}
    pictures = picture_names(files, options)
    stems = _stem_counts(pictures)
    for name in pictures:
        text_name = str(PurePosixPath(name).with_suffix(extension))
        text = files.get(text_name)
        if text is None and options.keys == "classic":
            raise MissingTextError(f"{safe_text(_joined(image_dir, text_name))}: no such caption file")
        if text is None:
            continue
        key = _key(name, image_dir, options)
        if options.keys == "path" and stems[_stem(name)] == 1:
            metadata = _renamed(metadata, _stem(name), key)
        metadata.setdefault(key, {})[field] = text.strip()
    return metadata


def picture_names(names: Iterable[str], options: MergeOptions) -> list[str]:
    """Return the pictures among file names, in the order in which sd-scripts goes through them."""
    suffixes = _CLASSIC_SUFFIXES if options.keys == "classic" else PICTURE_SUFFIXES
    found = []
    for name in names:
        suffix = PurePosixPath(name).suffix
        is_picture = (suffix if options.keys == "classic" else suffix.lower()) in suffixes
        if is_picture and (options.recursive or "/" not in name):
            found.append(name)
    return sorted(found, key=lambda name: PurePosixPath(name).parts)


def _key(name: str, image_dir: str, options: MergeOptions) -> str:
    if options.full_path:
        return _joined(image_dir, name)
    return PurePosixPath(name).stem if options.keys == "classic" else name


def _joined(image_dir: str, name: str) -> str:
    return f"{image_dir.rstrip('/')}/{name}" if image_dir else name


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _stem_counts(pictures: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in pictures:
        counts[_stem(name)] = counts.get(_stem(name), 0) + 1
    return counts


def _renamed(metadata: Metadata, stem: str, key: str) -> Metadata:
    """Give a picture that sd-scripts named by its stem its path as key, in the same place of the file."""
    if stem not in metadata or key in metadata or stem == key:
        return metadata
    return {key if old == stem else old: entry for old, entry in metadata.items()}


def dump(metadata: Mapping[str, Mapping[str, Any]], *, is_lines: bool = False) -> str:
    """Return metadata as the text of a .json as sd-scripts writes it, or of a .jsonl with image_path in each line."""
    if not is_lines:
        return json.dumps(metadata, indent=2)
    return "".join(json.dumps({"image_path": key, **entry}) + "\n" for key, entry in metadata.items())

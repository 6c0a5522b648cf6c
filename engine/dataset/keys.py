"""The keys of dataset.toml: sd-scripts' dataset_config schema, checked with file, line and nearest key. Torch-free.

What a key means, its type and its bounds are those of the setting of the same name, said once in engine/settings.py.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from engine.errors import EngineError, Problem, safe_text
from engine.settings import DatasetSettings, Section, TrainingSettings
from engine.toml import MAX_BYTES, TomlFile, nearest, read_toml

KeyPath = tuple[str | int, ...]

# Key of dataset.toml -> the setting it stands for.
SUBSET_SETTINGS: Mapping[str, str] = {
    "num_repeats": "dataset_repeats",
    **{
        name: name
        for name in (
            "caption_extension", "shuffle_caption", "caption_separator", "keep_tokens", "keep_tokens_separator",
            "secondary_separator", "enable_wildcard", "caption_prefix", "caption_suffix", "caption_dropout_rate",
            "caption_dropout_every_n_epochs", "caption_tag_dropout_rate", "token_warmup_min", "token_warmup_step",
            "flip_aug", "color_aug", "random_crop", "face_crop_aug_range", "resize_interpolation", "alpha_mask",
        )
    },
}  # fmt: skip
PART_SETTINGS: Mapping[str, str] = {
    "batch_size": "train_batch_size",
    **{
        name: name
        for name in (
            "resolution", "enable_bucket", "bucket_no_upscale", "bucket_reso_steps", "min_bucket_reso",
            "max_bucket_reso", "validation_split", "validation_seed",
        )
    },
}  # fmt: skip

# Keys of sd-scripts that are refused by name: (value that changes nothing, why, what to do).
REFUSED: Mapping[str, tuple[Any, str, str]] = {
    "custom_attributes": ({}, "data-set plug-ins are not available yet", "remove it"),
    "network_multiplier": (1, "it belongs to LoRA, which this program does not train", "remove it"),
    "is_reg": (False, "regularisation pictures belong to DreamBooth", "train them as pictures of their own"),
    "class_tokens": (None, "captions come from files here", "write it into the captions, or set caption_prefix"),
    "cache_info": (False, "sizes and captions are always kept in an index", "remove it"),
}


def _keys(settings: Mapping[str, str]) -> dict[str, Any]:
    known: dict[str, FieldInfo] = {**DatasetSettings.model_fields, **TrainingSettings.model_fields}
    fields = {}
    for key, setting in settings.items():
        field = known[setting]
        bounded = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        fields[key] = (bounded | None, Field(None, description=field.description))  # type: ignore[operator]
    return fields


class _Shared(Section):
    """Keys that may stand on every level; the innermost wins."""

    recursive: bool | None = Field(None, description="Read the pictures of folders inside image_dir too.")


_SubsetBase: type[BaseModel] = create_model("_SubsetBase", __base__=_Shared, **_keys(SUBSET_SETTINGS))
_PartBase: type[BaseModel] = create_model("_PartBase", __base__=_SubsetBase, **_keys(PART_SETTINGS))


class General(_PartBase):
    """[general]: what holds for every data set unless it says otherwise."""


class SubsetKeys(_SubsetBase):
    """[[datasets.subsets]]: one folder of pictures, or one metadata file."""

    image_dir: str | None = Field(
        None, min_length=1, description="Folder of the pictures; relative paths count from this file's folder."
    )
    metadata_file: str | None = Field(
        None,
        min_length=1,
        description="Captions and tags as JSON or JSONL; without it .caption or .txt files are read.",
    )
    conditioning_data_dir: str | None = Field(
        None, min_length=1, description="Folder of masks with the pictures' names, for masked_loss."
    )


class PartKeys(_PartBase):
    """[[datasets]]: pictures that share a resolution and a batch size."""

    subsets: list[SubsetKeys] = Field(min_length=1, description="The folders or metadata files.")


class DatasetFile(Section):
    """A data-set configuration in sd-scripts' format."""

    general: General = Field(
        default_factory=General, description="What holds for every data set unless it says otherwise."
    )
    datasets: list[PartKeys] = Field(min_length=1, description="The data sets.")


def dataset_json_schema() -> dict[str, Any]:
    """Return the JSON Schema of dataset.toml."""
    return DatasetFile.model_json_schema(mode="validation")


def read_dataset_file(path: Path) -> TomlFile:
    """Read a dataset.toml, or the same as JSON.

    Raises:
        EngineError: It is missing, too large, or neither TOML nor JSON.
    """
    if path.suffix.lower() != ".json":
        return read_toml(path)
    shown = safe_text(str(path))
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise EngineError(f"{shown}: larger than {MAX_BYTES // 1000} kB, so it is no settings file")
        data = json.loads(raw.decode("utf-8-sig"))
    except OSError as error:
        raise EngineError(f"{shown}: can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{shown}: not valid JSON: {safe_text(str(error))}") from error
    if not isinstance(data, dict):
        raise EngineError(f"{shown}: expected an object with the key 'datasets'")
    return TomlFile(path=path, data=data, lines={})


def check_keys(file: TomlFile) -> tuple[DatasetFile | None, list[Problem]]:
    """Return the checked keys, or None with every problem found."""
    problems: list[Problem] = []
    data = _without_refused(file.data, (), file, problems)
    try:
        checked = DatasetFile.model_validate(data)
    except ValidationError as error:
        seen: set[KeyPath] = set()
        for detail in error.errors(include_url=False):
            place = _place(data, detail["loc"])
            if place not in seen:  # A union repeats the complaint for each of its members.
                seen.add(place)
                problems.append(_as_problem(file, place, detail))
        return None, problems
    return (None if problems else checked), problems


def _without_refused(value: object, place: KeyPath, file: TomlFile, problems: list[Problem]) -> object:
    """Return the tree without the keys that are refused by name; each that would change something is a problem."""
    if isinstance(value, list):
        return [_without_refused(item, (*place, index), file, problems) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, inner in value.items():
        if key not in REFUSED:
            kept[key] = _without_refused(inner, (*place, key), file, problems)
            continue
        harmless, reason, fix = REFUSED[key]
        if inner != harmless:
            message = f"{key} = {safe_text(repr(inner))}: {reason}"
            where = file.place(*place, key)
            problems.append(Problem(code="not-available", severity="error", where=where, message=message, fix=fix))
    return kept


def _place(data: object, loc: KeyPath) -> KeyPath:
    """Return the part of an error's location that is a key of the file, without the names of types behind it."""
    place: KeyPath = ()
    for part in loc:
        if isinstance(data, dict) and (part in data or part in {"datasets", "subsets"}):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int):
            data = data[part] if part < len(data) else None
        else:
            break
        place = (*place, part)
    return place


def _as_problem(file: TomlFile, place: KeyPath, detail: Mapping[str, Any]) -> Problem:
    key = str(place[-1]) if place else ""
    where = file.place(*place)
    if detail["type"] == "extra_forbidden":
        message = f"{safe_text(key)} is not a key {_level_name(place)}{_hint(key, place)}"
        return Problem(code="unknown-key", severity="error", where=where, message=message)
    if detail["type"] in {"missing", "too_short"} and key in {"datasets", "subsets"}:
        message = f"no [[{'datasets.' if key == 'subsets' else ''}{key}]] is given"
        fix = "add one with image_dir"
        return Problem(code="missing-key", severity="error", where=where, message=message, fix=fix)
    expected = detail["msg"].removeprefix("Value error, ")
    expected = expected[:1].lower() + expected[1:]
    hint = ""
    if detail["type"] == "literal_error" and isinstance(detail["input"], str):
        hint = nearest(detail["input"], detail["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", "))
    message = f"{safe_text(key)} = {safe_text(repr(detail['input']))}: {expected}{hint}"
    return Problem(code="bad-value", severity="error", where=where, message=message)


def _levels() -> Iterator[tuple[str, type[BaseModel]]]:
    yield "of [general]", General
    yield "of [[datasets]]", PartKeys
    yield "of [[datasets.subsets]]", SubsetKeys


def _level_name(place: KeyPath) -> str:
    names = [part for part in place[:-1] if isinstance(part, str)]
    return {"general": "of [general]", "datasets": "of [[datasets]]", "subsets": "of [[datasets.subsets]]"}.get(
        names[-1] if names else "", "of a data-set file"
    )


def _hint(key: str, place: KeyPath) -> str:
    """Say on which level the key is at home, else what is spelled like it."""
    levels = dict(_levels())
    homes = [name.removeprefix("of ") for name, model in levels.items() if key in model.model_fields]
    if homes:
        return f"; it belongs to {' or '.join(homes)}"
    own = levels.get(_level_name(place), DatasetFile).model_fields
    return nearest(key, [*own, *SUBSET_SETTINGS, *PART_SETTINGS])

"""The data sets of a run: dataset.toml resolved level by level, or one folder named on the command line. Torch-free."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from engine.dataset.augment import AugmentOptions
from engine.dataset.buckets import Size, adjust_limits, bucket_resolutions
from engine.dataset.captions import CaptionOptions
from engine.dataset.keys import (
    PART_SETTINGS,
    SUBSET_SETTINGS,
    DatasetFile,
    check_keys,
    dataset_json_schema,
    read_dataset_file,
)
from engine.errors import EngineError, Problem, ProblemsError, Severity, safe_text
from engine.paths import written_path
from engine.setting_types import Interpolation
from engine.toml import TomlFile

__all__ = ["DatasetConfig", "DatasetPart", "Subset", "dataset_json_schema", "load_dataset_config"]

MAX_PIXELS = 64_000_000
_CAPTION_KEYS = tuple(item.name for item in dataclasses.fields(CaptionOptions) if item.name != "replacements")
_AUGMENT_KEYS = tuple(item.name for item in dataclasses.fields(AugmentOptions))
_PATHS = {"image_dir": "train_data_dir", "metadata_file": "in_json"}
_SETTING_OF = {**SUBSET_SETTINGS, **PART_SETTINGS, **_PATHS}
# Keys that do nothing unless one of the others is set.
_NEEDS: Mapping[str, tuple[str, ...]] = {
    "keep_tokens": ("shuffle_caption", "caption_tag_dropout_rate", "token_warmup_step"),
    "keep_tokens_separator": ("shuffle_caption", "caption_tag_dropout_rate", "token_warmup_step"),
    "token_warmup_min": ("token_warmup_step",),
    "bucket_no_upscale": ("enable_bucket",),
    "bucket_reso_steps": ("enable_bucket",),
    "min_bucket_reso": ("enable_bucket",),
    "max_bucket_reso": ("enable_bucket",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """One folder of pictures with caption files, or one metadata file whose keys count from `image_dir`."""

    image_dir: Path
    metadata_file: Path | None = None
    num_repeats: int = 1
    caption_extension: str = ".caption"
    recursive: bool = False
    resize_interpolation: Interpolation | None = None
    alpha_mask: bool = False
    conditioning_data_dir: Path | None = None
    caption: CaptionOptions = field(default_factory=CaptionOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetPart:
    """Pictures that share a resolution, buckets and a batch size: one [[datasets]]."""

    resolution: Size = (512, 512)
    batch_size: int = 1
    enable_bucket: bool = False
    bucket_no_upscale: bool = False
    min_bucket_reso: int = 256
    max_bucket_reso: int = 1024
    bucket_reso_steps: int = 64
    validation_split: float = 0.0
    validation_seed: int | None = None
    subsets: tuple[Subset, ...]
    given: frozenset[str] = field(default=frozenset(), compare=False)
    """Keys that the data-set file gives, so that a setting of their kind does nothing."""

    @property
    def no_upscale(self) -> bool:
        """Whether buckets are made for the pictures rather than chosen from `resolutions`."""
        return self.enable_bucket and self.bucket_no_upscale

    @property
    def resolutions(self) -> list[Size]:
        """The buckets to choose from; the resolution alone where buckets are off."""
        if not self.enable_bucket:
            return [self.resolution]
        return bucket_resolutions(self.resolution, self.min_bucket_reso, self.max_bucket_reso, self.bucket_reso_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """All data sets of a run, and what to note about how they were configured."""

    datasets: tuple[DatasetPart, ...]
    max_pixels: int = MAX_PIXELS
    skip_bad_images: bool = False
    problems: tuple[Problem, ...] = ()

    @property
    def subsets(self) -> tuple[Subset, ...]:
        """The subsets of all data sets in order; a catalog counts into this."""
        return tuple(subset for part in self.datasets for subset in part.subsets)

    @property
    def part_of_subset(self) -> tuple[int, ...]:
        """The number of the data set that each subset belongs to."""
        return tuple(index for index, part in enumerate(self.datasets) for _ in part.subsets)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    """A subset's or data set's values, innermost first, and where each stands in the file."""

    tables: tuple[tuple[tuple[str | int, ...], BaseModel], ...]
    defaults: Mapping[str, Any]
    file: TomlFile | None

    def value(self, key: str) -> Any:  # noqa: ANN401 - as many types as there are keys
        """Return the innermost value of a key, else that of the command line, else None."""
        for _, table in self.tables:
            found = getattr(table, key, None)
            if found is not None:
                return found
        if key in _PATHS and self.file is not None:
            return None  # train_data_dir and in_json belong to a run without a data-set file.
        return self.defaults.get(_SETTING_OF.get(key, key))

    def values(self, *keys: str) -> dict[str, Any]:
        """Return the keys that have a value."""
        return {key: found for key in keys if (found := self.value(key)) is not None}

    def gives(self, key: str) -> bool:
        """Whether the file itself says something about a key."""
        return any(getattr(table, key, None) is not None for _, table in self.tables)

    def place(self, key: str) -> str:
        """Return where a key was given."""
        for where, table in self.tables:
            if getattr(table, key, None) is not None and self.file is not None:
                return self.file.place(*where, key)
        return self.file.place(*self.tables[0][0]) if self.file else self.name(key)

    def name(self, key: str) -> str:
        """Return what a key is called where it was given."""
        return key if self.file else _SETTING_OF.get(key, key)


def load_dataset_config(defaults: Mapping[str, Any]) -> DatasetConfig:
    """Resolve the data sets from settings by their flag names, such as `Settings.flat()`.

    `dataset_config` names a TOML or JSON file whose keys win over the other settings: subset > data set > general >
    setting. Without it there is one subset: `in_json` with its pictures in `train_data_dir`, or that folder alone.

    Raises:
        ProblemsError: Everything that is wrong with the file, each with its line.
        EngineError: The file can't be read at all.
    """
    problems: list[Problem] = []
    if defaults.get("dataset_config"):
        path = Path(defaults["dataset_config"])
        file = read_dataset_file(path)
        checked, problems = check_keys(file)
        if checked is None:
            raise ProblemsError(problems)
        parts = _parts(file, checked, defaults, problems)
    else:
        parts = [_part_of_settings(defaults, problems)]
    if any(problem.severity == "error" for problem in problems):
        raise ProblemsError(problems)
    return DatasetConfig(
        datasets=tuple(parts),
        max_pixels=defaults.get("max_image_pixels", MAX_PIXELS),
        skip_bad_images=defaults.get("skip_bad_images", False),
        problems=tuple(problems),
    )


def _parts(
    file: TomlFile, checked: DatasetFile, defaults: Mapping[str, Any], problems: list[Problem]
) -> list[DatasetPart]:
    general = (("general",), checked.general)
    parts = []
    for index, table in enumerate(checked.datasets):
        outer = ((("datasets", index), table), general)
        subsets: dict[Path, Subset] = {}
        for number, inner in enumerate(table.subsets):
            place = ("datasets", index, "subsets", number)
            level = _Level(tables=((place, inner), *outer), defaults=defaults, file=file)
            problems += _without_effect(level)
            subset = _subset(level, problems)
            identity = subset.metadata_file or subset.image_dir
            if identity in subsets:
                message = f"{safe_text(str(identity))} is named twice in one data set; the second is ignored"
                problems.append(_problem("twice", "warning", file.place(*place), message, "set num_repeats"))
            subsets.setdefault(identity, subset)
        parts.append(_part(_Level(tables=outer, defaults=defaults, file=file), tuple(subsets.values()), problems))
    return parts


def _part_of_settings(defaults: Mapping[str, Any], problems: list[Problem]) -> DatasetPart:
    """Return the data set of `train_data_dir` and `in_json`, as sd-scripts made it before there was a data-set file."""
    level = _Level(tables=(), defaults=defaults, file=None)
    return _part(level, (_subset(level, problems),), problems)


def _part(level: _Level, subsets: tuple[Subset, ...], problems: list[Problem]) -> DatasetPart:
    given = frozenset(key for key in PART_SETTINGS if level.gives(key))
    part = DatasetPart(subsets=subsets, given=given, **level.values(*PART_SETTINGS))
    low, high = adjust_limits(part.min_bucket_reso, part.max_bucket_reso, part.bucket_reso_steps)
    problems += _bucket_problems(part, level, low, high)
    return dataclasses.replace(part, min_bucket_reso=low, max_bucket_reso=high)


def _bucket_problems(part: DatasetPart, level: _Level, low: int, high: int) -> Iterator[Problem]:
    shown = "{}x{}".format(*part.resolution)
    if not part.enable_bucket:
        if any(side % 64 for side in part.resolution):
            message = f"resolution {shown}: SD 1.x and 2.x need sides that are multiples of 64"
            yield _problem("resolution", "error", level.place("resolution"), message, "round it, or set enable_bucket")
        return
    if part.bucket_reso_steps % 64:
        message = f"bucket_reso_steps = {part.bucket_reso_steps}: SD 1.x and 2.x need multiples of 64"
        yield _problem("bucket-steps", "error", level.place("bucket_reso_steps"), message, "set it to 64")
    for key, given, used in (
        ("min_bucket_reso", part.min_bucket_reso, low),
        ("max_bucket_reso", part.max_bucket_reso, high),
    ):
        if given != used:
            message = f"{key} = {given} is rounded to {used}, a multiple of bucket_reso_steps"
            yield _problem("rounded", "info", level.place(key), message, f"set {key} = {used}")
    if part.bucket_no_upscale:
        return
    if min(part.resolution) < low:
        message = f"resolution {shown} has a side below min_bucket_reso ({low})"
        yield _problem("resolution", "error", level.place("resolution"), message, "lower min_bucket_reso")
    if max(part.resolution) > high:
        message = f"resolution {shown} has a side above max_bucket_reso ({high})"
        yield _problem("resolution", "error", level.place("resolution"), message, "raise max_bucket_reso")


def _subset(level: _Level, problems: list[Problem]) -> Subset:
    folder = _path(level, "image_dir", problems)
    metadata = _path(level, "metadata_file", problems)
    if folder is None and metadata is None:
        message = "no pictures are named"
        fix = "set image_dir or metadata_file" if level.file else "set dataset_config or train_data_dir"
        problems.append(_problem("no-pictures", "error", level.place("image_dir"), message, fix))
    values = level.values("num_repeats", "caption_extension", "recursive", "resize_interpolation", "alpha_mask")
    extension = values.get("caption_extension", ".caption")
    masks = _path(level, "conditioning_data_dir", problems)
    return Subset(
        image_dir=folder or (metadata.parent if metadata else Path()),
        metadata_file=metadata,
        conditioning_data_dir=masks,
        caption=CaptionOptions(**level.values(*_CAPTION_KEYS)),
        augment=AugmentOptions(**level.values(*_AUGMENT_KEYS)),
        **{**values, "caption_extension": extension if extension.startswith(".") else f".{extension}"},
    )


def _path(level: _Level, key: str, problems: list[Problem]) -> Path | None:
    """Return a path that exists; relative ones count from the file's folder."""
    given = level.value(key)
    if not given:
        return None
    try:
        path = written_path(str(given))
    except EngineError as error:
        problems.append(_problem("bad-value", "error", level.place(key), f"{level.name(key)} = {error}", ""))
        return None
    if level.file is not None:
        path = level.file.path.resolve().parent / path
    is_folder = key != "metadata_file"
    if path.is_dir() if is_folder else path.is_file():
        return path
    kind = "folder" if is_folder else "file"
    message = f"{level.name(key)} = {safe_text(str(given))}: there is no such {kind}"
    fix = f"looked for {safe_text(str(path))}"
    if level.file is not None and Path(given).exists():
        fix += "; it exists in the current folder, but paths count from the folder of the data-set file"
    problems.append(_problem("missing-path", "error", level.place(key), message, fix))
    return path


def _without_effect(level: _Level) -> Iterator[Problem]:
    """Note keys of the file that do nothing as things stand."""
    for key, needed in _NEEDS.items():
        if level.gives(key) and level.value(key) and not any(level.value(other) for other in needed):
            yield _problem("no-effect", "warning", level.place(key), f"{key} has no effect", f"set {needed[0]}")
    for key in ("caption_extension", "recursive"):
        if level.gives(key) and level.value("metadata_file"):
            message = f"{key} has no effect where metadata_file names pictures and captions"
            yield _problem("no-effect", "info", level.place(key), message, f"remove {key}")


def _problem(code: str, severity: Severity, where: str, message: str, fix: str) -> Problem:
    return Problem(code=code, severity=severity, where=where, message=message, fix=fix)

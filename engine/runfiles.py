"""run.toml and dataset.toml as they stand in a run folder: complete, re-runnable, with relative paths. Torch-free."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.dataset.config import DatasetConfig, DatasetPart, Subset
from engine.dataset.keys import PART_SETTINGS
from engine.models.atomic import atomic_file
from engine.settings import Settings
from engine.settings_io import run_toml


def write_run_files(folder: Path, settings: Settings, config: DatasetConfig) -> None:
    """Write both files; a run.toml that stands there already, the user's own, keeps its comments and order.

    Raises:
        NotWrittenError: The disk refuses them.
    """
    folder = folder.resolve()
    dataset_path, run_path = folder / "dataset.toml", folder / "run.toml"
    given = settings.dataset.dataset_config
    if given is None or Path(given) != dataset_path:
        _write(dataset_path, dataset_toml(config, folder=folder))
    changed = settings.replace(dataset_config=str(dataset_path), train_data_dir=None, in_json=None)
    existing = run_path.read_text(encoding="utf-8") if run_path.exists() else ""
    _write(run_path, run_toml(changed, folder=folder, existing=existing, is_complete=True))


def dataset_toml(config: DatasetConfig, *, folder: Path) -> str:
    """Return the data sets in sd-scripts' format, every value spelled out, paths relative to `folder`."""
    import tomlkit

    document = tomlkit.document()
    document["datasets"] = [
        {**_part_values(part), "subsets": [_subset_values(subset, folder) for subset in part.subsets]}
        for part in config.datasets
    ]
    return tomlkit.dumps(document)


def _part_values(part: DatasetPart) -> dict[str, Any]:
    return _plain({name: getattr(part, name) for name in PART_SETTINGS})


def _subset_values(subset: Subset, folder: Path) -> dict[str, Any]:
    own: dict[str, Any] = {"image_dir": _relative(subset.image_dir, folder), "num_repeats": subset.num_repeats}
    if subset.metadata_file is not None:
        own["metadata_file"] = _relative(subset.metadata_file, folder)
    if subset.resize_interpolation is not None:
        own["resize_interpolation"] = subset.resize_interpolation
    if subset.conditioning_data_dir is not None:
        own["conditioning_data_dir"] = _relative(subset.conditioning_data_dir, folder)
    # Keys that sd-scripts' fine-tuning does not know stand only where they say something.
    for name in ("caption_extension", "recursive", "alpha_mask"):
        if getattr(subset, name) != _SUBSET_DEFAULTS[name]:
            own[name] = getattr(subset, name)
    captions = {
        field.name: getattr(subset.caption, field.name)
        for field in dataclasses.fields(subset.caption)
        if field.name != "replacements"  # Textual inversion's; no key of the file sets them.
    }
    return _plain({**own, **captions, **dataclasses.asdict(subset.augment)})


_SUBSET_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Subset)}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what has no value, since TOML has no word for it."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value not in (None, "")
    }


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # Another drive.
        return str(path)


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))

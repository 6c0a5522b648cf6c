"""The draft's own dataset.toml: a user's file is copied before its first change, and every change makes a new version.

So the user's file stays as it is, comments survive, and undo needs nothing but the setting that names the version.
Each function reads or writes a small file and returns the settings to change; call it in a thread.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tomlkit

from engine.dataset.keys import PART_SETTINGS, SUBSET_SETTINGS, check_keys, read_dataset_file
from engine.errors import EngineError, ProblemsError, safe_text
from engine.paths import written_path
from engine.settings import DatasetSettings
from engine.toml import parse_toml
from sdtui.recent import write_private

Changes = Mapping[str, object]
Values = Mapping[str, object]

HEADER = "The pictures of this draft; sd-scripts reads it too. Made by sdtui."
_PEEK_BYTES = 4096


class DraftFiles(Protocol):
    """What is needed of a draft: where its own file lies, and its settings."""

    draft_path: Path

    @property
    def settings(self) -> Any:  # noqa: ANN401 - engine.settings.Settings, or a test's
        """The settings it makes."""


def add_source(draft: DraftFiles, path: Path) -> Changes:
    """Return the changes that add a folder or metadata file to the data set, or make a dataset.toml the data set.

    Raises:
        EngineError: The path is none of these.
    """
    dataset = draft.settings.dataset
    kind = kind_of_source(str(path))
    path = written_path(str(path)).absolute()
    if kind == "config":
        return _names(path)
    key = {"folder": "image_dir", "metadata": "metadata_file"}[kind]
    if not (dataset.dataset_config or dataset.train_data_dir or dataset.in_json):
        return {"train_data_dir" if kind == "folder" else "in_json": str(path)}
    document = _document(dataset)
    if any(str(path) == str(subset.get(key)) for part in document["datasets"] for subset in part["subsets"]):
        raise EngineError(f"{safe_text(str(path))} is part of the data set already; set num_repeats to show it more")
    subset = tomlkit.table()
    subset[key] = str(path)
    document["datasets"][-1]["subsets"].append(subset)
    return _written(draft, document)


def remove_source(draft: DraftFiles, number: int) -> Changes:
    """Return the changes that take the subset of this number, counted over all data sets, out of the data set."""
    dataset = draft.settings.dataset
    if not dataset.dataset_config:
        return {"train_data_dir": None, "in_json": None}
    document = _document(dataset)
    part, index = _subset_at(document, number)
    del part["subsets"][index]
    if not part["subsets"]:
        document["datasets"].remove(part)
    return _written(draft, document) if document["datasets"] else {"dataset_config": None}


def set_subset(draft: DraftFiles, number: int, values: Values) -> Changes:
    """Return the changes that give one subset other values, by their names in dataset.toml; None removes one.

    Raises:
        ProblemsError: A value can't be used.
    """
    dataset = draft.settings.dataset
    if not dataset.dataset_config and "recursive" not in values:
        return {SUBSET_SETTINGS[key]: value for key, value in values.items()}
    document = _document(dataset)
    part, index = _subset_at(document, number)
    _put(part["subsets"][index], values)
    return _written(draft, document)


def set_part(draft: DraftFiles, number: int, values: Values) -> Changes:
    """Return the changes that give a data set other values, each on the level that gives it now, else as a setting.

    Raises:
        ProblemsError: A value can't be used.
    """
    dataset = draft.settings.dataset
    if not dataset.dataset_config:
        return {PART_SETTINGS[key]: value for key, value in values.items()}
    document = _document(dataset)
    levels = [document["datasets"][number], document.get("general", {})]
    changes: dict[str, object] = {}
    is_edited = False
    for key, value in values.items():
        level = next((level for level in levels if key in level), None)
        if level is None:
            changes[PART_SETTINGS[key]] = value
        else:
            _put(level, {key: value})
            is_edited = True
    return {**changes, **(_written(draft, document) if is_edited else {})}


def keys_in_file(dataset: DatasetSettings) -> list[frozenset[str]]:
    """Return for each data set the keys that dataset.toml itself gives; nothing where there is no such file.

    Raises:
        EngineError: The file can't be read.
    """
    if not dataset.dataset_config:
        return []
    document = _document(dataset)
    general = frozenset(document.get("general", {}))
    return [general | frozenset(part) for part in document["datasets"]]


def publish(draft: DraftFiles, folder: Path) -> Changes:
    """Write the draft's own dataset.toml into `folder`, under a free name, and return the changes that name it there.

    What saving a run.toml calls, so that the saved file does not depend on the folder of drafts.
    """
    given = draft.settings.dataset.dataset_config
    if not given or Path(given).parent != _own_folder(draft):
        return {}
    names = ["dataset.toml", *(f"dataset-{number}.toml" for number in range(2, 10_000))]
    text = Path(given).read_text("utf-8")
    path = next(path for name in names if _is_free_for(path := folder / name, text))
    write_private(path, text)
    return {"dataset_config": str(path)}


def _is_free_for(path: Path, text: str) -> bool:
    return not path.exists() or path.read_text("utf-8") == text


def kind_of_source(typed: str) -> str:
    """Return what a path holds as somebody typed it: folder, metadata or config.

    Raises:
        EngineError: It is none of these.
    """
    path = written_path(typed).absolute()
    if path.is_dir():
        return "folder"
    if not path.is_file():
        raise EngineError(f"{safe_text(str(path))}: there is no such folder or file; check the path")
    suffix = path.suffix.lower()
    if suffix == ".toml":
        return "config"
    if suffix in {".json", ".jsonl"}:
        with path.open("rb") as file:
            return "config" if b'"datasets"' in file.read(_PEEK_BYTES) else "metadata"
    raise EngineError(
        f"{safe_text(str(path))} is no folder, metadata file (.json, .jsonl) or dataset.toml; name one of these"
    )


def _names(path: Path) -> Changes:
    return {"dataset_config": str(path), "train_data_dir": None, "in_json": None}


def _document(dataset: DatasetSettings) -> tomlkit.TOMLDocument:
    """Return the present data set as an editable document with absolute paths, comments kept."""
    if dataset.dataset_config:
        path = Path(dataset.dataset_config)
        file = read_dataset_file(path)
        checked, problems = check_keys(file)
        if checked is None:
            raise ProblemsError(problems)
        is_json = path.suffix.lower() == ".json"
        text = tomlkit.dumps(_without_none(file.data)) if is_json else path.read_text("utf-8-sig")
        document = tomlkit.parse(text)
        _make_absolute(document, path.resolve().parent)
        return document
    document = tomlkit.document()
    document.add(tomlkit.comment(HEADER))
    paths = {"image_dir": dataset.train_data_dir, "metadata_file": dataset.in_json}
    document["datasets"] = [{"subsets": [_without_none(paths)]}]
    return tomlkit.parse(tomlkit.dumps(document))


def _without_none(value: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def _make_absolute(document: tomlkit.TOMLDocument, folder: Path) -> None:
    for part in document["datasets"]:
        for subset in part["subsets"]:
            for key in ("image_dir", "metadata_file"):
                if key in subset:
                    subset[key] = str(folder / written_path(str(subset[key])))


def _subset_at(document: tomlkit.TOMLDocument, number: int) -> tuple[Any, int]:
    """Return the data set that holds a subset, and the subset's place in it."""
    for part in document["datasets"]:
        if number < len(part["subsets"]):
            return part, number
        number -= len(part["subsets"])
    raise AssertionError("a subset of this number")


def _put(table: Any, values: Values) -> None:  # noqa: ANN401 - one of several containers of tomlkit
    for key, value in values.items():
        if value is None:
            table.pop(key, None)
        else:
            table[key] = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _written(draft: DraftFiles, document: tomlkit.TOMLDocument) -> Changes:
    """Write the next version and return the changes that name it."""
    text = tomlkit.dumps(document)
    folder = _own_folder(draft)
    numbers = [int(path.stem) for path in folder.glob("*.toml") if path.stem.isdigit()]
    path = folder / f"{max(numbers, default=0) + 1:03}.toml"
    checked, problems = check_keys(parse_toml(text, path))
    if checked is None:
        raise ProblemsError(problems)
    write_private(path, text)
    return _names(path)


def _own_folder(draft: DraftFiles) -> Path:
    return draft.draft_path.with_suffix(".data")

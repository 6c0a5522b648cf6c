"""Models that a user may mean: used before, near the draft, or in the hub's cache; found and ranked, in a thread."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from textual.fuzzy import FuzzySearch

from engine.models.hub import is_hub_id
from sdtui.recent import recent
from sdtui.widgets.path_input import MODEL_SUFFIXES

Source = Literal["recent", "near", "hub cache"]
LIMIT = 2000  # Entries looked at in one folder.
_SKIPPED = {"state", "sample", "requests", "node_modules", "__pycache__", "metrics.bin"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model by the text that names it, and where it was found."""

    name: str
    source: Source


def known_models(folders: Sequence[Path]) -> list[KnownModel]:
    """Return models used before that are still there, those in `folders` and one level below, and the hub's cache."""
    used = [entry.name for entry in recent("model") if is_hub_id(entry.name) or Path(entry.name).exists()]
    near = [str(path) for folder in folders for path in sorted(_in_folder(folder.absolute(), depth=2))]
    found: dict[str, Source] = dict.fromkeys(used, "recent")
    for name in near:
        found.setdefault(name, "near")
    for name in sorted(_in_hub_cache()):
        found.setdefault(name, "hub cache")
    return [KnownModel(name=name, source=source) for name, source in found.items()]


def ranked(models: Iterable[KnownModel], words: str) -> list[KnownModel]:
    """Return the models whose name holds the letters of the words in their order, the best first."""
    models = list(models)
    if not words.strip():
        return models
    search = FuzzySearch(case_sensitive=False)
    scores = [(max(search.match(words, part)[0] for part in _spellings(model.name)), model) for model in models]
    return [model for score, model in sorted(scores, key=lambda pair: -pair[0]) if score > 0]


def _spellings(name: str) -> tuple[str, str]:
    """Return the last part of a path and the whole; a hit in the last part weighs more by itself."""
    return Path(name).name, name


def _in_folder(folder: Path, *, depth: int) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            listed = [entry for _, entry in zip(range(LIMIT), entries, strict=False)]
    except (OSError, ValueError):
        return
    for entry in listed:
        if entry.name.startswith(".") or entry.name in _SKIPPED:
            continue
        path = Path(entry.path)
        if entry.name.endswith(MODEL_SUFFIXES):
            yield path
        elif _is_folder(entry):
            if _is_diffusers(path):
                yield path
            elif depth > 1:
                yield from _in_folder(path, depth=depth - 1)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_diffusers(path: Path) -> bool:
    try:
        return (path / "model_index.json").is_file()
    except OSError:
        return False


def _in_hub_cache() -> Iterator[str]:
    """Yield the ids of whole diffusers models in the hub's cache, found by its layout alone."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    try:
        folders = [folder for folder in cache.iterdir() if folder.name.startswith("models--")]
        for folder in folders[:LIMIT]:
            name = folder.name.removeprefix("models--").replace("--", "/", 1)
            if is_hub_id(name) and any(folder.glob("snapshots/*/model_index.json")):
                yield name
    except OSError:
        return


def cached_folder(name: str) -> Path | None:
    """Return where the hub's cache holds a hub id, without asking the hub; None where it does not."""
    from huggingface_hub import try_to_load_from_cache

    repo, _, revision = name.partition(":")
    found = try_to_load_from_cache(repo, "model_index.json", revision=revision or None)
    return Path(found).parent if isinstance(found, str) else None

"""Files that a run needs or would overwrite, looked at before anything is started. Torch-free."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoint import model_suffix
from engine.errors import EngineError, Problem, ProblemsError, safe_text
from engine.rules.model import RULES as MODEL_RULES
from engine.rules.model import ModelSubject
from engine.rules.rule import applied
from engine.run import RunFolder
from engine.settings import Settings
from engine.settings_io import LoadedSettings, load_run

if TYPE_CHECKING:
    from engine.models.inspect import ModelInfo
    from engine.models.source import ModelSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What looking at a run's files has told; `source` and `info` are None for what is on a hub or can't be read."""

    source: "ModelSource | None"
    info: "ModelInfo | None"
    problems: tuple[Problem, ...]


def look_at_files(loaded: LoadedSettings) -> Files:
    """Return what the files are, and what is wrong with them; of weights only names and shapes are read."""
    settings, places = loaded.settings, loaded.places
    name = settings.model.pretrained_model_name_or_path
    source, info = None, None
    problems: list[Problem] = []
    if name:
        try:
            source, info = look_at_model(name, settings.model.vae)
        except EngineError as error:
            problems += _problems("model", "pretrained_model_name_or_path", places, error)
    if info is not None and info.obstacle:
        problems += _problems("model", "pretrained_model_name_or_path", places, _obstacle(info))
    if name and not problems:
        problems += applied(MODEL_RULES, ModelSubject(settings=settings, info=info), places)
    if info is not None and not info.obstacle:
        problems += _look_at_hypernetworks(settings, info, places)
    looks: tuple[tuple[str, str, Callable[[], object]], ...] = (
        ("prompts", "sample_prompts", lambda: _look_at_prompts(settings)),
        ("output", "output_dir", lambda: _look_at_folder(loaded)),
    )
    for code, setting, look in looks:
        try:
            look()
        except EngineError as error:
            problems += _problems(code, setting, places, error)
    return Files(source=source, info=info, problems=tuple(problems))


def _look_at_hypernetworks(settings: Settings, info: "ModelInfo", places: Mapping[str, str]) -> Iterator[Problem]:
    from engine.hypernetworks import check_files

    for setting, warning, error in check_files(settings, info.attention_widths):
        where = places.get(setting, setting)
        if error is not None:
            yield from _problems("hypernetwork", setting, places, error)
        else:
            yield Problem(code="hypernetwork", severity="warning", where=where, message=warning, setting=setting)


def completed(settings: Settings, info: "ModelInfo | None") -> Settings:
    """Return settings with what the user left out and the model's file tells: its family and what it predicts."""
    if info is None or info.obstacle:
        return settings
    model = settings.model
    told: dict[str, object] = {}
    if model.v2 is None:
        told["v2"] = info.family == "sd2"
    if model.v_parameterization is None and info.prediction_type is not None:
        told["v_parameterization"] = info.prediction_type == "v_prediction"
    return settings.replace(**told) if told else settings


def _problems(code: str, setting: str, places: Mapping[str, str], error: EngineError) -> tuple[Problem, ...]:
    if isinstance(error, ProblemsError):
        return error.problems
    where = places.get(setting, setting)
    return (Problem(code=code, severity="error", where=where, message=str(error), setting=setting),)


def _obstacle(info: "ModelInfo") -> EngineError:
    try:
        info.require_trainable()
    except EngineError as error:
        return error
    raise AssertionError(info)


def look_at_model(name: str, vae: str | None) -> "tuple[ModelSource | None, ModelInfo | None]":
    """Open a model, with another VAE where one is named, and describe it: a matter of milliseconds.

    Returns None for a model on a hub that is not on this machine.

    Raises:
        EngineError: It is missing, damaged or unsafe.
    """
    from engine.models.hub import find_model, is_hub_id
    from engine.models.inspect import describe
    from engine.models.source import open_source, with_vae

    def is_remote(name: str) -> bool:
        return is_hub_id(name) and not Path(name).expanduser().exists()

    if is_remote(name):
        return None, None
    source = open_source(find_model(name))
    if vae and not is_remote(vae):
        source = with_vae(source, find_model(vae))
    return source, describe(source, needs_vae=not vae)


def _look_at_prompts(settings: Settings) -> None:
    from engine.prompts import read_prompts

    if settings.sampling.sample_prompts:
        read_prompts(Path(settings.sampling.sample_prompts))


def _look_at_folder(loaded: LoadedSettings) -> None:
    """Refuse a folder in which the run would overwrite what is not its own.

    Raises:
        EngineError: It holds a run, models under the run's name, or another run.toml or dataset.toml.
    """
    saving, given = loaded.settings.saving, loaded.settings.dataset.dataset_config
    folder = Path(saving.output_dir)
    RunFolder(folder).refuse_run()
    shown = safe_text(str(folder))
    run_toml, dataset_toml = folder / "run.toml", folder / "dataset.toml"
    others = [run_toml] if run_toml.exists() and not _is_source(run_toml, loaded) else []
    if dataset_toml.exists() and (given is None or not dataset_toml.samefile(given)):
        others.append(dataset_toml)
    others += _models_in(folder, loaded.settings)
    if others:
        names = ", ".join(safe_text(path.name) for path in others[:3])
        raise EngineError(f"{shown} holds {names}, which this run would overwrite; choose another output_dir")


def _is_source(run_toml: Path, loaded: LoadedSettings) -> bool:
    """Tell whether these settings were read from that file, or say what it says."""
    if loaded.path is not None and loaded.path.exists() and run_toml.samefile(loaded.path):
        return True
    try:
        return load_run(run_toml).settings == loaded.settings
    except EngineError:
        return False


def _models_in(folder: Path, settings: Settings) -> list[Path]:
    """Return what lies there under the names that this run gives its models."""
    suffix = model_suffix(settings.saving, is_hypernetwork=settings.training.train_hypernetwork)
    pattern = re.compile(rf"{re.escape(settings.saving.output_name)}(-\d{{6}}|-step\d{{8}})?{re.escape(suffix)}")
    return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name)) if folder.is_dir() else []

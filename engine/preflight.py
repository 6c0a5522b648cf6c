"""Files that a run needs or would overwrite, looked at before anything is started. Torch-free."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.errors import EngineError, Problem, ProblemsError, safe_text
from engine.run import RunFolder
from engine.settings import SavingSettings, Settings
from engine.settings_io import LoadedSettings, load_run


def find_file_problems(loaded: LoadedSettings) -> tuple[Problem, ...]:
    """Return what is wrong with the model, the VAE, the prompts and the run's folder; models on a hub are not asked."""
    settings = loaded.settings
    looks: tuple[tuple[str, str, Callable[[], object]], ...] = (
        ("model", "pretrained_model_name_or_path", lambda: _look_at_model(settings)),
        ("prompts", "sample_prompts", lambda: _look_at_prompts(settings)),
        ("output", "output_dir", lambda: _look_at_folder(loaded)),
    )
    return tuple(
        problem for code, name, look in looks for problem in _problems(code, loaded.places.get(name, name), look)
    )


def _problems(code: str, where: str, look: Callable[[], object]) -> Iterator[Problem]:
    try:
        look()
    except ProblemsError as error:
        yield from error.problems
    except EngineError as error:
        yield Problem(code=code, severity="error", where=where, message=str(error))


def _look_at_model(settings: Settings) -> None:
    """Read names and shapes, a matter of milliseconds."""
    from engine.models.hub import find_model, is_hub_id
    from engine.models.inspect import describe
    from engine.models.source import open_source, with_vae

    def is_remote(name: str) -> bool:
        return is_hub_id(name) and not Path(name).expanduser().exists()

    name, vae = settings.model.pretrained_model_name_or_path, settings.model.vae
    if is_remote(name):
        return
    source = open_source(find_model(name))
    if vae and not is_remote(vae):
        source = with_vae(source, find_model(vae))
    describe(source, needs_vae=not vae).require_trainable()


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
    others += _models_in(folder, saving)
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


def _models_in(folder: Path, saving: SavingSettings) -> list[Path]:
    """Return what lies there under the names that this run gives its models."""
    suffix = "" if saving.save_model_as.startswith("diffusers") else f".{saving.save_model_as}"
    pattern = re.compile(rf"{re.escape(saving.output_name)}(-\d{{6}}|-step\d{{8}})?{re.escape(suffix)}")
    return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name)) if folder.is_dir() else []

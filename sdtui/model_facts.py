"""What a model is, in words for the screen; and what the settings of a draft make of it. Torch-free."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.display import size
from engine.errors import EngineError, safe_text
from engine.models.hub import is_hub_id
from engine.models.inspect import ModelInfo, describe
from engine.models.source import open_source, with_vae
from engine.paths import written_path
from sdtui.known_models import cached_folder
from sdtui.widgets.fact_lines import Line

_PARTS = {"unet": "UNet", "text_encoder": "text encoder", "vae": "VAE", "ema": "EMA weights", "extra": "further keys"}
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What looking at a model has brought: what it is, or one sentence that says why that can't be told."""

    name: str
    vae: str | None = None
    path: Path | None = None
    info: ModelInfo | None = None
    error: str = ""
    is_absent_hub_id: bool = False


def look_at(name: str, vae: str | None = None) -> Look:
    """Look at a model by path or hub id; only what lies on this machine is read, and of that no weights."""
    try:
        path = _local(name)
        if path is None:
            return Look(name=name, vae=vae, is_absent_hub_id=True)
        source = open_source(path)
        if vae:
            other = _local(vae)
            source = with_vae(source, other) if other else source
        return Look(name=name, vae=vae, path=path, info=describe(source, needs_vae=not vae))
    except EngineError as error:
        return Look(name=name, vae=vae, error=str(error))
    except (OSError, ValueError) as error:  # A name that no file system takes.
        return Look(name=name, vae=vae, error=f"{safe_text(name)}: can't be read ({safe_text(str(error))})")


def _local(name: str) -> Path | None:
    """Return where a model lies; None for a hub id that is not on this machine."""
    path = written_path(name)
    return cached_folder(name) if is_hub_id(name) and not path.exists() else path


def is_there(name: str) -> bool:
    """Tell whether a name is that of a file or folder on this machine."""
    try:
        return written_path(name).exists()
    except (EngineError, OSError):
        return False


def is_unsaid(look: Look, v_parameterization: bool | None) -> bool:
    """Tell whether somebody must say what the model predicts."""
    return (
        look.info is not None
        and not look.info.obstacle
        and look.info.prediction_type is None
        and v_parameterization is None
    )


def lines_of(look: Look, v_parameterization: bool | None, v2: bool | None) -> list[Line]:
    """Return what is known of a model as lines, the verdict first."""
    if look.is_absent_hub_id:
        text = f"{safe_text(look.name)} is not on this machine: d fetches it now, else starting the run does"
        return [("\u25cb", text, "warn")]
    info = look.info
    if info is None:
        return [("\u2717", look.error, "bad")]
    verdict = ("\u2717", f"{info.what}: {info.obstacle}", "bad") if info.obstacle else ("\u2713", info.what, "good")
    return [verdict, *_contradictions(info, v_parameterization, v2), *_facts(info, v_parameterization)]


def _said(v_parameterization: bool | None) -> str:
    """Return what the setting says the model predicts, or nothing."""
    if v_parameterization is None:
        return ""
    return _PREDICTIONS["v_prediction" if v_parameterization else "epsilon"]


def _contradictions(info: ModelInfo, v_parameterization: bool | None, v2: bool | None) -> Iterator[Line]:
    if info.obstacle:
        return
    known, said = _PREDICTIONS.get(info.prediction_type or "", ""), _said(v_parameterization)
    if not known and not said:
        yield "\u26a0", "its files do not tell what it predicts: e says epsilon (2.x base) or v (768-v)", "warn"
    elif known and said and said != known:
        yield "\u2717", f"v_parameterization contradicts the file, which predicts {known}: leave it out", "bad"
    if v2 is not None and info.family in {"sd1", "sd2"} and v2 != (info.family == "sd2"):
        yield "\u2717", f"v2 = {str(v2).lower()} contradicts the file: leave v2 out", "bad"


def _facts(info: ModelInfo, v_parameterization: bool | None) -> Iterator[Line]:
    if not info.obstacle:
        known, said = _PREDICTIONS.get(info.prediction_type or "", ""), _said(v_parameterization)
        told = f"{known}, by its files" if known else f"{said}, as you say" if said else "unknown"
        yield "predicts", told, "" if known else "warn"
    held = [f"{_PARTS[part]} {_millions(info.parameters.get(part, 0))}".strip() for part in info.holds]
    yield "holds", ", ".join(held) or "nothing known", ""
    dtypes = ", ".join(f"{dtype} {count}" for dtype, count in sorted(info.dtypes.items()))
    yield "values", f"{info.precision or '?'}: {info.num_tensors} tensors ({dtypes})", ""
    layout = "single file" if info.layout == "single_file" else "diffusers folder"
    yield "size", f"{size(info.num_bytes)}, {layout}", ""
    is_pickle = info.path.suffix.lower() in {".ckpt", ".pt", ".bin"}
    yield "safe", "a pickle, read without running its code" if is_pickle else "safetensors, holds no code", "dim"
    for warning in info.warnings:
        yield "\u26a0", warning, "warn"


def _millions(parameters: int) -> str:
    if not parameters:
        return ""
    return f"{parameters / 1e6:.0f}M" if parameters >= 10e6 else f"{parameters / 1e6:.1f}M"

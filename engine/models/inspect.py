"""What a model file or folder is, from its names and shapes alone. Torch-free, and a matter of milliseconds."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.errors import EngineError, safe_text
from engine.models.configs import context_width
from engine.models.keys import Family
from engine.models.lazy import LazyTensor
from engine.models.source import PART_NAMES, Layout, ModelSource, open_source

FamilyName = Literal["sd1", "sd2", "sdxl", "other"]
PredictionType = Literal["epsilon", "v_prediction"]
_NAMES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}
HYPERNETWORK = "a hypernetwork"
_PRECISIONS = {"F32": "float", "F16": "fp16", "BF16": "bf16", "F64": "double"}
_PREDICTIONS: dict[object, PredictionType] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
}
_ARCHITECTURE_PREDICTIONS: dict[str, PredictionType] = {
    "stable-diffusion-v2-512": "epsilon",
    "stable-diffusion-v2-768-v": "v_prediction",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is known of a model without reading its weights.

    `what` says in words what the file is; `obstacle` why it can't be trained and what is needed, else "".
    `prediction_type` None means that nothing tells. `precision` is that of most values; `dtypes` counts tensors;
    `parameters` counts values by part and `part_bytes` their bytes, both with "other"; `holds` lists the parts, with
    "ema" and "extra" for what else is there.
    """

    path: Path
    family: FamilyName
    layout: Layout
    what: str
    obstacle: str
    prediction_type: PredictionType | None
    precision: str
    dtypes: Mapping[str, int]
    num_tensors: int
    parameters: Mapping[str, int]
    part_bytes: Mapping[str, int]
    holds: tuple[str, ...]
    warnings: tuple[str, ...]
    num_bytes: int
    attention_widths: tuple[int, ...] = ()
    """Widths of what the UNet's attention makes keys and values from."""

    def require_trainable(self) -> None:
        """Raise the obstacle, if there is one.

        Raises:
            EngineError: It is no SD 1.x or 2.x model that can be trained.
        """
        if self.obstacle:
            raise EngineError(f"{safe_text(str(self.path))}: is {self.what}: {self.obstacle}")


def inspect_model(path: Path) -> ModelInfo:
    """Return what a model file or folder is.

    Raises:
        EngineError: It is missing, damaged or unsafe.
    """
    return describe(open_source(path))


def describe(source: ModelSource, *, needs_vae: bool = True) -> ModelInfo:
    """Return what an opened model is; with `needs_vae` false one without a VAE can be trained too."""
    tensors = [*_all_tensors(source)]
    family = family_of(source)
    what, obstacle = _kind(source, family, needs_vae=needs_vae)
    dtypes = Counter(tensor.dtype for tensor in tensors)
    values = Counter[str]()
    for tensor in tensors:
        values[tensor.dtype] += tensor.numel
    most = values.most_common(1)
    return ModelInfo(
        path=source.path,
        family=family,
        layout=source.layout,
        what=what,
        obstacle=obstacle,
        prediction_type=prediction_type_of(source, family),
        precision=_PRECISIONS.get(most[0][0], most[0][0]) if most else "",
        dtypes=dict(dtypes),
        num_tensors=len(tensors),
        parameters={part: sum(t.numel for t in held.values()) for part, held in source.parts.items() if held},
        part_bytes={part: sum(t.num_bytes for t in held.values()) for part, held in source.parts.items() if held},
        holds=_holds(source),
        warnings=tuple(_warnings(source, family)),
        num_bytes=source.num_bytes,
        attention_widths=_attention_widths(source),
    )


def _attention_widths(source: ModelSource) -> tuple[int, ...]:
    unet = source.parts["unet"]
    return tuple(sorted({tensor.shape[1] for name, tensor in unet.items() if name.endswith(".to_k.weight")}))


def trainable_family(info: ModelInfo, v2: bool | None) -> Family:
    """Return the family of a model that can be trained.

    Raises:
        EngineError: It can't be, or is not what `v2` says.
    """
    info.require_trainable()
    assert info.family in {"sd1", "sd2"}
    if v2 is not None and v2 != (info.family == "sd2"):
        raise EngineError(f"{safe_text(str(info.path))}: v2 = {str(v2).lower()}, but it is {info.what}; leave v2 out")
    return info.family


def resolved_prediction(info: ModelInfo, v_parameterization: bool | None) -> tuple[PredictionType, tuple[str, ...]]:
    """Return what the model predicts, and warnings; the user's word counts above the file's.

    Raises:
        EngineError: Neither says.
    """
    shown, found = safe_text(str(info.path)), info.prediction_type
    if v_parameterization is None:
        if found is None:
            raise EngineError(
                f"{shown}: SD 2.x files don't tell what the model predicts;"
                " set v_parameterization = true for a 768-v model, false for a base (512) model"
            )
        return found, ()
    said: PredictionType = "v_prediction" if v_parameterization else "epsilon"
    if found in {None, said}:
        return said, ()
    return said, (f"{shown} is a model of {found}, but v_parameterization = {str(v_parameterization).lower()}",)


def _all_tensors(source: ModelSource) -> Iterable[LazyTensor]:
    return (tensor for held in source.parts.values() for tensor in held.values())


def _holds(source: ModelSource) -> tuple[str, ...]:
    found = [part for part in PART_NAMES if source.parts[part]]
    other = source.parts["other"]
    if any(name.startswith("model_ema.") for name in other):
        found.append("ema")
    if any(not name.startswith("model_ema.") for name in other):
        found.append("extra")
    return tuple(found)


def family_of(source: ModelSource) -> FamilyName:
    """Tell the family: by SDXL's own names, the layout of the text encoder, the context width, the projections."""
    other, unet = source.parts["other"], source.parts["unet"]
    width = context_width(unet)
    pipeline = str(source.configs.get("pipeline", {}).get("_class_name", ""))
    if "XL" in pipeline or _any(other, r"^conditioner\.embedders\.|\.label_emb\.") or width in {1280, 2048}:
        return "sdxl"
    if not unet:
        return "other"
    if source.text_family:
        return source.text_family
    if width in {768, 1024}:
        return "sd1" if width == 768 else "sd2"
    is_linear = any(len(tensor.shape) == 2 for name, tensor in unet.items() if name.endswith(".proj_in.weight"))
    return "sd2" if is_linear else "sd1"


def prediction_type_of(source: ModelSource, family: FamilyName) -> PredictionType | None:
    """Return what the UNet predicts, from what the files say; SD 1.x is epsilon unless they say otherwise."""
    metadata = source.metadata
    stated = source.configs.get("scheduler", {}).get("prediction_type")
    for evidence in (stated, metadata.get("modelspec.prediction_type")):
        if isinstance(evidence, str) and evidence in _PREDICTIONS:
            return _PREDICTIONS[evidence]
    by_name = _ARCHITECTURE_PREDICTIONS.get(metadata.get("modelspec.architecture", ""))
    if by_name or _yaml_says_v(source.path):
        return by_name or "v_prediction"
    return "epsilon" if family == "sd1" else None


def _yaml_says_v(path: Path) -> bool:
    """Look into the .yaml that other programs want beside a v-prediction file."""
    try:
        with path.with_suffix(".yaml").open("rb") as file:
            return bool(re.search(rb"""^\s*parameterization:\s*["']?v["']?\s*$""", file.read(65_536), re.MULTILINE))
    except OSError:
        return False


def _any(names: Iterable[str], pattern: str) -> bool:
    compiled = re.compile(pattern)
    return any(compiled.search(name) for name in names)


# ---- What is it, if it is no model to train? The first test that fits decides.


_Test = Callable[[ModelSource], bool]
_NEED = "an SD 1.x or 2.x model is needed (a single file with UNet, text encoder and VAE, or a diffusers folder)"
_FOREIGN: list[tuple[str, _Test, str]] = [
    ("a LoRA",
     lambda s: not s.parts["unet"] and _any(s.parts["other"], r"lora_|\.lora\.|\.hada_|\.lokr_|lora_A|\.alpha$"),
     f"it only changes another model; {_NEED}"),
    ("a ControlNet", lambda s: _any(s.parts["other"], r"^(control_model|controlnet_cond_embedding|input_hint_block)"),
     _NEED),
    ("a textual inversion embedding",
     lambda s: bool({"string_to_param", "string_to_token"} & s.marks) or "emb_params" in s.parts["other"], _NEED),
    (HYPERNETWORK,
     lambda s: bool({"320", "640", "768", "1024", "1280", "layer_structure"} & s.marks)
     or "hypernetwork" in s.metadata,
     f"it only changes another model; {_NEED}"),
    ("a Stable Diffusion XL refiner",
     lambda s: _any(s.parts["other"], r"^conditioner\.embedders\.0\.model\.")
     and not _any(s.parts["other"], r"^conditioner\.embedders\.1\."), _NEED),
    ("a VAE alone", lambda s: not s.parts["unet"] and (bool(s.parts["vae"]) or _is_bare_vae(s)),
     f"give it as --vae; for the model, {_NEED}"),
    ("a text encoder alone",
     lambda s: not s.parts["unet"] and _any([*s.parts["other"], *s.parts["text_encoder"]], r"text_model\.|resblocks"),
     _NEED),
    ("a UNet alone", lambda s: _any(s.parts["other"], r"^down_blocks\.\d+\.(resnets|attentions)\."),
     "give the diffusers folder that it lies in"),
    ("a Stable Diffusion 3 or Flux model", lambda s: _any(s.parts["other"], r"joint_blocks|double_blocks"), _NEED),
]  # fmt: skip


def _is_bare_vae(source: ModelSource) -> bool:
    other = source.parts["other"]
    return "decoder.conv_in.weight" in other and "encoder.conv_in.weight" in other


_CHANNELS = {
    9: "an inpainting model (9 input channels)",
    8: "an instruction-following model (8 input channels)",
    7: "an upscaler (7 input channels)",
    5: "a depth model (5 input channels)",
}


def _kind(source: ModelSource, family: FamilyName, *, needs_vae: bool) -> tuple[str, str]:
    """Return what it is in words, and what stands in the way of training it."""
    for name, fits, remedy in _FOREIGN:
        if fits(source):
            return name, remedy
    if family == "sdxl":
        return f"a {_NAMES['sdxl']} model", f"this family can't be trained yet; {_NEED}"
    first = source.parts["unet"].get("conv_in.weight")
    if first is None:
        return "no image model that is known here", _NEED
    if first.shape[1] != 4:
        return _CHANNELS.get(first.shape[1], f"a model of {first.shape[1]} input channels"), _NEED
    lacking = [part for part in PART_NAMES if not source.parts[part] and (part != "vae" or needs_vae)]
    name = f"a {_NAMES[family]} model"
    if lacking:
        words = " and ".join(part.replace("_", " ") for part in lacking)
        hint = "name one with --vae" if lacking == ["vae"] else "get the complete model"
        return f"{name} without {words}", hint
    return name, ""


def _warnings(source: ModelSource, family: FamilyName) -> Iterable[str]:
    other = source.parts["other"]
    if any(name.startswith("model_ema.") for name in other):
        yield "holds EMA weights as well; training starts from the ordinary ones and keeps these unchanged"
    ids = [tensor for name, tensor in other.items() if name.endswith("position_ids")]
    if any(tensor.dtype != "I64" for tensor in ids):
        yield "its position_ids are not int64, which some programs complain about; saving repairs that"
    if source.marks and "state_dict" not in source.marks:
        yield "is a bare table of tensors without state_dict"
    schedule = source.configs.get("scheduler", {})
    if schedule.get("beta_schedule", "scaled_linear") != "scaled_linear" and family in {"sd1", "sd2"}:
        yield f"states the unusual noise schedule {safe_text(str(schedule['beta_schedule']), 40)}"


def file_sha256(path: Path, progress: Callable[[int, int], None] | None = None) -> str:
    """Return a file's SHA-256 as hex digits; `progress` hears of bytes done and bytes in all.

    Raises:
        EngineError: It can't be read.
    """
    digest = hashlib.sha256()
    done = 0
    try:
        total = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            while block := file.read(4_194_304):
                digest.update(block)
                done += len(block)
                if progress:
                    progress(done, total)
    except OSError as error:
        raise EngineError(
            f"{safe_text(str(path))}: can't be read: {error.strerror or error}; check the path"
        ) from error
    return digest.hexdigest()

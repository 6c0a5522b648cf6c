"""Writing a model in any of the four formats, tensor by tensor, whole or not at all. Torch-free until values are read.

Nothing is gathered first: what was trained is taken from memory, the rest is read from the source as it is written.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from engine.errors import EngineError, safe_text
from engine.models.atomic import atomic_file, atomic_folder
from engine.models.configs import CONFIG_KEY, Config, model_config, overrides_of, scheduler_config
from engine.models.inspect import PredictionType
from engine.models.keys import Family, Parts, to_single_file
from engine.models.lazy import LazyTensor
from engine.models.pickle_writer import write_pickle
from engine.models.safetensors_io import write_safetensors
from engine.models.source import PART_NAMES
from engine.resources import TOKENIZER, family_config

SaveFormat = Literal["ckpt", "safetensors", "diffusers", "diffusers_safetensors"]
PRECISIONS = {"float": "F32", "fp16": "F16", "bf16": "BF16"}
_TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Saveable:
    """A model to be written: unread tensors by part, "other" among them, and what belongs beside them.

    `tokenizer` is the folder to copy the tokenizer from; `counts` are (epoch, step) for a .ckpt.
    """

    family: Family
    prediction_type: PredictionType
    parts: Parts[LazyTensor]
    configs: Mapping[str, Config]
    scheduler: Config
    tokenizer: Path = TOKENIZER
    metadata: Mapping[str, str] = field(default_factory=dict)
    counts: tuple[int, int] = (0, 0)


def save_model(model: Saveable, path: Path, save_model_as: str, save_precision: str | None) -> None:
    """Write a model; what is at `path` is replaced once the new one is complete.

    Args:
        model: What to write.
        path: The file, or the folder for the diffusers formats.
        save_model_as: "ckpt", "safetensors", "diffusers" (.bin) or "diffusers_safetensors".
        save_precision: "float", "fp16" or "bf16" for all but "other"; None keeps each tensor's own.

    Raises:
        EngineError: A weight is not finite, the disk refuses, or the format is unknown.
    """
    if save_model_as not in get_args(SaveFormat):
        raise EngineError(
            f"save_model_as = {safe_text(save_model_as)}: choose one of {', '.join(get_args(SaveFormat))}"
        )
    code = None if save_precision is None else PRECISIONS[save_precision]
    if save_model_as.startswith("diffusers"):
        _save_folder(model, path, code, is_safe=save_model_as == "diffusers_safetensors")
    else:
        _save_file(model, path, code, is_safe=save_model_as == "safetensors")


def _save_file(model: Saveable, path: Path, code: str | None, *, is_safe: bool) -> None:
    tensors = single_file_tensors(model, code)
    finite = tensors.keys() - model.parts["other"].keys()
    stated = file_config(model)
    if is_safe:
        write_safetensors(path, tensors, metadata={**model.metadata, **stated}, finite=finite)
    else:
        epoch, step = model.counts
        write_pickle(path, tensors, extra={"epoch": epoch, "global_step": step, **stated}, finite=finite)


def single_file_tensors(model: Saveable, code: str | None) -> dict[str, LazyTensor]:
    """Return what a single file of the model holds; "other" keeps its types, but position_ids become int64.

    diffusers takes the width of an SD 2.x text encoder from text_projection, so that has the width of this one.
    """
    other = model.parts["other"]
    width = model.configs["text_encoder"]["hidden_size"]
    tensors = to_single_file(model.parts, family=model.family, projection_width=width)
    return {key: _kept(key, tensor) if key in other else _cast(tensor, code) for key, tensor in tensors.items()}


def _kept(key: str, tensor: LazyTensor) -> LazyTensor:
    return tensor.long() if key.endswith("position_ids") else tensor


def _cast(tensor: LazyTensor, code: str | None) -> LazyTensor:
    return tensor.astype(code) if code else tensor


def file_config(model: Saveable) -> dict[str, str]:
    """Return the metadata entry by which a single file of unusual make comes back as it was; empty for usual ones.

    SD 2.x always states its prediction type: nothing else in a .ckpt would.
    """
    stated = {
        part: overrides_of(part, model.configs[part], model_config(part, model.parts[part], model.family, {}))
        for part in PART_NAMES
    }
    stated["scheduler"] = overrides_of("scheduler", model.scheduler, scheduler_config(model.family, {}))
    if model.family == "sd2":
        stated["scheduler"]["prediction_type"] = model.prediction_type
    found = {part: config for part, config in stated.items() if config}
    return {CONFIG_KEY: json.dumps(found, sort_keys=True)} if found else {}


# ---- diffusers folders


def _save_folder(model: Saveable, path: Path, code: str | None, *, is_safe: bool) -> None:
    with atomic_folder(path) as folder:
        for part in PART_NAMES:
            tensors = {name: _cast(tensor, code) for name, tensor in folder_tensors(model, part).items()}
            stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
            if is_safe:
                target = folder / part / f"{stem}.safetensors"
                write_safetensors(target, tensors, metadata={"format": "pt"}, finite=tensors.keys())
            else:
                stem = "pytorch_model" if part == "text_encoder" else stem
                write_pickle(folder / part / f"{stem}.bin", tensors, finite=tensors.keys())
            _write_json(folder / part / "config.json", _versioned(model.configs[part]))
        _write_json(folder / "scheduler" / "scheduler_config.json", _versioned(_reference_scheduler(model)))
        _write_json(folder / "model_index.json", _versioned(family_config(model.family, "pipeline")))
        _write_tokenizer(model, folder / "tokenizer")


def folder_tensors(model: Saveable, part: str) -> dict[str, LazyTensor]:
    """Return a part's tensors in the shapes its config calls for: projections are matrices or 1x1 convolutions."""
    from engine.models.modules import architecture_shapes

    shapes = architecture_shapes(part, model.configs[part])
    return {name: tensor.reshape(shapes[name]) for name, tensor in model.parts[part].items()}


def _reference_scheduler(model: Saveable) -> Config:
    """Name DDIM, as sd-scripts does: any other sampler can be made from its config."""
    return {**model.scheduler, "_class_name": "DDIMScheduler", "prediction_type": model.prediction_type}


def _versioned(config: Config) -> Config:
    if "_class_name" not in config:
        return config
    from diffusers import __version__

    return {**config, "_diffusers_version": __version__}


def _write_tokenizer(model: Saveable, folder: Path) -> None:
    folder.mkdir()
    for name in _TOKENIZER_FILES:
        source = model.tokenizer / name
        if source.exists():
            shutil.copyfile(source, folder / name)
    if model.family == "sd2" and model.tokenizer == TOKENIZER:  # SD 2.x pads with "!", id 0.
        for name in _TOKENIZER_FILES[2:]:
            _write_json(folder / name, {**json.loads((TOKENIZER / name).read_text("utf-8")), "pad_token": "!"})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write(json.dumps(value, indent=2, sort_keys=True).encode("utf-8") + b"\n")

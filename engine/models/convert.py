"""A model from a single file to a diffusers folder or back, every value compared afterwards."""

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch

from engine.errors import EngineError, safe_text
from engine.models.configs import CONFIG_KEY, scheduler_config
from engine.models.hypernetwork_file import open_hypernetwork, write_hypernetwork
from engine.models.inspect import HYPERNETWORK, describe, resolved_prediction, trainable_family
from engine.models.lazy import LazyTensor
from engine.models.modules import architecture_shapes, differences, listed, refuse_mismatch
from engine.models.saving import PRECISIONS, Saveable, SaveFormat, folder_tensors, save_model, single_file_tensors
from engine.models.sd import part_configs, tokenizer_folder
from engine.models.source import PART_NAMES, ModelSource, open_file, open_source


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What was written, and how many tensors were read back and found equal."""

    source: Path
    target: Path
    save_model_as: str
    tensors: int
    num_bytes: int
    left_out: tuple[str, ...]
    """Tensors of the source that have no place in the target."""

    def __str__(self) -> str:
        """Return the report as one line, with a second one for what was left out."""
        target, kind = safe_text(str(self.target)), self.save_model_as
        line = f"wrote {target} ({kind}, {self.num_bytes / 1e6:.1f} MB); {self.tensors} tensors read back and equal"
        if not self.left_out:
            return line
        return f"{line}\nleft out, having no place there: {listed([safe_text(name) for name in self.left_out])}"


def convert(
    source: str | Path,
    target: str | Path,
    *,
    save_model_as: str | None = None,
    save_precision: str | None = None,
    v_parameterization: bool | None = None,
) -> Conversion:
    """Write a model in another form, then open the result and compare every tensor.

    Args:
        source: A model file or a diffusers folder.
        target: Where; what its name ends in gives the format where `save_model_as` does not: .safetensors, .ckpt, else
            a folder of safetensors.
        save_model_as: "ckpt", "safetensors", "diffusers" or "diffusers_safetensors".
        save_precision: "float", "fp16" or "bf16"; None keeps each tensor's own.
        v_parameterization: What an SD 2.x model predicts, where its files don't tell.

    Raises:
        EngineError: There is something at `target` already, the model can't be converted, or the result differs.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise EngineError(f"{safe_text(str(target))}: is there already and is not overwritten; choose another name")
    kind = save_model_as or _format_of(target)
    opened = open_source(source)
    if describe(opened).what == HYPERNETWORK:
        return _convert_hypernetwork(source, target, save_precision)
    model = _saveable(opened, v_parameterization)
    save_model(model, target, kind, save_precision)
    code = None if save_precision is None else PRECISIONS[save_precision]
    compared = _compare(model, target, code, is_folder=kind.startswith("diffusers"))
    return Conversion(
        source=source,
        target=target,
        save_model_as=kind,
        tensors=compared,
        num_bytes=open_source(target).num_bytes,
        left_out=tuple(opened.parts["other"]) if kind.startswith("diffusers") else (),
    )


def _convert_hypernetwork(source: Path, target: Path, save_precision: str | None) -> Conversion:
    if target.suffix not in (".pt", ".safetensors"):
        raise EngineError(f"{safe_text(str(target))}: a hypernetwork becomes a .pt or a .safetensors file; name one")
    network = open_hypernetwork(source)
    if save_precision is not None:
        network = network.astype(PRECISIONS[save_precision])
    write_hypernetwork(network, target)
    wanted, written = network.tensors(), open_hypernetwork(target).tensors()
    if wanted.keys() != written.keys() or not all(is_equal(tensor, written[name]) for name, tensor in wanted.items()):
        raise EngineError(f"{safe_text(str(target))}: differs from what was written; check the disk")
    return Conversion(
        source=source,
        target=target,
        save_model_as="hypernetwork",
        tensors=len(wanted),
        num_bytes=target.stat().st_size,
        left_out=(),
    )


def _format_of(target: Path) -> SaveFormat:
    suffix = target.suffix.lower().removeprefix(".")
    return "safetensors" if suffix == "safetensors" else "ckpt" if suffix == "ckpt" else "diffusers_safetensors"


def _saveable(source: ModelSource, v_parameterization: bool | None) -> Saveable:
    info = describe(source)
    family = trainable_family(info, None)
    prediction_type, _ = resolved_prediction(info, v_parameterization)
    configs = part_configs(source, family, prediction_type)
    for part in PART_NAMES:
        refuse_mismatch(part, source.parts[part], architecture_shapes(part, configs[part]))
    return Saveable(
        family=family,
        prediction_type=prediction_type,
        parts=source.parts,
        configs=configs,
        scheduler=scheduler_config(family, source.configs.get("scheduler", {})),
        tokenizer=tokenizer_folder(source),
        metadata={key: text for key, text in source.metadata.items() if key != CONFIG_KEY},
    )


def _compare(model: Saveable, target: Path, code: str | None, *, is_folder: bool) -> int:
    """Return how many tensors of the file or folder hold the very values that were to be written.

    Raises:
        EngineError: One does not.
    """
    if is_folder:
        written = open_source(target).parts
        pairs = [(folder_tensors(model, part), written[part]) for part in PART_NAMES]
    else:
        pairs = [(single_file_tensors(model, code), open_file(target).tensors)]
    for wanted, found in pairs:
        shown = safe_text(str(target))
        unequal = differences(found, {name: tensor.shape for name, tensor in wanted.items()})
        unequal += [name for name, tensor in wanted.items() if not unequal and not is_equal(tensor, found[name])]
        if unequal:
            raise EngineError(f"{shown}: differs from what was written ({safe_text(unequal[0])}); check the disk")
    return sum(len(wanted) for wanted, _ in pairs)


def is_equal(wanted: LazyTensor, found: LazyTensor) -> bool:
    """Tell whether two tensors hold the same values once the first has the second's type; NaN equals NaN."""
    pairs = zip_longest(wanted.astype(found.dtype).pieces(), found.pieces())
    return all(a is not None and b is not None and torch.equal(_bits(a), _bits(b)) for a, b in pairs)


def _bits(piece: torch.Tensor) -> torch.Tensor:
    return piece.contiguous().view(torch.uint8)

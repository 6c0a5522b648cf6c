"""Hypernetwork files: those of A1111's web UI, of NovelAI, and the same tensors as .safetensors. Torch-free.

A1111 keeps a dict that torch saved: for each width an integer key with a pair of tables, for keys and for values,
and beside them the structure in plain values (its modules/hypernetworks/hypernetwork.py). NovelAI's files are the
same without the structure. In .safetensors a tensor is named `width.k.name` or `width.v.name`, and the metadata
entry `hypernetwork` holds the plain values as JSON.
"""

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from engine.errors import EngineError, safe_text
from engine.models.lazy import LazyTensor
from engine.models.pickle_writer import write_tables
from engine.models.pickles import open_tables
from engine.models.safetensors_io import open_safetensors, write_safetensors

Branches = tuple[Mapping[str, LazyTensor], Mapping[str, LazyTensor]]
"""The tensors on keys and those on values."""
ModuleKind = Literal["linear", "activation", "norm", "dropout"]
METADATA_KEY = "hypernetwork"
_BRANCH_NAMES = ("k", "v")
_OLD_NAMES = {
    f"linear{number}.{kind}": f"linear.{number - 1}.{kind}" for number in (1, 2) for kind in ("weight", "bias")
}
_WIDTH = re.compile(r"[1-9][0-9]{0,4}")
_MAX_WIDTH = 65_536
_MAX_WIDTHS = 32
_TYPES = {"F16", "BF16", "F32", "F64"}
_MAX_LAYERS = 32
NAMED_DROPOUT = 0.3
"""The rate of files that only say that dropout was used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """How each of a hypernetwork's small networks is built, the same for every width.

    `layers` are the sizes of its layers in widths, from 1 to 1. `dropout` has a rate for each of them, `activation`
    is one of A1111's names. A1111 puts no activation after the last layer unless `activate_output`.
    """

    layers: tuple[float, ...] = (1.0, 2.0, 1.0)
    activation: str = "linear"
    layer_norm: bool = False
    activate_output: bool = False
    dropout: tuple[float, ...] = ()

    def modules(self) -> Iterator[tuple[ModuleKind, int]]:
        """Yield the kind of each module in order and the layer it belongs to, from 1 on.

        The place in this order is the number in a tensor's name, so it has to be A1111's own.
        """
        last = len(self.layers) - 1
        for layer in range(1, last + 1):
            yield "linear", layer
            if self.activation != "linear" and (layer < last or self.activate_output):
                yield "activation", layer
            if self.layer_norm:
                yield "norm", layer
            if self.dropout and self.dropout[layer] > 0:
                yield "dropout", layer

    @property
    def narrowest(self) -> int:
        """The number of the smallest layer."""
        return min(range(len(self.layers)), key=self.layers.__getitem__)

    def size(self, width: int, layer: int) -> int:
        """Return the size of a layer's output."""
        return int(width * self.layers[layer])

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor of one small network by its name."""
        found: dict[str, tuple[int, ...]] = {}
        for place, (kind, layer) in enumerate(self.modules()):
            size = self.size(width, layer)
            if kind in ("linear", "norm"):
                is_linear = kind == "linear"
                found[f"linear.{place}.weight"] = (size, self.size(width, layer - 1)) if is_linear else (size,)
                found[f"linear.{place}.bias"] = (size,)
        return found

    def num_parameters(self, width: int) -> int:
        """Return how many weights one small network has."""
        return sum(map(math.prod, self.shapes(width).values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class HypernetworkFile:
    """A hypernetwork as its file holds it, tensors unread; `step` is how long it was trained."""

    structure: Structure
    layers: Mapping[int, Branches]
    name: str = ""
    step: int = 0
    base: str = ""
    """Name of the model that it was trained for."""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def astype(self, code: str) -> "HypernetworkFile":
        """Return it with tensors to be converted to a number format on reading."""
        layers = {
            width: (
                {name: tensor.astype(code) for name, tensor in keys.items()},
                {name: tensor.astype(code) for name, tensor in values.items()},
            )
            for width, (keys, values) in self.layers.items()
        }
        return replace(self, layers=layers)

    def tensors(self) -> dict[str, LazyTensor]:
        """Return the tensors by their names in .safetensors."""
        return {
            f"{width}.{branch}.{name}": tensor
            for width, pair in self.layers.items()
            for branch, tensors in zip(_BRANCH_NAMES, pair, strict=True)
            for name, tensor in tensors.items()
        }


def open_hypernetwork(path: Path) -> HypernetworkFile:
    """Open a hypernetwork of any of the three kinds; nothing in it is run.

    Raises:
        EngineError: It is missing, damaged, no hypernetwork, or of a structure that A1111 doesn't know either.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise EngineError(
            f"{safe_text(str(path))}: can't be read: {error.strerror or error}; check the path"
        ) from error
    return _from_safetensors(path) if head[8:9] == b"{" else _from_tables(path, open_tables(path))


def open_for(path: Path, widths: Collection[int]) -> tuple[HypernetworkFile, tuple[str, ...]]:
    """Open a hypernetwork for a model whose attention has `widths`; return warnings of what does not match.

    Raises:
        EngineError: It can't be used, or has layers for none of the widths.
    """
    file = open_hypernetwork(path)
    shown = safe_text(path.name)
    if file.layers.keys().isdisjoint(widths):
        raise EngineError(
            f"{safe_text(str(path))}: is for widths {sizes_text(file.layers)}, and this model's attention has "
            f"{sizes_text(widths)}: choose one of the same family"
        )
    warnings = []
    if unused := file.layers.keys() - set(widths):
        warnings.append(f"{shown} has layers for widths {sizes_text(unused)}, which this model does not have")
    if bare := set(widths) - file.layers.keys():
        warnings.append(f"{shown} has no layers for widths {sizes_text(bare)}; attention there stays as it is")
    return file, tuple(warnings)


def sizes_text(widths: Iterable[int]) -> str:
    """Return widths as a person writes them."""
    return ", ".join(map(str, sorted(widths)))


def write_hypernetwork(network: HypernetworkFile, path: Path) -> None:
    """Write a hypernetwork: .safetensors by that name, else the file that A1111 reads.

    Raises:
        EngineError: A value is not finite, or the disk refuses; what was at `path` is still there.
    """
    plain = _plain_values(network)
    if path.suffix == ".safetensors":
        tensors = network.tensors()
        metadata = {**network.metadata, METADATA_KEY: json.dumps(plain, sort_keys=True)}
        write_safetensors(path, tensors, metadata=metadata, finite=tensors.keys())
    else:
        tables: dict[int | str, Any] = {width: tuple(map(dict, pair)) for width, pair in network.layers.items()}
        write_tables(path, tables | plain)


def _plain_values(network: HypernetworkFile) -> dict[str, Any]:
    """Return what stands beside the tensors, in A1111's words."""
    structure = network.structure
    dropout = list(structure.dropout) or [0.0] * len(structure.layers)
    return {
        "step": network.step,
        "name": network.name,
        "layer_structure": [int(size) if size == int(size) else size for size in structure.layers],
        "activation_func": structure.activation,
        "is_layer_norm": structure.layer_norm,
        "weight_initialization": "Normal",
        "use_dropout": any(dropout),
        "dropout_structure": dropout,
        "last_layer_dropout": len(dropout) > 2 and dropout[-2] > 0,
        "activate_output": structure.activate_output,
        "sd_checkpoint": None,
        "sd_checkpoint_name": network.base or None,
    }


# ---- reading


def _refuse(path: Path, why: str) -> NoReturn:
    raise EngineError(f"{safe_text(str(path))}: is no hypernetwork that can be used: {why}; choose another file")


def _from_safetensors(path: Path) -> HypernetworkFile:
    file = open_safetensors(path)
    try:
        plain = json.loads(file.metadata.get(METADATA_KEY, "{}"))
    except (ValueError, RecursionError):
        _refuse(path, f"its metadata entry {METADATA_KEY} is no JSON")
    layers: dict[int, tuple[dict[str, LazyTensor], dict[str, LazyTensor]]] = {}
    for full_name, tensor in file.tensors.items():
        width, _, rest = full_name.partition(".")
        branch, _, name = rest.partition(".")
        if not _WIDTH.fullmatch(width) or branch not in _BRANCH_NAMES:
            _refuse(path, f"it holds {safe_text(full_name, 60)}")
        layers.setdefault(int(width), ({}, {}))[_BRANCH_NAMES.index(branch)][name] = tensor
    metadata = {name: text for name, text in file.metadata.items() if name != METADATA_KEY}
    return _checked(path, layers, plain if isinstance(plain, dict) else {}, metadata)


def _from_tables(path: Path, data: object) -> HypernetworkFile:
    if not isinstance(data, dict):
        _refuse(path, "it holds no table")
    layers = {}
    for width, pair in data.items():
        if type(width) is not int:  # True is no width.
            continue
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(part, dict) for part in pair):
            _refuse(path, f"under {width} there is no pair of tables")
        layers[width] = (_renamed(pair[0]), _renamed(pair[1]))
    return _checked(path, layers, {name: value for name, value in data.items() if isinstance(name, str)}, {})


def _renamed(table: Mapping[Any, Any]) -> dict[str, Any]:
    """Take names of before October 2022 for today's."""
    return {_OLD_NAMES.get(str(name), str(name)): value for name, value in table.items()}


def _checked(
    path: Path, layers: Mapping[int, Branches], plain: Mapping[str, Any], metadata: Mapping[str, str]
) -> HypernetworkFile:
    """Hold every tensor to the shape that the structure asks for."""
    if not layers:
        _refuse(path, "it has no layers for any width")
    if len(layers) > _MAX_WIDTHS:
        _refuse(path, f"it has layers for {len(layers)} widths")
    structure = _structure(path, plain)
    for width, pair in layers.items():
        if not 1 <= width <= _MAX_WIDTH:
            _refuse(path, f"it has layers for a width of {width}")
        if structure.size(width, structure.narrowest) < 1:
            _refuse(path, f"a layer of its structure has no room in a width of {width}")
        for tensors in pair:
            _check_tensors(path, tensors, structure, width)
    held = sum(tensor.num_bytes for pair in layers.values() for tensors in pair for tensor in tensors.values())
    if held > path.stat().st_size:
        _refuse(path, f"its tensors would take {held} bytes, more than the file has")
    step = plain.get("step")
    return HypernetworkFile(
        structure=structure,
        layers=dict(sorted(layers.items())),
        name=_text(plain.get("name")) or path.stem,
        step=step if type(step) is int and 0 <= step < 2**48 else 0,
        base=_text(plain.get("sd_checkpoint_name")),
        metadata=metadata,
    )


def _check_tensors(path: Path, tensors: Mapping[str, LazyTensor], structure: Structure, width: int) -> None:
    shapes = structure.shapes(width)
    odd = tensors.keys() ^ shapes.keys()
    odd |= {name for name, shape in shapes.items() if getattr(tensors.get(name), "shape", None) != shape}
    if odd:
        name = safe_text(min(odd), 60)
        _refuse(path, f"its tensor {name} for width {width} is not what its structure asks for")
    strange = {tensor.dtype for tensor in tensors.values()} - _TYPES
    if strange:
        _refuse(path, f"its values are of the type {min(strange)}")


def _text(value: object) -> str:
    """Return a text of a file, "" for anything else: nested data may be endless when written out."""
    return value if isinstance(value, str) else ""


def _structure(path: Path, plain: Mapping[str, Any]) -> Structure:
    """Read the structure, with A1111's defaults for files that do not tell."""
    layers = _numbers(plain.get("layer_structure") or [1, 2, 1])
    if layers is None or not 2 <= len(layers) <= _MAX_LAYERS or layers[0] != 1 or layers[-1] != 1:
        shown = ",".join(f"{size:g}" for size in layers[:8]) if layers else "no list of numbers"
        _refuse(path, f"its layer structure is {shown}")
    if not all(0 < size <= 64 for size in layers):
        _refuse(path, "a layer of its structure has no sane size")
    activation = (_text(plain.get("activation_func")) or "linear").lower()
    if activation not in ACTIVATIONS:
        _refuse(path, f"its activation is {safe_text(activation, 40)}")
    dropout = _numbers(plain.get("dropout_structure"))
    if dropout is None:
        dropout = _named_dropout(len(layers), plain)
    if dropout and (len(dropout) != len(layers) or not all(0 <= rate < 1 for rate in dropout)):
        _refuse(path, "its dropout does not fit its layers")
    return Structure(
        layers=layers,
        activation=activation,
        layer_norm=bool(plain.get("is_layer_norm")),
        activate_output=bool(plain.get("activate_output", True)),
        dropout=dropout if any(dropout) else (),
    )


def _numbers(value: object) -> tuple[float, ...] | None:
    """Return a list of finite numbers, None for anything else."""
    if not isinstance(value, list | tuple) or len(value) > _MAX_LAYERS:
        return None
    is_sound = all(type(item) in (int, float) and abs(item) < 1e6 for item in value)  # Also no NaN.
    return tuple(map(float, value)) if is_sound else None


def _named_dropout(count: int, plain: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the rates of a file that says only whether dropout was used, as A1111 places them."""
    if not plain.get("use_dropout"):
        return ()
    before_last = NAMED_DROPOUT if plain.get("last_layer_dropout") else 0.0
    return (0.0, *[NAMED_DROPOUT] * (count - 3), before_last, 0.0)[:count]


ACTIVATIONS: Mapping[str, str] = {
    "linear": "Identity", "relu": "ReLU", "leakyrelu": "LeakyReLU", "elu": "ELU", "swish": "Hardswish",
    "tanh": "Tanh", "sigmoid": "Sigmoid", "celu": "CELU", "gelu": "GELU", "hardshrink": "Hardshrink",
    "hardsigmoid": "Hardsigmoid", "hardswish": "Hardswish", "hardtanh": "Hardtanh", "logsigmoid": "LogSigmoid",
    "mish": "Mish", "relu6": "ReLU6", "selu": "SELU", "silu": "SiLU", "softplus": "Softplus",
    "softshrink": "Softshrink", "softsign": "Softsign", "tanhshrink": "Tanhshrink",
}  # fmt: skip
"""A1111's names of activations and torch's; "swish" has always been Hardswish there."""

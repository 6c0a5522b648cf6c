"""Everything a state holds, taken from a run and put back into one: tensors by name, the rest as JSON.

No pickle, no generator state: draws are keyed by their place in the run (`engine.rng`). The optimizer's values are
kept by the names of the parameters they belong to, so that an order that changes can't mix them up.
"""

import hashlib
from array import array
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.dataset.ledger import DATASET_FILE
from engine.errors import EngineError, safe_text
from engine.events import Event, Step
from engine.models.lazy import LazyTensor, lazy, torch_dtype
from engine.models.safetensors_io import open_safetensors, write_safetensors
from engine.states import STATE_FILE, new_state

Tensors = Mapping[str, Mapping[str, LazyTensor]]
"""Tensors by file and name."""

_HISTORY = ("loss", "learning_rate", "grad_norm")


@dataclass(slots=True)
class History:
    """The numbers of every step so far; a listener of the run's events."""

    loss: "array[float]" = field(default_factory=lambda: array("d"))
    learning_rate: "array[float]" = field(default_factory=lambda: array("d"))
    grad_norm: "array[float]" = field(default_factory=lambda: array("d"))
    models: list[str] = field(default_factory=list)
    """File names, without extension, of the models saved before this run's first step."""

    def emit(self, event: Event) -> None:
        """Take in a step."""
        if isinstance(event, Step):
            for name in _HISTORY:
                getattr(self, name).append(getattr(event, name))

    def close(self) -> None:
        """Nothing is held open."""

    def take(self, earlier: "History") -> None:
        """Take in the steps before this run's first."""
        for name in _HISTORY:
            getattr(self, name)[:0] = getattr(earlier, name)

    def lazy(self) -> dict[str, LazyTensor]:
        """Return the columns as float64 tensors."""
        return {name: lazy(torch.tensor(getattr(self, name), dtype=torch.float64)) for name in _HISTORY}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """The content of a state: tensors by file, and the tables of state.json and dataset.json."""

    step: int
    tensors: Tensors
    state: Mapping[str, Any]
    dataset: Mapping[str, Any]
    facts: Mapping[str, Any]

    @property
    def num_bytes(self) -> int:
        """What its tensors take."""
        return num_bytes_of(self.tensors)

    def copied(self, into: Tensors) -> "Snapshot":
        """Return the snapshot with its tensors copied into main memory, so that training may go on.

        Those in `into`, of `room_for` or of an earlier copy, are written over where they have the same shape.
        """
        tensors = {
            file: {name: _copied(tensor, into.get(file, {}).get(name)) for name, tensor in named.items()}
            for file, named in self.tensors.items()
        }
        return Snapshot(step=self.step, tensors=tensors, state=self.state, dataset=self.dataset, facts=self.facts)

    def write(self, run_folder: Path) -> None:
        """Write the state, tensor by tensor; hashes cost no second reading.

        Raises:
            EngineError: A weight is not finite, or the disk refuses; other states are untouched.
        """
        with new_state(run_folder, self.step, self.facts) as new:
            for name, tensors in self.tensors.items():
                digest = hashlib.sha256()
                # Weights that are not finite are no good state; a moment of the optimizer may overflow and recover.
                finite = () if name.startswith("optimizer") else tuple(tensors)
                write_safetensors(new.path / name, tensors, metadata={}, finite=finite, digest=digest)
                new.add(name, digest.hexdigest())
            new.add_json(STATE_FILE, self.state)
            new.add_json(DATASET_FILE, self.dataset)


def num_bytes_of(tensors: Tensors) -> int:
    """Return what tensors take."""
    return sum(tensor.num_bytes for named in tensors.values() for tensor in named.values())


def room_for(tensors: Tensors) -> Tensors:
    """Return memory for a copy of tensors.

    Writing to it takes long once: the system provides each page when it is touched first. Copying over it is quick.
    """
    return {file: {name: _touched(tensor) for name, tensor in named.items()} for file, named in tensors.items()}


def _touched(tensor: LazyTensor) -> LazyTensor:
    room = torch.empty(tensor.shape, dtype=torch_dtype(tensor.dtype))
    _bytes_of(room).fill(0)
    return lazy(room)


def _copied(tensor: LazyTensor, into: LazyTensor | None) -> LazyTensor:
    values = tensor.tensor().detach()
    if into is None or (into.shape, into.dtype) != (tensor.shape, tensor.dtype):
        into = lazy(torch.empty(values.shape, dtype=values.dtype))
    if values.device.type == "cpu" and values.is_contiguous():
        # One plain copy of bytes: torch's own divides each tensor among threads, whose meeting takes longer.
        np.copyto(_bytes_of(into.tensor()), _bytes_of(values))
    else:
        into.tensor().copy_(values)
    return into


def _bytes_of(tensor: Tensor) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    return tensor.reshape(-1).view(torch.uint8).numpy()


def weights_of(parts: Iterator[tuple[str, nn.Module]]) -> dict[str, dict[str, LazyTensor]]:
    """Return the trained parts' tensors by file."""
    return {
        f"{part}.safetensors": {name: lazy(tensor) for name, tensor in module.state_dict().items()}
        for part, module in parts
    }


def names_of(parts: Iterator[tuple[str, nn.Module]]) -> dict[nn.Parameter, str]:
    """Return each trained parameter's name, "part.parameter"."""
    return {
        parameter: f"{part}.{name}"
        for part, module in parts
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def optimizer_values(
    optimizer: Optimizer, names: Mapping[nn.Parameter, str]
) -> tuple[dict[str, LazyTensor], dict[str, Any]]:
    """Return an optimizer's tensors, named after their parameters, and a table of all its values."""
    tensors: dict[str, LazyTensor] = {}
    saved = optimizer.state_dict()
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    groups = [{key: value for key, value in group.items() if key != "params"} for group in saved["param_groups"]]
    return tensors, {
        "class": type(optimizer).__name__,
        "parameters": {
            order[number]: _packed(order[number], values, tensors) for number, values in saved["state"].items()
        },
        "groups": [_packed(f"#{number}", group, tensors) for number, group in enumerate(groups)],
    }


def _packed(owner: str, values: Mapping[str, Any], tensors: dict[str, LazyTensor]) -> dict[str, Any]:
    """Return a table of an owner's values, whose tensors go to `tensors`."""
    table: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Tensor):
            tensors[f"{owner}/{key}"] = lazy(value)
            table[key] = {"kind": "tensor"}
        elif isinstance(value, list) and value and all(isinstance(item, Tensor) for item in value):
            tensors |= {f"{owner}/{key}/{number}": lazy(item) for number, item in enumerate(value)}
            table[key] = {"kind": "tensors", "count": len(value)}
        elif isinstance(value, dict):
            table[key] = {"kind": "table", "value": _packed(f"{owner}/{key}", value, tensors)}
        else:
            is_tuple = isinstance(value, tuple)
            table[key] = {"kind": "tuple" if is_tuple else "value", "value": list(value) if is_tuple else value}
    return table


def _unpacked(owner: str, table: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    def value_of(key: str, entry: Mapping[str, Any]) -> object:
        if entry["kind"] == "tensor":
            return tensors[f"{owner}/{key}"].tensor().clone()
        if entry["kind"] == "tensors":
            return [tensors[f"{owner}/{key}/{number}"].tensor().clone() for number in range(entry["count"])]
        if entry["kind"] == "table":
            return _unpacked(f"{owner}/{key}", entry["value"], tensors)
        return tuple(entry["value"]) if entry["kind"] == "tuple" else entry["value"]

    return {key: value_of(key, entry) for key, entry in table.items()}


def load_optimizer(
    optimizer: Optimizer,
    names: Mapping[nn.Parameter, str],
    tensors: Mapping[str, LazyTensor],
    record: Mapping[str, Any],
    *,
    new_arguments: Collection[str] = (),
) -> None:
    """Put saved values back into an optimizer.

    Args:
        optimizer: A new one, made from the settings.
        names: Of its parameters.
        tensors: Those of `optimizer_values`.
        record: Its table.
        new_arguments: Arguments that were changed since: the new ones count.

    Raises:
        EngineError: They are another optimizer's, or of other parameters.
    """
    if record["class"] != type(optimizer).__name__:
        raise EngineError(
            f"the state is of the optimizer {safe_text(str(record['class']))} and the settings ask for "
            f"{type(optimizer).__name__}: set the same optimizer_type, or start a new run from the saved model"
        )
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    tables = record["parameters"]
    if strangers := sorted(set(tables) ^ set(order)) if tables else []:
        raise EngineError(
            f"the state's optimizer and this run train different parts, among them {safe_text(strangers[0])}: "
            "train the same parts, or start a new run from the saved model"
        )
    state = {number: _unpacked(name, tables[name], tensors) for number, name in enumerate(order) if name in tables}
    groups = []
    for number, group in enumerate(optimizer.state_dict()["param_groups"]):
        told = _unpacked(f"#{number}", record["groups"][number], tensors)
        groups.append({**group, **{key: value for key, value in told.items() if key not in new_arguments}})
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def load_weights(
    path: Path, parts: Iterator[tuple[str, nn.Module]], *, files: Mapping[str, Path] | None = None
) -> None:
    """Copy a state's weights into the trained parts; `files` says where each is, if not under its own name.

    Raises:
        EngineError: A part is missing, or its tensors are others.
    """
    for part, module in parts:
        saved = _tensors_in(files[part] if files else path / f"{part}.safetensors")
        present = module.state_dict()
        if saved.keys() != present.keys() or any(saved[name].shape != tuple(present[name].shape) for name in saved):
            raise EngineError(f"{safe_text(str(path))}: {part}.safetensors is of another model; choose its own state")
        with torch.no_grad():
            for name, tensor in present.items():
                tensor.copy_(saved[name].tensor())


def state_tensors(path: Path, name: str) -> dict[str, LazyTensor]:
    """Return the unread tensors of one of a state's files; the name is that of the file without extension.

    Raises:
        EngineError: It is missing or damaged.
    """
    return _tensors_in(path / f"{name}.safetensors")


def _tensors_in(file: Path) -> dict[str, LazyTensor]:
    if not file.exists():
        raise EngineError(f"{safe_text(str(file))} is missing: the state was saved without it")
    return open_safetensors(file).tensors


def load_history(path: Path) -> History:
    """Return the numbers of the steps before a state."""
    tensors = state_tensors(path, "history")
    loss, learning_rate, grad_norm = (array("d", tensors[name].tensor().tolist()) for name in _HISTORY)
    return History(loss=loss, learning_rate=learning_rate, grad_norm=grad_norm)

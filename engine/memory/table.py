"""The memory table: what the tracer found out, shipped with the package, and where to find it. Torch-free."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from engine.memory.allocation import rounded
from engine.memory.planes import Attention, features

SHIPPED = Path(__file__).with_name("table.json")

# What a config says beside the architecture.
_NO_MATTER = {"sample_size", "_class_name", "_diffusers_version", "_name_or_path", "dropout"}

Held = tuple[float, float, float, float]
"""MiB of activations, autocast's copies, temporary tensors, gradients."""
Plane = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """The parameters of a module: different shapes, each behind how often it occurs."""

    counts: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def elements(self) -> int:
        """Weights in all."""
        return sum(count * prod(shape) for count, shape in self.counts)

    @property
    def largest(self) -> int:
        """Weights of the largest tensor."""
        return max(prod(shape) for _, shape in self.counts)

    def num_bytes(self, per_weight: int) -> int:
        """Return what all tensors take, each in blocks of the allocator."""
        return sum(count * rounded(per_weight * prod(shape)) for count, shape in self.counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnetCase:
    """The planes of one precision, checkpointing and attention; see engine/memory_trace/planes.py."""

    attention: Attention
    forward: tuple[Plane, ...]
    backward: tuple[Plane, ...]
    completed: tuple[tuple[int, Plane], ...]
    slack: float

    def forward_peak(self, batch: int, area: float, length: float) -> Held:
        """Return what the forward pass holds at its largest moment, in MiB."""
        sizes = features(batch, area, length, self.attention)
        return max((_held(plane, sizes) for plane in self.forward), key=sum)

    def backward_peak(self, batch: int, area: float, length: float) -> Held:
        """Return what the backward pass holds at its largest moment, the gradients made so far included."""
        sizes = features(batch, area, length, self.attention)
        return max((_held(plane, sizes) for plane in self.backward), key=sum)

    def completed_peak(self, batch: int, area: float, length: float, per_weight: float) -> Held:
        """Return the largest moment of a pass in which each gradient is used up at once.

        `per_weight` bytes are needed for each weight of the tensor at hand, its gradient included.
        """
        sizes = features(batch, area, length, self.attention)
        candidates = [_held(plane, sizes)[:3] for plane in self.backward]
        best = max(((*held, 0.0) for held in candidates), key=sum)
        for elements, plane in self.completed:
            held = (*_held(plane, sizes)[:3], elements * per_weight / (1 << 20))
            best = max(best, held, key=sum)
        return best


def _held(plane: Plane, sizes: tuple[float, ...]) -> Held:
    values = [max(0.0, sum(a * b for a, b in zip(row, sizes, strict=True))) for row in plane]
    return (values[0], values[1], values[2], values[3] if len(values) > 3 else 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnetTable:
    """What is known of one UNet."""

    hash: str
    shapes: Shapes
    cases: Mapping[str, Any]
    sampling: Mapping[str, tuple[float, ...]]
    attention: tuple[tuple[int, int, int, int], ...] = ()
    """Layers of a kind, the width of what their keys are made of, its positions at 512 x 512 or those of 77 tokens."""

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths that a hypernetwork may have networks for."""
        return tuple(sorted({width for _, width, _, _ in self.attention}))

    def case(self, name: str) -> UnetCase:
        """Return the planes of a case such as "mixed checkpointed fused"."""
        return _case(self.cases[name], name)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderTable:
    """What is known of one text encoder: lines c0 + c1 chunks by case and pass, in MiB."""

    shapes: Shapes
    lines: Mapping[str, Mapping[str, tuple[float, float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyTable:
    """What is known of a family's parts; `vae` has lines of encoding and decoding by precision, in MiB."""

    unet: UnetTable
    text_encoders: tuple[TextEncoderTable, ...]
    vae_shapes: Shapes
    vae: Mapping[str, Mapping[str, tuple[float, ...]]]


def config_hash(config: Mapping[str, Any]) -> str:
    """Return a hash of what decides a UNet's memory in its config."""
    kept = {name: value for name, value in config.items() if name not in _NO_MATTER and value is not None}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


@cache
def shipped_table() -> Mapping[str, Any]:
    """Return the table as it lies in the package."""
    table: Mapping[str, Any] = json.loads(SHIPPED.read_text("utf-8"))
    return table


@cache
def family_table(family: str) -> FamilyTable:
    """Return the table of "sd1", "sd2" or "sdxl"."""
    raw = shipped_table()["families"][family]
    return FamilyTable(
        unet=unet_table(raw),
        text_encoders=tuple(
            TextEncoderTable(shapes=_shapes(part["shapes"]), lines=part["lines"]) for part in raw["text_encoders"]
        ),
        vae_shapes=_shapes(raw["vae"]["shapes"]),
        vae=raw["vae"],
    )


@cache
def other_unet(name: str) -> UnetTable | None:
    """Return the table of a UNet that ships beside the families', such as the starter project's, by its hash."""
    raw = shipped_table()["unets"].get(name)
    return unet_table(raw) if raw else None


def unet_table(raw: Mapping[str, Any]) -> UnetTable:
    """Return a UNet's part of a table."""
    return UnetTable(
        hash=raw["hash"],
        shapes=_shapes(raw["shapes"]),
        cases=raw["planes"],
        sampling=raw["sampling"],
        attention=tuple(map(tuple, raw.get("attention", ()))),
    )


def _shapes(raw: list[list[Any]]) -> Shapes:
    return Shapes(counts=tuple((count, tuple(shape)) for count, shape in raw))


def _case(raw: Mapping[str, Any], name: str) -> UnetCase:
    attention: Attention = name.split(" ")[2]  # type: ignore[assignment]
    return UnetCase(
        attention=attention,
        forward=tuple(raw["forward"]),
        backward=tuple(raw["backward"]),
        completed=tuple((entry["elements"], entry["held"]) for entry in raw["completed"]),
        slack=raw["slack"],
    )

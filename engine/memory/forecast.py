"""The graphics memory that training takes, by part and by phase, from the shipped table. Torch-free, below 1 ms."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from engine.memory.allocation import MIB, rounded
from engine.memory.calibration import Calibration
from engine.memory.hypernetwork import adapted, shapes_of, widths_of
from engine.memory.optimizers import ROUNDING, OptimizerCost, cost_of, state_bytes
from engine.memory.request import Request
from engine.memory.table import FamilyTable, Held, Shapes, UnetTable, family_table

Part = Literal[
    "weights", "gradients", "optimizer", "activations", "autocast", "temporary", "frozen", "encode", "sampling"
]
PARTS: tuple[Part, ...] = (
    "weights", "gradients", "optimizer", "activations", "autocast", "temporary", "frozen", "encode", "sampling",
)  # fmt: skip
Phase = Literal["encode", "forward", "backward", "update", "sample"]

# Not tensors, so no trace shows them: the CUDA context with the kernels of torch, cuBLAS and cuDNN, and the workspaces
# that these take from the allocator. docs/memory.md says where the figures come from; a run on a card replaces them.
CONTEXT_BYTES = 922 * MIB
WORKSPACE_BYTES = 256 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What training will hold at its peak, in bytes."""

    by_part: Mapping[Part, int]
    """What tensors take at the peak; adds up to allocated_bytes."""
    peak_phase: Phase
    phases: Mapping[Phase, int]
    """What tensors take at most in each phase."""
    slack_bytes: int
    """Reserved by the allocator beside that: gaps between tensors, and workspaces of libraries."""
    context_bytes: int

    @property
    def allocated_bytes(self) -> int:
        """What tensors take at the peak, as torch.cuda.max_memory_allocated would say."""
        return sum(self.by_part.values())

    @property
    def total_bytes(self) -> int:
        """What the driver would show as used."""
        return self.allocated_bytes + self.slack_bytes + self.context_bytes

    @property
    def least_bytes(self) -> int:
        """What can't be done without: tensors and context, with no gap at all."""
        return self.allocated_bytes + self.context_bytes

    def as_json(self) -> dict[str, Any]:
        """Return the forecast as plain data, with the keys that docs/architecture.md promises."""
        return {
            "total_bytes": self.total_bytes,
            "allocated_bytes": self.allocated_bytes,
            "by_part": dict(self.by_part),
            "peak_phase": self.peak_phase,
            "phases": dict(self.phases),
            "slack_bytes": self.slack_bytes,
            "context_bytes": self.context_bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fixed:
    """What does not change within a step, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    frozen: int
    update: int
    """Needed during the update beside weights, gradients and state."""
    per_weight: int
    """Bytes needed for each weight of one tensor while it is updated by itself, its gradient included."""


def forecast(request: Request, calibration: Calibration | None = None) -> Forecast:
    """Return what a configuration takes, corrected by what this machine has measured."""
    table = family_table(request.family)
    unet = request.unet or table.unet
    fixed = _fixed(request, table, unet)
    still: dict[Part, float] = {"weights": fixed.weights, "optimizer": fixed.optimizer, "frozen": fixed.frozen}
    scale = calibration.scale if calibration else 1.0
    phases: dict[Phase, dict[Part, float]] = {
        "forward": {**still, **_forward(request, table, unet, fixed, scale)},
        "backward": {**still, **_backward(request, table, unet, fixed, scale)},
    }
    if not request.is_fused:
        phases["update"] = {**still, "gradients": fixed.gradients, "temporary": fixed.update}
    if request.encodes:
        line = table.vae["half" if request.vae_is_half else "single"]["encode"]
        phases["encode"] = {**still, **_kept(request, fixed), "encode": _at(line, request.batch * request.area)}
    if request.sample_size is not None:
        phases["sample"] = {**still, "sampling": _sampling(request, table, unet)}
    totals: dict[Phase, int] = {name: round(sum(parts.values())) for name, parts in phases.items()}
    peak = max(totals, key=lambda name: totals[name])
    by_part: dict[Part, int] = {part: round(phases[peak].get(part, 0)) for part in PARTS}
    moving = sum(by_part.values()) - round(sum(still.values()))
    gaps = calibration.gap_share if calibration else unet.case(request.case).slack
    return Forecast(
        by_part=by_part,
        peak_phase=peak,
        phases=totals,
        slack_bytes=round(gaps * moving) + WORKSPACE_BYTES,
        context_bytes=calibration.context_bytes if calibration else CONTEXT_BYTES,
    )


@lru_cache(maxsize=256)
def _sizes(shapes: Shapes, per_weight: int) -> int:
    return shapes.num_bytes(per_weight)


@lru_cache(maxsize=256)
def _state(name: str, arguments: tuple[tuple[str, Any], ...], shapes: Shapes) -> int:
    return state_bytes(cost_of(name, dict(arguments)), shapes.counts)


def _fixed(request: Request, table: FamilyTable, unet: UnetTable) -> _Fixed:
    trained = [unet.shapes]
    if request.hypernetwork is not None:
        trained = [shapes_of(request.hypernetwork, widths_of(request, unet))]
    elif request.trains_text_encoder:
        trained += [encoder.shapes for encoder in table.text_encoders]
    per_weight = 2 if request.precision == "half" else 4
    weights = sum(_sizes(shapes, per_weight) for shapes in trained)
    cost = cost_of(request.optimizer, request.optimizer_arguments)
    return _Fixed(
        weights=weights,
        gradients=weights,
        optimizer=sum(_state_bytes(request, shapes) for shapes in trained),
        frozen=_frozen(request, table, unet, trained),
        update=_update_bytes(request, cost, trained),
        per_weight=_per_weight(request, cost),
    )


def _state_bytes(request: Request, shapes: Shapes) -> int:
    arguments = tuple(
        (name, value)
        for name, value in sorted(request.optimizer_arguments.items())
        if isinstance(value, bool | int | float | str)
    )
    return _state(request.optimizer, arguments, shapes)


def _frozen(request: Request, table: FamilyTable, unet: UnetTable, trained: list[Shapes]) -> int:
    """Return the models that are not trained, and the average of those that are."""
    half = request.precision != "single"
    frozen = 4 * request.drawn_elements
    if request.hypernetwork is not None:
        frozen += _sizes(unet.shapes, 2 if half else 4)
    if not request.trains_text_encoder or request.hypernetwork is not None:
        frozen += sum(_sizes(encoder.shapes, 2 if half else 4) for encoder in table.text_encoders)
    if request.encodes:
        frozen += _sizes(table.vae_shapes, 2 if request.vae_is_half else 4)
    if request.has_ema:
        frozen += sum(_sizes(shapes, 4) for shapes in trained)
    return frozen


def _update_bytes(request: Request, cost: OptimizerCost, trained: list[Shapes]) -> int:
    largest = max(shapes.largest for shapes in trained)
    elements = sum(shapes.elements for shapes in trained)
    if request.precision != "half":
        return cost.temporary * (elements if cost.is_whole else largest)
    if cost.is_per_tensor:
        return _per_weight(request, cost) * largest
    # All weights and gradients become float32 at once.
    return 4 * elements + cost.temporary * (elements if cost.is_whole else largest)


def _per_weight(request: Request, cost: OptimizerCost) -> int:
    """Return what one tensor's update needs for each weight, without its gradient."""
    if request.precision != "half":
        return cost.temporary
    # Float32 copies of weight and gradient with the optimizer's own, or what rounding takes afterwards.
    return max(8 + cost.temporary, ROUNDING)


def _kept(request: Request, fixed: _Fixed) -> dict[Part, float]:
    """Return gradients that stay between the batches of a step."""
    return {"gradients": fixed.gradients} if request.accumulates and not request.is_fused else {}


def _forward(request: Request, table: FamilyTable, unet: UnetTable, fixed: _Fixed, scale: float) -> dict[Part, float]:
    case = unet.case(request.case)
    held = adapted(case.forward_peak(request.batch, request.area, request.chunks), request, unet)
    return {**_parts(held, scale, more=_text(request, table, "forward")), **_kept(request, fixed)}


def _backward(request: Request, table: FamilyTable, unet: UnetTable, fixed: _Fixed, scale: float) -> dict[Part, float]:
    case = unet.case(request.case)
    sizes = (request.batch, request.area, request.chunks)
    gradient = 2 if request.precision == "half" else 4
    kept = _text(request, table, "kept")
    keeps = _kept(request, fixed)
    if request.is_fused or keeps:
        used = gradient + fixed.per_weight if request.is_fused else gradient
        held = adapted(case.completed_peak(*sizes, used), request, unet)
        parts = _parts((*held[:3], 0.0), scale, more=kept)
        parts["temporary"] += held[3] * MIB
        own: dict[Part, float] = {"temporary": _text(request, table, "backward without gradients") * MIB}
        return max({**parts, **keeps}, {**own, **keeps}, key=_sum)
    parts = _parts(adapted(case.backward_peak(*sizes), request, unet), scale, more=kept)
    # After the UNet's, a trained text encoder's own pass back, beside all of the UNet's gradients.
    own = {"gradients": _sizes(unet.shapes, gradient), "temporary": _text(request, table, "backward") * MIB}
    trains_text = request.trains_text_encoder and request.hypernetwork is None
    return max(parts, own, key=_sum) if trains_text else parts


def _sum(parts: dict[Part, float]) -> float:
    return sum(parts.values())


def _text(request: Request, table: FamilyTable, name: str) -> float:
    """Return what trained text encoders hold beside the UNet, in MiB."""
    if not request.trains_text_encoder or request.hypernetwork is not None:
        return 0.0
    case = f"{request.precision} {'checkpointed' if request.is_checkpointed else 'plain'}"
    lines = (encoder.lines[case][name] for encoder in table.text_encoders)
    return sum(fixed + slope * request.batch * request.chunks for fixed, slope in lines)


def _parts(held: Held, scale: float, *, more: float) -> dict[Part, float]:
    activations, autocast, temporary, gradients = held
    return {
        "activations": (activations * scale + more) * MIB,
        "autocast": autocast * MIB,
        "temporary": temporary * scale * MIB,
        "gradients": gradients * MIB,
    }


def _sampling(request: Request, table: FamilyTable, unet: UnetTable) -> float:
    """Return what drawing a picture holds: the UNet's two images at once, or the VAE's decoding."""
    assert request.sample_size is not None
    width, height = request.sample_size
    area = (width // 8) * (height // 8) / 4096
    vae = "half" if request.vae_is_half else "single"
    vae_weights = 0 if request.encodes else _sizes(table.vae_shapes, 2 if request.vae_is_half else 4)
    guided = _at(unet.sampling[f"{request.precision} plain {request.attention}"], area)
    return vae_weights + max(guided, _at(table.vae[vae]["decode"], area))


def _at(line: tuple[float, ...], place: float) -> float:
    return rounded(round((line[0] + line[1] * place + line[2] * place * place) * MIB))

"""What each optimizer keeps for a weight, and needs for a while to update it. Torch-free.

State is always float32: with weights in 16 bits updates are computed in float32 (engine/rounding.py).
tests/engine/test_memory_optimizers.py measures every entry on the real optimizer.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from engine.memory.allocation import rounded

Shape = tuple[int, ...]
Shapes = Iterable[tuple[int, Shape]]
"""Different shapes of parameters, each behind how often it occurs."""
StateRule = Callable[[Shape], int]

_BNB_SMALLEST = 4096  # Smaller tensors keep float32 state (bitsandbytes' min_8bit_size).
_BNB_PAGED = 100_000  # Smaller tensors are not paged.
_BNB_BLOCK = 256  # Numbers that share a scale.
# Bytes a weight of rounding at random (engine.rounding.round_at_random), weight and draws included.
ROUNDING = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerCost:
    """Bytes kept, by shape, and bytes a weight needed during the update."""

    state: StateRule
    temporary: int
    is_whole: bool = False
    """The update needs that for all weights at once, not for one tensor after the other."""
    is_per_tensor: bool = True
    """Tensors can be updated one by one, which fused_backward_pass and 16-bit weights make use of."""


def _full(count: int) -> StateRule:
    """Float32 numbers, so many for each weight."""
    return lambda shape: count * rounded(4 * prod(shape))


def _eight_bit(count: int, *, is_paged: bool = False) -> StateRule:
    """Numbers of 8 bits with a float32 scale for each block; paged ones live in the computer's memory."""

    def state(shape: Shape) -> int:
        size = prod(shape)
        if size < _BNB_SMALLEST:
            return count * rounded(4 * size)
        if is_paged and size >= _BNB_PAGED:
            return count * rounded(4 * -(-size // _BNB_BLOCK))
        return count * (rounded(size) + rounded(4 * -(-size // _BNB_BLOCK)))

    return state


def _paged(count: int) -> StateRule:
    return lambda shape: 0 if prod(shape) >= _BNB_PAGED else count * rounded(4 * prod(shape))


def _factored(shape: Shape) -> int:
    """AdaFactor's means of rows and columns, over the last two dimensions: of a 3x3 kernel two thirds stay."""
    size = prod(shape)
    if len(shape) < 2:
        return rounded(4 * size)
    return rounded(4 * (size // shape[-1])) + rounded(4 * (size // shape[-2]))


def _together(state: StateRule, temporary: int, *, is_whole: bool = False) -> OptimizerCost:
    return OptimizerCost(state=state, temporary=temporary, is_whole=is_whole, is_per_tensor=False)


def _foreach(count: int, temporary: int) -> OptimizerCost:
    """One of torch's own, which updates all tensors in one call on CUDA."""
    return OptimizerCost(state=_full(count), temporary=temporary, is_whole=True)


COSTS: Mapping[str, OptimizerCost] = {
    "AdamW": OptimizerCost(state=_full(2), temporary=0),  # Fused: see cost_of for its other forms.
    "AdamW8bit": OptimizerCost(state=_eight_bit(2), temporary=0),
    "PagedAdamW": OptimizerCost(state=_paged(2), temporary=0),
    "PagedAdamW8bit": OptimizerCost(state=_eight_bit(2, is_paged=True), temporary=0),
    "PagedAdamW32bit": OptimizerCost(state=_paged(2), temporary=0),
    "Lion": OptimizerCost(state=_full(1), temporary=8),
    "Lion8bit": OptimizerCost(state=_eight_bit(1), temporary=0),
    "PagedLion8bit": OptimizerCost(state=_eight_bit(1, is_paged=True), temporary=0),
    "SGDNesterov": _foreach(1, 0),
    "SGDNesterov8bit": OptimizerCost(state=_eight_bit(1), temporary=0),
    "DAdaptation": _together(_full(3), 12),
    "DAdaptAdamPreprint": _together(_full(3), 12),
    "DAdaptAdaGrad": _together(_full(3), 12),
    "DAdaptAdam": _together(_full(3), 8),
    "DAdaptAdan": _together(_full(5), 28),
    "DAdaptAdanIP": _together(_full(5), 24),
    "DAdaptLion": _together(_full(2), 8),
    "DAdaptSGD": _together(_full(3), 4),
    "Prodigy": _together(_full(4), 4),
    "AdaFactor": OptimizerCost(state=_factored, temporary=11),
    "AdamWScheduleFree": _together(_full(2), 4, is_whole=True),
    "RAdamScheduleFree": _together(_full(2), 0, is_whole=True),
    "SGDScheduleFree": _together(_full(1), 0, is_whole=True),
    "Adam": _foreach(2, 4),
    "NAdam": _foreach(2, 4),
    "RAdam": _foreach(2, 4),
    "Adamax": _foreach(2, 4),
    "Adagrad": _foreach(1, 8),
    "Adadelta": _foreach(2, 8),
    "ASGD": _foreach(1, 4),
    "RMSprop": _foreach(1, 4),
    "Rprop": _foreach(2, 9),
    "SGD": _foreach(0, 0),
}
# A class that is not known: as much as Adam, which most are variants of, and not one tensor after the other.
UNKNOWN = _together(_full(2), 8, is_whole=True)
_BY_FORM = {"AdamW", "Adam"}
_LOOP_TEMPORARY = 8
_MORE_STATE = ("amsgrad", "beta1", "momentum")
_ALWAYS_MOMENTUM = {"SGDNesterov", "SGDNesterov8bit", "DAdaptSGD"}


def cost_of(name: str, arguments: Mapping[str, Any]) -> OptimizerCost:
    """Return the cost of an optimizer with its arguments, such as foreach=True or momentum=0.9."""
    cost = COSTS.get(name, UNKNOWN)
    if name in _BY_FORM and ("fused" in arguments or "foreach" in arguments):
        cost = _form(cost, arguments)
    more = sum(bool(arguments.get(key)) for key in _MORE_STATE) - (name in _ALWAYS_MOMENTUM and "momentum" in arguments)
    if more > 0 and not name.endswith("8bit"):
        state = cost.state
        cost = OptimizerCost(
            state=lambda shape: state(shape) + more * rounded(4 * prod(shape)),
            temporary=cost.temporary,
            is_whole=cost.is_whole,
            is_per_tensor=cost.is_per_tensor,
        )
    return cost


def _form(cost: OptimizerCost, arguments: Mapping[str, Any]) -> OptimizerCost:
    """Return the cost of torch's fused, foreach or plain form; on CUDA foreach is the default among the last two."""
    if arguments.get("fused"):
        return OptimizerCost(state=cost.state, temporary=0)
    if arguments.get("foreach") is False:
        return OptimizerCost(state=cost.state, temporary=_LOOP_TEMPORARY)
    return OptimizerCost(state=cost.state, temporary=4, is_whole=True)


def state_bytes(cost: OptimizerCost, shapes: Shapes) -> int:
    """Return what an optimizer keeps for parameters of these shapes."""
    return sum(count * cost.state(shape) for count, shape in shapes)

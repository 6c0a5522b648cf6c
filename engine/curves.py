"""The learning rate at a step, as a pure function: plots, plans and the training loop ask the same one. Torch-free.

The curves and their values are those of transformers' `get_scheduler`, which sd-scripts uses.
"""

import math
from collections.abc import Callable

from engine.errors import EngineError
from engine.setting_types import CurveName
from engine.settings import OptimizerSettings

POLYNOMIAL_END = 1e-7  # The rate where polynomial ends, whatever it starts from.


def learning_rate_at(step: int, num_steps: int, settings: OptimizerSettings) -> float:
    """Return the UNet's learning rate for the update after `step` finished ones, 0 <= step < num_steps.

    With a warmup the first update therefore has rate 0, as in sd-scripts.

    Raises:
        EngineError: As `multiplier_at`.
    """
    return settings.learning_rate * multiplier_at(step, num_steps, settings)


def multiplier_at(step: int, num_steps: int, settings: OptimizerSettings) -> float:
    """Return what every group's own learning rate is multiplied by after `step` finished updates, 0 to 1.

    Raises:
        EngineError: constant with a warmup, or polynomial from a rate below the one it ends at.
    """
    _check(settings)
    warmup = warmup_steps(settings, num_steps)
    if step < warmup:
        return step / warmup
    return CURVES[settings.lr_scheduler]((step - warmup) / max(1, num_steps - warmup), settings)


def warmup_steps(settings: OptimizerSettings, num_steps: int) -> int:
    """Return the length of the warmup in steps; below 1 the setting is a share of the run."""
    value = settings.lr_warmup_steps
    return int(value * num_steps) if 0 < value < 1 else int(value)


def _check(settings: OptimizerSettings) -> None:
    if settings.lr_scheduler == "constant" and settings.lr_warmup_steps:
        raise EngineError(
            f"lr_warmup_steps = {settings.lr_warmup_steps} has no effect with lr_scheduler = constant: "
            "choose constant_with_warmup, or set it to 0"
        )
    if settings.lr_scheduler == "polynomial" and settings.learning_rate <= POLYNOMIAL_END:
        raise EngineError(
            f"learning_rate = {settings.learning_rate} is not above {POLYNOMIAL_END}, where lr_scheduler = polynomial "
            "ends: raise it, or choose linear"
        )


def _constant(progress: float, settings: OptimizerSettings) -> float:  # noqa: ARG001 - one shape for all curves
    return 1.0


def _linear(progress: float, settings: OptimizerSettings) -> float:  # noqa: ARG001
    return max(0.0, 1 - progress)


def _cosine(progress: float, settings: OptimizerSettings) -> float:  # noqa: ARG001
    return 0.5 * (1 + math.cos(math.pi * progress))


def _cosine_with_restarts(progress: float, settings: OptimizerSettings) -> float:
    if progress >= 1:
        return 0.0
    return 0.5 * (1 + math.cos(math.pi * ((settings.lr_scheduler_num_cycles * progress) % 1)))


def _polynomial(progress: float, settings: OptimizerSettings) -> float:
    end = POLYNOMIAL_END / settings.learning_rate
    return (1 - end) * math.pow(max(0.0, 1 - progress), settings.lr_scheduler_power) + end


CURVES: dict[CurveName, Callable[[float, OptimizerSettings], float]] = {
    "constant": _constant,
    "constant_with_warmup": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
}

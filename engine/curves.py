"""The learning rate at a step, as a pure function: plots, plans and the training loop ask the same one. Torch-free.

The curves and their values are those of transformers' `get_scheduler`, which sd-scripts uses; piecewise_constant is
diffusers'.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from engine.arguments import parse_arguments
from engine.errors import EngineError, safe_text
from engine.setting_types import CurveName
from engine.settings import OptimizerSettings

POLYNOMIAL_END = 1e-7  # The rate where polynomial ends, whatever it starts from.
ADAFACTOR = "adafactor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """The part of a run after its warmup: `step` counts from the run's first update, 0 <= step < num_steps."""

    step: int
    num_steps: int
    warmup: int

    @property
    def progress(self) -> float:
        """How far the run is from the end of the warmup, 0, to its own end, 1."""
        return (self.step - self.warmup) / max(1, self.num_steps - self.warmup)


def learning_rate_at(step: int, num_steps: int, settings: OptimizerSettings) -> float:
    """Return the UNet's learning rate for the update after `step` finished ones, 0 <= step < num_steps.

    With a warmup the first update therefore has rate 0, as in sd-scripts.

    Raises:
        EngineError: As `multiplier_at`.
    """
    return settings.learning_rate * multiplier_at(step, num_steps, settings)


def multiplier_at(step: int, num_steps: int, settings: OptimizerSettings) -> float:
    """Return what every group's own learning rate is multiplied by after `step` finished updates, usually 0 to 1.

    Raises:
        EngineError: The schedule contradicts its other settings, or its arguments are wrong.
    """
    if settings.lr_scheduler_type:
        from engine.torch_curve import multiplier_of

        return multiplier_of(step, settings)
    _check(settings)
    warmup = warmup_steps(settings, num_steps)
    name = curve_name(settings.lr_scheduler)
    if step < warmup and name != "piecewise_constant":
        share = step / warmup
        floor = settings.lr_scheduler_min_lr_ratio or 0.0 if name == "warmup_stable_decay" else 0.0
        return share * (1 - floor) + floor
    return CURVES[name](Stretch(step=step, num_steps=num_steps, warmup=warmup), settings)


def curve_name(lr_scheduler: str) -> CurveName:
    """Return the name of a curve without the rate that "adafactor:RATE" carries."""
    return lr_scheduler.partition(":")[0]  # type: ignore[return-value]


def warmup_steps(settings: OptimizerSettings, num_steps: int) -> int:
    """Return the length of the warmup in steps."""
    return _steps(settings.lr_warmup_steps, num_steps)


def decay_steps(settings: OptimizerSettings, num_steps: int) -> int:
    """Return the length of the last stretch of warmup_stable_decay in steps."""
    return _steps(settings.lr_decay_steps, num_steps)


def _steps(value: float, num_steps: int) -> int:
    """Read a number with a point as a share of the run unless it is above 1, as sd-scripts does from its flags."""
    return int(value * num_steps) if isinstance(value, float) and value <= 1 else int(value)


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


def _constant(stretch: Stretch, settings: OptimizerSettings) -> float:  # noqa: ARG001 - one shape for all curves
    return 1.0


def _linear(stretch: Stretch, settings: OptimizerSettings) -> float:  # noqa: ARG001
    return max(0.0, 1 - stretch.progress)


def _cosine(stretch: Stretch, settings: OptimizerSettings) -> float:  # noqa: ARG001
    return 0.5 * (1 + math.cos(math.pi * stretch.progress))


def _cosine_with_restarts(stretch: Stretch, settings: OptimizerSettings) -> float:
    if stretch.progress >= 1:
        return 0.0
    return 0.5 * (1 + math.cos(math.pi * ((settings.lr_scheduler_num_cycles * stretch.progress) % 1)))


def _polynomial(stretch: Stretch, settings: OptimizerSettings) -> float:
    end = POLYNOMIAL_END / settings.learning_rate
    return (1 - end) * math.pow(max(0.0, 1 - stretch.progress), settings.lr_scheduler_power) + end


def _inverse_sqrt(stretch: Stretch, settings: OptimizerSettings) -> float:
    timescale = settings.lr_scheduler_timescale or stretch.warmup or 10_000
    return 1 / math.sqrt((stretch.step + timescale - stretch.warmup) / timescale)


def _waves(progress: float, settings: OptimizerSettings) -> float:
    """Fall along half a cosine, or for more cycles along as many halves, down to lr_scheduler_min_lr_ratio."""
    floor = settings.lr_scheduler_min_lr_ratio or 0.0
    return max(0.0, 0.5 * (1 + math.cos(math.pi * settings.lr_scheduler_num_cycles * progress)) * (1 - floor) + floor)


def _cosine_with_min_lr(stretch: Stretch, settings: OptimizerSettings) -> float:
    return _waves(stretch.progress, settings)


def _warmup_stable_decay(stretch: Stretch, settings: OptimizerSettings) -> float:
    decay = decay_steps(settings, stretch.num_steps)
    into_decay = stretch.step - (stretch.num_steps - decay)
    return 1.0 if into_decay < 0 else _waves(into_decay / max(1, decay), settings)


def _piecewise_constant(stretch: Stretch, settings: OptimizerSettings) -> float:
    *pieces, last = _step_rules(settings.lr_scheduler_args)
    return next((factor for factor, end in pieces if stretch.step < end), last[0])


@cache
def _step_rules(pairs: tuple[str, ...]) -> tuple[tuple[float, float], ...]:
    """Read "1:10,0.1:20,0.01" as factors, each with the step before which it ends; the last one lasts."""
    text = parse_arguments(pairs, setting="lr_scheduler_args").get("step_rules")
    try:
        *pieces, last = str(text or "").split(",")
        rules = [(float(factor), float(int(end))) for factor, _, end in (piece.partition(":") for piece in pieces)]
        return (*sorted(rules, key=lambda rule: rule[1]), (float(last), math.inf))
    except ValueError as error:
        raise EngineError(
            f"lr_scheduler_args: step_rules = {safe_text(repr(text))} can't be read; write factors with the step that "
            "each ends at, and the last factor: step_rules='1:1000,0.1:1500,0.01'"
        ) from error


CURVES: dict[CurveName, Callable[[Stretch, OptimizerSettings], float]] = {
    "constant": _constant,
    "constant_with_warmup": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
    "inverse_sqrt": _inverse_sqrt,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "warmup_stable_decay": _warmup_stable_decay,
    "piecewise_constant": _piecewise_constant,
    "adafactor": _constant,
}

"""The optimizer of a run: its parameter groups, the learning rate of each, and weights that are an average."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from engine.arguments import parse_arguments
from engine.errors import EngineError, safe_text
from engine.optimizers import OPTIMIZERS, choose_optimizer
from engine.settings import OptimizerSettings
from engine.toml import nearest

__all__ = ["OPTIMIZERS", "adapted_rate", "averaged", "build_optimizer", "parse_arguments", "set_learning_rates"]


def build_optimizer(parts: Iterable[tuple[str, nn.Module]], settings: OptimizerSettings) -> Optimizer:
    """Return the optimizer for the trainable parameters of the named parts, "unet" and perhaps "text_encoder".

    Each part is a parameter group with `name` and `lr_ratio`, its learning rate over the UNet's.

    Raises:
        EngineError: An optimizer argument is wrong, or a package is missing.
    """
    groups = [_group(name, module, settings) for name, module in parts]
    given = parse_arguments(settings.optimizer_args)
    constructor, arguments = choose_optimizer(settings.optimizer_type, groups, given)
    _check_names(constructor, given, settings.optimizer_type)
    try:
        optimizer = constructor(groups, lr=groups[0]["lr"], **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise EngineError(
            f"optimizer_args: {settings.optimizer_type} refuses {' '.join(settings.optimizer_args)}: "
            f"{safe_text(str(error) or 'a value is out of range')}"
        ) from error
    if is_averaging(optimizer):
        optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def _group(name: str, module: nn.Module, settings: OptimizerSettings) -> dict[str, Any]:
    rate = settings.learning_rate
    if name == "text_encoder" and settings.learning_rate_te is not None:
        rate = settings.learning_rate_te
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert parameters, f"nothing in {name} is trained"
    return {"params": parameters, "name": name, "lr": rate, "lr_ratio": rate / settings.learning_rate}


def _check_names(constructor: Callable[..., Optimizer], given: Iterable[str], optimizer: str) -> None:
    known = inspect.signature(constructor).parameters
    accepted = set(known) - {"params", "lr"}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    for name in given:
        if name == "lr":
            raise EngineError("optimizer_args: lr is set by learning_rate and learning_rate_te; remove it")
        if name not in accepted and not takes_any:
            raise EngineError(f"optimizer_args: {optimizer} has no argument {name}{nearest(name, accepted)}")


def set_learning_rates(optimizer: Optimizer, learning_rate: float) -> float:
    """Set the UNet's learning rate, and the other parts' in proportion, for the next update; return the UNet's.

    AdaFactor's relative steps follow their own curve: then that one is returned, before its scaling by the size of
    each parameter, and nothing is set.
    """
    for group in optimizer.param_groups:
        if not group.get("relative_step"):
            group["lr"] = learning_rate * group["lr_ratio"]
    first = optimizer.param_groups[0]
    return _relative_step(optimizer, first) if first.get("relative_step") else first["lr"]


def _relative_step(optimizer: Optimizer, group: dict[str, Any]) -> float:
    step = optimizer.state.get(group["params"][0], {}).get("step", 0) + 1
    limit = 1e-6 * step if group["warmup_init"] else 1e-2
    return float(min(limit, step**-0.5))


def adapted_rate(optimizer: Optimizer) -> float | None:
    """Return d x lr, the rate that Prodigy and D-Adaptation have arrived at; None for optimizers that estimate none."""
    first = optimizer.param_groups[0]
    if "d" not in first or not first.get("lr"):
        return None
    rate = float(first["d"]) * float(first["lr"])
    return rate if math.isfinite(rate) else None


def is_averaging(optimizer: Optimizer) -> bool:
    """Tell whether the weights that are trained differ from those to keep, as in schedule-free optimizers."""
    return callable(getattr(optimizer, "eval", None)) and "train_mode" in optimizer.param_groups[0]


@contextmanager
def averaged(optimizer: Optimizer) -> Iterator[None]:
    """Let the model hold the weights to keep inside the block: of schedule-free optimizers the average.

    Their own way back recomputes the weights and so rounds them; these are put back as they were, so that a run does
    not depend on when it was sampled from. Costs a copy of the weights in main memory.
    """
    raw: Any = getattr(optimizer, "optimizer", optimizer)
    if not is_averaging(raw):
        yield
        return
    parameters = [parameter for group in raw.param_groups for parameter in group["params"]]
    kept = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    _in_float32(parameters, raw.eval)
    try:
        yield
    finally:
        _in_float32(parameters, raw.train)
        with torch.no_grad():
            for parameter, values in zip(parameters, kept, strict=True):
                parameter.copy_(values)


def _in_float32(parameters: list[nn.Parameter], action: Callable[[], object]) -> None:
    """Do something to weights that may be kept in 16 bits, where the optimizer's own state is float32."""
    dtypes = [parameter.dtype for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    action()
    for parameter, dtype in zip(parameters, dtypes, strict=True):
        parameter.data = parameter.data.to(dtype)

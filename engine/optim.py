"""Optimizers by name, their arguments from text, and the learning rate of each part of the model."""

import ast
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from engine.errors import EngineError, safe_text
from engine.setting_types import OptimizerName
from engine.settings import OptimizerSettings
from engine.toml import nearest

_FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}


def build_optimizer(parts: Iterable[tuple[str, nn.Module]], settings: OptimizerSettings) -> Optimizer:
    """Return the optimizer for the trainable parameters of the named parts, "unet" and perhaps "text_encoder".

    Each part is a parameter group with `name` and `lr_ratio`, its learning rate over the UNet's.

    Raises:
        EngineError: An optimizer argument is wrong, or a package is missing.
    """
    groups = [_group(name, module, settings) for name, module in parts]
    given = parse_arguments(settings.optimizer_args)
    constructor, arguments = OPTIMIZERS[settings.optimizer_type](groups, given)
    _check_names(constructor, given, settings.optimizer_type)
    try:
        return constructor(groups, lr=groups[0]["lr"], **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise EngineError(
            f"optimizer_args: {settings.optimizer_type} refuses {' '.join(settings.optimizer_args)}: "
            f"{safe_text(str(error) or 'a value is out of range')}"
        ) from error


def _group(name: str, module: nn.Module, settings: OptimizerSettings) -> dict[str, Any]:
    rate = settings.learning_rate
    if name == "text_encoder" and settings.learning_rate_te is not None:
        rate = settings.learning_rate_te
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert parameters, f"nothing in {name} is trained"
    return {"params": parameters, "name": name, "lr": rate, "lr_ratio": rate / settings.learning_rate}


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


def parse_arguments(pairs: Iterable[str]) -> dict[str, Any]:
    """Return optimizer arguments from texts such as "weight_decay=0.01"; values are Python literals.

    Raises:
        EngineError: A text is no pair, its value no literal, or a name is given twice.
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or not name.isidentifier():
            raise EngineError(f"optimizer_args: {safe_text(pair)!r} is not of the form name=value")
        if name in arguments:
            raise EngineError(f"optimizer_args: {name} is given twice; keep one")
        try:
            arguments[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise EngineError(
                f"optimizer_args: the value of {safe_text(pair)!r} can't be read; "
                'write a number, True, False, None, "text" or (0.9, 0.99)'
            ) from error
    return arguments


def _check_names(constructor: Callable[..., Optimizer], given: Iterable[str], optimizer: str) -> None:
    accepted = set(inspect.signature(constructor).parameters) - {"params", "lr"}
    for name in given:
        if name == "lr":
            raise EngineError("optimizer_args: lr is set by learning_rate and learning_rate_te; remove it")
        if name not in accepted:
            raise EngineError(f"optimizer_args: {optimizer} has no argument {name}{nearest(name, accepted)}")


# A factory returns the class and its arguments, completed by what the name stands for.
Arguments = dict[str, Any]
Chosen = tuple[Callable[..., Optimizer], Arguments]


def _adamw(groups: list[dict[str, Any]], arguments: Arguments) -> Chosen:
    """Return AdamW in its fused form, several times as fast, where every parameter's device has one."""
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    if devices <= _FUSED_DEVICES and not arguments.keys() & {"foreach", "fused"}:
        arguments = {**arguments, "fused": True}
    return torch.optim.AdamW, arguments


def _adamw_8bit(groups: list[dict[str, Any]], arguments: Arguments) -> Chosen:  # noqa: ARG001 - one shape for all
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            f"optimizer_type = AdamW8bit: bitsandbytes can't be loaded ({safe_text(str(error))}); "
            "reinstall it, or choose AdamW or AdaFactor"
        ) from error
    return AdamW8bit, arguments


def _lion(groups: list[dict[str, Any]], arguments: Arguments) -> Chosen:  # noqa: ARG001
    try:
        from lion_pytorch import Lion
    except ImportError as error:
        raise EngineError(
            "optimizer_type = Lion needs the package lion-pytorch: pip install 'sdtui[optimizers]'"
        ) from error
    return Lion, arguments


def _sgd_nesterov(groups: list[dict[str, Any]], arguments: Arguments) -> Chosen:  # noqa: ARG001
    return torch.optim.SGD, {"momentum": 0.9, "nesterov": True, **arguments}


def _adafactor(groups: list[dict[str, Any]], arguments: Arguments) -> Chosen:
    """Return AdaFactor with relative steps, which need no learning rate, unless they are declined."""
    from transformers.optimization import Adafactor

    arguments = {"relative_step": True, **arguments}
    if arguments["relative_step"]:
        for group in groups:
            group["lr"] = None
    return Adafactor, arguments


OPTIMIZERS: dict[OptimizerName, Callable[[list[dict[str, Any]], Arguments], Chosen]] = {
    "AdamW": _adamw,
    "AdamW8bit": _adamw_8bit,
    "Lion": _lion,
    "SGDNesterov": _sgd_nesterov,
    "AdaFactor": _adafactor,
}

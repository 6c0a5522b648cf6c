"""Every optimizer by name: its class, and the arguments that the name stands for."""

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer

from engine.arguments import load_class
from engine.errors import EngineError, safe_text
from engine.setting_types import OptimizerName

_FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}

# A factory takes the parameter groups and the arguments given; it returns the class and the arguments completed.
Groups = list[dict[str, Any]]
Arguments = dict[str, Any]
Chosen = tuple[Callable[..., Optimizer], Arguments]
Factory = Callable[[Groups, Arguments], Chosen]


def choose_optimizer(name: str, groups: Groups, arguments: Arguments) -> Chosen:
    """Return the class of an optimizer, by its name here or by a dotted one, and its arguments.

    Raises:
        EngineError: Its package is missing, or the dotted name is no optimizer.
    """
    factory = OPTIMIZERS.get(name)  # type: ignore[call-overload]
    if factory is not None:
        return _known(name, factory, groups, arguments)
    constructor = load_class(name, "torch.optim", "optimizer_type")
    if not issubclass(constructor, Optimizer):
        raise EngineError(f"optimizer_type = {safe_text(name)} is no torch optimizer; name a class that is one")
    closure = inspect.signature(constructor.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise EngineError(f"optimizer_type = {safe_text(name)} computes the loss anew within a step; choose another")
    return constructor, arguments


def _known(name: str, factory: Factory, groups: Groups, arguments: Arguments) -> Chosen:
    try:
        return factory(groups, arguments)
    except (ImportError, OSError, RuntimeError) as error:
        remedy = "reinstall bitsandbytes" if "8bit" in name or "Paged" in name else "pip install 'sdtui[optimizers]'"
        raise EngineError(
            f"optimizer_type = {name}: its package can't be loaded ({safe_text(str(error))}); "
            f"{remedy}, or choose AdamW or AdaFactor"
        ) from error


def _adamw(groups: Groups, arguments: Arguments) -> Chosen:
    """Return AdamW in its fused form, several times as fast, where every parameter's device has one."""
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    if devices <= _FUSED_DEVICES and not arguments.keys() & {"foreach", "fused"}:
        arguments = {**arguments, "fused": True}
    return torch.optim.AdamW, arguments


def _adafactor(groups: Groups, arguments: Arguments) -> Chosen:
    """Return AdaFactor with relative steps, which need no learning rate, unless they are declined."""
    from transformers.optimization import Adafactor

    arguments = {"relative_step": True, **arguments}
    if arguments["relative_step"]:
        for group in groups:
            group["lr"] = None
    return Adafactor, arguments


def _imported(
    groups: Groups,  # noqa: ARG001 - one shape for all
    arguments: Arguments,
    *,
    path: str,
    **implied: Any,  # noqa: ANN401 - whatever the class takes
) -> Chosen:
    """Return a class of a package, whose arguments are those implied unless others are given."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name), {**implied, **arguments}


def _from(path: str, **implied: Any) -> Factory:  # noqa: ANN401
    return partial(_imported, path=path, **implied)


_NESTEROV = {"momentum": 0.9, "nesterov": True}

OPTIMIZERS: dict[OptimizerName, Factory] = {
    "AdamW": _adamw,
    "AdamW8bit": _from("bitsandbytes.optim.AdamW8bit"),
    "PagedAdamW": _from("bitsandbytes.optim.PagedAdamW"),
    "PagedAdamW8bit": _from("bitsandbytes.optim.PagedAdamW8bit"),
    "PagedAdamW32bit": _from("bitsandbytes.optim.PagedAdamW32bit"),
    "Lion": _from("lion_pytorch.Lion"),
    "Lion8bit": _from("bitsandbytes.optim.Lion8bit"),
    "PagedLion8bit": _from("bitsandbytes.optim.PagedLion8bit"),
    "SGDNesterov": _from("torch.optim.SGD", **_NESTEROV),
    "SGDNesterov8bit": _from("bitsandbytes.optim.SGD8bit", **_NESTEROV),
    "DAdaptation": _from("dadaptation.experimental.DAdaptAdamPreprint"),
    "DAdaptAdamPreprint": _from("dadaptation.experimental.DAdaptAdamPreprint"),
    "DAdaptAdaGrad": _from("dadaptation.DAdaptAdaGrad"),
    "DAdaptAdam": _from("dadaptation.DAdaptAdam"),
    "DAdaptAdan": _from("dadaptation.DAdaptAdan"),
    "DAdaptAdanIP": _from("dadaptation.experimental.DAdaptAdanIP"),
    "DAdaptLion": _from("dadaptation.DAdaptLion"),
    "DAdaptSGD": _from("dadaptation.DAdaptSGD"),
    "Prodigy": _from("prodigyopt.Prodigy"),
    "AdaFactor": _adafactor,
    "AdamWScheduleFree": _from("schedulefree.AdamWScheduleFree"),
    "RAdamScheduleFree": _from("schedulefree.RAdamScheduleFree"),
    "SGDScheduleFree": _from("schedulefree.SGDScheduleFree"),
    "Adam": _from("torch.optim.Adam"),
    "NAdam": _from("torch.optim.NAdam"),
    "RAdam": _from("torch.optim.RAdam"),
    "Adamax": _from("torch.optim.Adamax"),
    "Adagrad": _from("torch.optim.Adagrad"),
    "Adadelta": _from("torch.optim.Adadelta"),
    "ASGD": _from("torch.optim.ASGD"),
    "RMSprop": _from("torch.optim.RMSprop"),
    "Rprop": _from("torch.optim.Rprop"),
    "SGD": _from("torch.optim.SGD"),
}

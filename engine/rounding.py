"""Updates of weights that are kept in 16 bits: computed in float32, rounded at random.

A small learning rate moves a weight by less than half the step of its number format, and rounding to the nearest would
undo every such update. Rounding up or down with the odds of the distance keeps them in the mean: Gupta et al. 2015,
arXiv:1502.02551. The optimizer sees float32 alone, so its own state has that precision too.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.rng import seed_for

# Bits of the fraction, and the exponent of the smallest number; frexp counts one higher than IEEE 754.
_FORMATS = {torch.float16: (10, -24), torch.bfloat16: (7, -133)}
_FRACTION_BITS = 23


def round_at_random(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return float32 values in a 16-bit format, each one of its two neighbours there, in the mean the value itself."""
    bits, smallest = _FORMATS[dtype]
    exponents = torch.frexp(values).exponent
    steps = torch.ldexp(torch.ones_like(values), (exponents - bits - 1).clamp_min(smallest))
    # Draws with just the bits that are lost: the sum below is exact, so there is no bias.
    choices = 1 << (_FRACTION_BITS - bits)
    drawn = torch.randint(choices, values.shape, generator=generator, device=values.device)
    rounded: Tensor = (torch.floor(values / steps + drawn / choices) * steps).to(dtype)
    return rounded


def is_per_tensor(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer updates each tensor by itself, so that one may be updated without the others."""
    name = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
    known = ("torch.optim.", "bitsandbytes.", "lion_pytorch.", "transformers.optimization.Adafactor")
    return name.startswith(known) and not name.endswith(".LBFGS")


@contextmanager
def alone(optimizer: Optimizer, parameter: nn.Parameter) -> Iterator[None]:
    """Let the optimizer hold this one parameter inside the block."""
    kept = [group["params"] for group in optimizer.param_groups]
    for group, parameters in zip(optimizer.param_groups, kept, strict=True):
        group["params"] = [parameter] if any(other is parameter for other in parameters) else []
    try:
        yield
    finally:
        for group, parameters in zip(optimizer.param_groups, kept, strict=True):
            group["params"] = parameters


class RoundedUpdates:
    """Makes an optimizer's `step` compute in float32 on 16-bit parameters, and its loaded state stay float32."""

    def __init__(self, optimizer: Optimizer, seed: int) -> None:
        self._optimizer = optimizer
        self._seed = seed
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._numbers = {parameter: number for number, parameter in enumerate(self._parameters)}
        self._generator = torch.Generator(self._parameters[0].device)
        self._loaded: Mapping[str, Any] = {}
        self._step = optimizer.step
        self.finished_steps = 0
        optimizer.step = self.step  # type: ignore[method-assign, assignment]
        optimizer.register_load_state_dict_pre_hook(self._keep_loaded)
        optimizer.register_load_state_dict_post_hook(self._restore_loaded)

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update every parameter the optimizer holds: one after the other, so that one float32 copy exists at a time.

        An optimizer whose steps look at all parameters together gets all of them at once, at four bytes a weight.
        """
        assert closure is None, "gradients are there already"
        held = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        if not is_per_tensor(self._optimizer):
            self._update(held)
            return
        for parameter in held:
            with alone(self._optimizer, parameter):
                self._update([parameter])

    def _update(self, parameters: list[nn.Parameter]) -> None:
        dtypes = [parameter.dtype for parameter in parameters]
        for parameter in parameters:
            gradient, parameter.grad = parameter.grad, None
            parameter.data = parameter.data.float()
            parameter.grad = None if gradient is None else gradient.float()
        self._step()
        for parameter, dtype in zip(parameters, dtypes, strict=True):
            parameter.grad = None
            key = seed_for(self._seed, "rounding", self.finished_steps, self._numbers[parameter])
            self._generator.manual_seed(key)
            parameter.data = round_at_random(parameter.data, dtype, self._generator)

    def _keep_loaded(self, _optimizer: Optimizer, loaded: dict[str, Any]) -> None:
        self._loaded = loaded

    def _restore_loaded(self, optimizer: Optimizer) -> None:
        """Put float32 back where torch has rounded the state to the parameters' precision."""
        names = [name for group in self._loaded["param_groups"] for name in group["params"]]
        for parameter, name in zip(self._parameters, names, strict=True):
            for key, value in self._loaded["state"].get(name, {}).items():
                if isinstance(value, Tensor) and value.dtype == torch.float32:
                    optimizer.state[parameter][key] = value.to(parameter.device, copy=True)
        self._loaded = {}

"""The update of the weights: of all tensors after the backward pass, or of each one inside it."""

import math

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.errors import EngineError
from engine.rounding import RoundedUpdates, alone, is_per_tensor
from engine.settings import Settings

_EPSILON = 1e-6  # As in torch's clip_grad_norm_.


class Updater:
    """Clips gradients and updates all parameters; call `begin`, `backward` for each batch, `clip`, `apply`."""

    is_fused = False

    def __init__(self, accelerator: Accelerator, optimizer: AcceleratedOptimizer, settings: Settings) -> None:
        self.optimizer = optimizer
        self.parameters: list[nn.Parameter] = [
            parameter for group in optimizer.param_groups for parameter in group["params"]
        ]
        self._accelerator = accelerator
        self._max_norm = settings.optimizer.max_grad_norm or math.inf
        memory = settings.memory
        self._rounded = (
            RoundedUpdates(optimizer.optimizer, settings.training.seed)
            if memory.full_bf16 or memory.full_fp16
            else None
        )

    def begin(self, step: int) -> None:
        """Prepare for the update after `step` finished ones; learning rates are set already."""
        if self._rounded is not None:
            self._rounded.finished_steps = step

    def backward(self, loss: Tensor) -> None:
        """Compute gradients of a loss, a scalar."""
        self._accelerator.backward(loss)

    def clip(self) -> Tensor:
        """Scale all gradients down to the largest norm allowed and return the norm they had, a scalar."""
        norm: Tensor | None = self._accelerator.clip_grad_norm_(self.parameters, self._max_norm)
        assert norm is not None
        return norm

    def apply(self) -> None:
        """Update the weights and forget the gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class FusedUpdater(Updater):
    """Updates each tensor as soon as its gradient is complete and frees it: gradients are never all there.

    Each gradient is clipped by its own norm, since the norm of all of them is known too late.
    """

    is_fused = True

    def __init__(self, accelerator: Accelerator, optimizer: AcceleratedOptimizer, settings: Settings) -> None:
        super().__init__(accelerator, optimizer, settings)
        self._raw: Optimizer = optimizer.optimizer
        if not is_per_tensor(self._raw):
            raise EngineError(
                f"fused_backward_pass updates tensor by tensor, but {settings.optimizer.optimizer_type} looks at all "
                "of them together: remove fused_backward_pass, or choose AdaFactor or AdamW8bit"
            )
        self._norms: list[Tensor] = []
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._update)  # type: ignore[no-untyped-call]

    def backward(self, loss: Tensor) -> None:
        """Compute gradients and update; not from a loss that is not finite, which would spoil the weights at once."""
        if loss.isfinite():
            super().backward(loss)

    def clip(self) -> Tensor:
        """Return the norm that all gradients together had; they are clipped and used already."""
        if not self._norms:
            return torch.tensor(math.nan)
        norm: Tensor = torch.stack(self._norms).norm()
        self._norms.clear()
        return norm

    def apply(self) -> None:
        """Do nothing: the weights are updated already."""

    def _update(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        assert parameter.grad is not None
        norm = parameter.grad.norm(dtype=torch.float32)
        self._norms.append(norm)
        parameter.grad.mul_((self._max_norm / (norm + _EPSILON)).clamp_max(1.0).to(parameter.grad.dtype))
        with alone(self._raw, parameter):
            self._raw.step()
        parameter.grad = None


def make_updater(accelerator: Accelerator, optimizer: AcceleratedOptimizer, settings: Settings) -> Updater:
    """Return the updater that the settings ask for.

    Raises:
        EngineError: The optimizer can't update tensor by tensor.
    """
    if settings.memory.full_fp16:
        allow_half_gradients(accelerator)
    kind = FusedUpdater if settings.memory.fused_backward_pass else Updater
    return kind(accelerator, optimizer, settings)


def allow_half_gradients(accelerator: Accelerator) -> None:
    """Let the loss scaler divide fp16 gradients, which torch declines since they may overflow."""
    scaler = accelerator.scaler
    unscale = scaler._unscale_grads_  # There is no public switch; sd-scripts takes the same one.

    def unscale_half(optimizer: Optimizer, scale: Tensor, found_inf: Tensor, _allow_fp16: bool) -> object:
        return unscale(optimizer, scale, found_inf, True)

    scaler._unscale_grads_ = unscale_half

"""A running average of the trained weights, for samples and saved models.

The decay follows diffusers' EMAModel, value for value. That class is not used since it keeps no names, which a
resumable state needs, and updates either tensor by tensor or with temporary copies as large as the model.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from engine.errors import EngineError, safe_text


class Ema:
    """Average of the trainable parameters of some modules, named "part.parameter", in float32 on their device."""

    def __init__(self, parts: Iterable[tuple[str, nn.Module]], decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self._parameters = {
            f"{part}.{name}": parameter
            for part, module in parts
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self._averages = {
            name: parameter.detach().to(torch.float32, copy=True) for name, parameter in self._parameters.items()
        }
        self._is_swapped = False

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights; call once after every optimizer step."""
        assert not self._is_swapped, "the weights are the average at present"
        self.num_updates += 1
        share = 1 - decay_at(self.num_updates, self.decay)
        weights: list[Tensor] = list(self._parameters.values())
        averages = list(self._averages.values())
        if all(weight.dtype == torch.float32 for weight in weights):
            torch._foreach_lerp_(averages, weights, share)
            return
        for average, weight in zip(averages, weights, strict=True):  # One float32 copy at a time.
            average.lerp_(weight.float(), share)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Let the modules hold the average inside the block; tensors change places, nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        self._is_swapped = not self._is_swapped
        for name, parameter in self._parameters.items():
            parameter.data, self._averages[name] = self._averages[name], parameter.data

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by name; they change with the next update. `num_updates` has to be kept beside them."""
        assert not self._is_swapped, "the averages are in the modules at present"
        return dict(self._averages)

    def load_state_dict(self, averages: Mapping[str, Tensor], num_updates: int) -> None:
        """Continue from saved averages.

        Raises:
            EngineError: They belong to other weights.
        """
        for name, average in self._averages.items():
            saved = averages.get(name)
            if saved is None or saved.shape != average.shape:
                shown = "is missing" if saved is None else f"has shape {tuple(saved.shape)}, not {tuple(average.shape)}"
                raise EngineError(f"the saved EMA does not fit the model: {safe_text(name)} {shown}")
        for name, average in self._averages.items():
            average.copy_(averages[name])
        self.num_updates = num_updates


def decay_at(num_updates: int, decay: float) -> float:
    """Return the share of the old average that the n-th update (from 1) keeps.

    Rises towards `decay`, so that the weights of before training are soon forgotten: the first update keeps nothing.
    """
    return 0.0 if num_updates <= 1 else min(decay, num_updates / (num_updates + 9))

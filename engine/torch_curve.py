"""Learning-rate schedules of torch or of another package, by the name of their class, as functions of the step."""

import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from engine.arguments import load_class, parse_arguments
from engine.errors import EngineError, safe_text
from engine.settings import OptimizerSettings


def multiplier_of(step: int, settings: OptimizerSettings) -> float:
    """Return what the chosen class multiplies the learning rate by after `step` finished updates.

    Raises:
        EngineError: There is no such class, it refuses its arguments, or it needs more than the number of steps.
    """
    assert settings.lr_scheduler_type
    key = (settings.lr_scheduler_type, settings.lr_scheduler_args, settings.learning_rate)
    return _curve(*key).at(step)


class _Curve:
    """A scheduler run on an optimizer of one number; what it gave is kept, so any step may be asked for again."""

    def __init__(self, name: str, pairs: tuple[str, ...], rate: float) -> None:
        self._rate = rate
        self._optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
        constructor = load_class(name, "torch.optim.lr_scheduler", "lr_scheduler_type")
        arguments = parse_arguments(pairs, setting="lr_scheduler_args")
        try:
            self._scheduler: Any = constructor(self._optimizer, **arguments)
            self._multipliers = [self._now()]
            self._advance()
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise EngineError(
                f"lr_scheduler_type = {safe_text(name)} can't be used with lr_scheduler_args = "
                f"{safe_text(' '.join(pairs))}: {safe_text(str(error))}"
            ) from error

    def at(self, step: int) -> float:
        while len(self._multipliers) <= step:
            self._advance()
        return self._multipliers[step]

    def _now(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"]) / self._rate

    def _advance(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # That the optimizer, which is only there to be asked, takes no steps.
            self._scheduler.step()
        self._multipliers.append(self._now())


@lru_cache(maxsize=4)
def _curve(name: str, pairs: tuple[str, ...], rate: float) -> _Curve:
    return _Curve(name, pairs, rate)

"""The check before each update: a loss or gradient that is not finite would poison the weights. Torch-free."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.errors import EngineError, safe_text
from engine.plan import Batch

if TYPE_CHECKING:
    from engine.parts import Parts

MOST_NAMED = 5


class NotFiniteError(EngineError):
    """A loss or gradient that is not finite: the weights are as they were, and a rollback may help."""


Numbers = tuple[Sequence[float], Sequence[int], float]


def check_finite(parts: "Parts", batches: Sequence[Batch], numbers: Numbers, *, step: int, rate: float) -> None:
    """Stop before an update that would poison the weights.

    Args:
        parts: The run.
        batches: Those of the step.
        numbers: Loss and timestep of each image, and the norm of the gradients.
        step: The step's number.
        rate: Its learning rate.

    Raises:
        NotFiniteError: A loss is not finite, or a gradient is and fp16's loss scaling is not there to expect it.
    """
    losses, timesteps, grad_norm = numbers
    rows = [row for batch in batches for row in batch.rows]
    bad = [place for place, loss in enumerate(losses) if not math.isfinite(loss)]
    if not bad and (math.isfinite(grad_norm) or parts.is_scaled):
        return
    keys = parts.plan.catalog.keys
    places = (bad or range(len(rows)))[:MOST_NAMED]
    named = ", ".join(f"{safe_text(keys[rows[place]])} at timestep {timesteps[place]}" for place in places)
    what = "loss" if bad else "gradient"
    after = "some weights were updated" if parts.updater.is_fused and not bad else "nothing was updated"
    raise NotFiniteError(
        f"the {what} of step {step} is not finite, with {named}, learning rate {rate:g}; {after}: "
        "look at these pictures, lower learning_rate, or use mixed_precision=bf16 or no"
    )

"""Measures what an optimizer keeps and needs for a while, by two updates of real tensors on the CPU."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from engine.memory_trace.ledger import Ledger, Watch
from engine.optimizers import choose_optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Bytes of the state, and the most needed beside it, weights and gradients during the second update."""

    state: int
    temporary: int


def measure_optimizer(name: str, shapes: list[tuple[int, ...]], **arguments: Any) -> Measured:  # noqa: ANN401
    """Return what an optimizer takes for parameters of these shapes, float32, without the allocator's rounding.

    Raises:
        EngineError: Its package is missing.
    """
    generator = torch.Generator().manual_seed(1)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    groups: list[dict[str, Any]] = [{"params": parameters}]
    constructor, completed = choose_optimizer(name, groups, arguments)
    rate = {} if groups[0].get("lr", "") is None else {"lr": 1e-3}
    optimizer = constructor(groups, **rate, **completed)
    if hasattr(optimizer, "train"):  # Schedule-free ones have two modes.
        optimizer.train()
    ledger = Ledger(is_rounded=False)
    with Watch(ledger):
        for parameter in parameters:
            ledger.see(parameter)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        before = ledger.peak = ledger.total
        optimizer.step()
    return Measured(state=_state_bytes(optimizer), temporary=ledger.peak - before)


def _state_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of tensors as large as numbers of each element; step counters and code books are left out."""
    return sum(
        value.untyped_storage().nbytes()
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and value.dim() > 0 and not name.startswith("qmap")
    )

"""Counts what tensors take, by kind, while a step runs; on the meta device, where nothing is really allocated."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from engine.memory.allocation import rounded

Kind = Literal["weights", "gradients", "activations", "autocast", "temporary", "inputs"]
KINDS: tuple[Kind, ...] = ("activations", "autocast", "temporary", "gradients")


@dataclass(slots=True)
class _Entry:
    kind: Kind
    num_bytes: int
    number: int


@dataclass(frozen=True, slots=True)
class Moment:
    """What is held just after an allocation, in bytes by KINDS; inputs count as activations."""

    is_backward: bool
    held: tuple[int, int, int, int]
    finished: int
    """Elements of the parameter whose gradient was completed at this moment, else 0."""


class Ledger:
    """Every living storage with its kind; the moments of allocation; and the order of allocations and releases."""

    def __init__(self, *, is_rounded: bool = True) -> None:
        self.moments: list[Moment] = []
        self.order: list[int] = []
        """Positive: the size of the allocation with the next number; negative: -1 - the number that is released."""
        self.num_weights = 0
        self.end = 0
        """How many entries of `order` are weights, and come before the gradients are released."""
        self.held: dict[Kind, int] = dict.fromkeys((*KINDS, "weights", "inputs"), 0)
        self.total = 0
        self.peak = 0
        self.kind: Kind = "weights"
        self._entries = WeakIdKeyDictionary()
        self._count = 0
        self._is_rounded = is_rounded

    def see(self, tensor: Tensor, kind: Kind | None = None) -> None:
        """Count a tensor's storage unless it is known; with a kind, a known one changes to that."""
        storage = tensor.untyped_storage()
        entry: _Entry | None = self._entries.get(storage)
        if entry is not None:
            if kind is not None:
                self.held[entry.kind] -= entry.num_bytes
                self.held[kind] += entry.num_bytes
                entry.kind = kind
            return
        size = rounded(storage.nbytes()) if self._is_rounded else storage.nbytes()
        if size == 0:
            return
        entry = _Entry(kind or self.kind, size, self._count)
        self._count += 1
        self._entries[storage] = entry
        self.held[entry.kind] += size
        self.total += size
        self.peak = max(self.peak, self.total)
        self.order.append(size)
        weakref.finalize(storage, self._release, entry).atexit = False
        self._mark()

    def finish(self, parameter: Tensor) -> None:
        """Count a parameter's gradient, which is complete now, as such."""
        assert parameter.grad is not None
        self.see(parameter.grad, "gradients")
        self._mark(parameter.numel())

    def _mark(self, finished: int = 0) -> None:
        if self.kind == "weights":
            return
        held = self.held
        numbers = (held["activations"] + held["inputs"], held["autocast"], held["temporary"], held["gradients"])
        self.moments.append(Moment(self.kind == "temporary", numbers, finished))

    def _release(self, entry: _Entry) -> None:
        self.held[entry.kind] -= entry.num_bytes
        self.total -= entry.num_bytes
        self.order.append(-1 - entry.number)


class Watch(TorchDispatchMode):
    """Shows a ledger every tensor that an operation returns."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ledger = ledger

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run the operation and count what it returns."""
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._ledger.see(tensor)
        return result


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


@contextmanager
def completed_gradients(module: torch.nn.Module, ledger: Ledger) -> Iterator[None]:
    """Tell the ledger of each gradient that is complete, inside the block, and forget all gradients after it."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(ledger.finish) for parameter in trained]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in trained:
            parameter.grad = None

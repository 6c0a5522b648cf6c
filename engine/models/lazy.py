"""Tensors that are named, shaped and typed but not read yet, so that models larger than memory pass through in pieces.

Torch-free until a value is asked for. A dtype is its safetensors code ("F16", "F32", ...).
"""

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
    "U16": "uint16", "I16": "int16", "F16": "float16", "BF16": "bfloat16",
    "U32": "uint32", "I32": "int32", "F32": "float32",
    "U64": "uint64", "I64": "int64", "F64": "float64", "C64": "complex64",
}  # fmt: skip
_CODES = {name: code for code, name in _TORCH_NAMES.items()}
_PIECE_ELEMENTS = 4_194_304  # 16 MB in float32: large enough to run at disk speed, small beside any model.


def torch_dtype(code: str) -> "torch.dtype":
    """Return the torch dtype of a code such as "F16"."""
    import torch

    return cast("torch.dtype", getattr(torch, _TORCH_NAMES[code]))


def dtype_code(dtype: "torch.dtype") -> str:
    """Return the safetensors code of a torch dtype."""
    return _CODES[str(dtype).removeprefix("torch.")]


class TensorLike(Protocol):
    """What the key maps need of a tensor: a torch tensor has it, and so has a `LazyTensor`."""

    @property
    def shape(self) -> Sequence[int]:
        """The sizes, outermost first."""

    def reshape(self, shape: Any, /) -> Self:  # noqa: ANN401  # torch's own signature is a union of overloads
        """Return the same values in another shape."""

    def chunk(self, chunks: int) -> Sequence[Self]:
        """Return equal parts along the first dimension."""

    def clone(self) -> Self:
        """Return values that share no memory with these."""

    def new_ones(self, size: Any) -> Self:  # noqa: ANN401
        """Return ones of this dtype."""

    def long(self) -> Self:
        """Return the values as 64-bit integers."""


T = TypeVar("T", bound=TensorLike)


@dataclass(frozen=True, slots=True, kw_only=True)
class LazyTensor:
    """A tensor to be read when its turn comes.

    `source` may give another dtype or shape than announced (of equal size): `tensor` and `pieces` convert.
    """

    shape: tuple[int, ...]
    dtype: str
    source: Callable[[], "Tensor"]

    @property
    def numel(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """The size in bytes once written."""
        return self.numel * ITEM_BYTES[self.dtype]

    def tensor(self) -> "Tensor":
        """Read the values; a view of the file where neither dtype nor layout changes."""
        return self.source().to(torch_dtype(self.dtype)).reshape(self.shape)

    def pieces(self) -> Iterator["Tensor"]:
        """Read the values as flat CPU tensors of at most 16 MB or so, in order."""
        dtype = torch_dtype(self.dtype)
        flat = self.source().detach().reshape(-1)
        for start in range(0, max(1, flat.numel()), _PIECE_ELEMENTS):
            yield flat[start : start + _PIECE_ELEMENTS].to(device="cpu", dtype=dtype)

    def reshape(self, shape: Sequence[int], /) -> "LazyTensor":
        """Return the same values in another shape."""
        assert math.prod(shape) == self.numel, (self.shape, shape)
        return replace(self, shape=tuple(shape))

    def chunk(self, chunks: int) -> list["LazyTensor"]:
        """Return equal parts along the first dimension."""
        assert self.shape[0] % chunks == 0, self.shape
        shape = (self.shape[0] // chunks, *self.shape[1:])
        return [
            replace(self, shape=shape, source=lambda part=part: self.tensor().chunk(chunks)[part])  # type: ignore[misc]
            for part in range(chunks)
        ]

    def clone(self) -> "LazyTensor":
        """Return itself: what is only read shares nothing."""
        return self

    def new_ones(self, size: Sequence[int]) -> "LazyTensor":
        """Return ones of this dtype."""
        return LazyTensor(shape=tuple(size), dtype=self.dtype, source=lambda: _ones(size))

    def astype(self, code: str) -> "LazyTensor":
        """Return the values to be converted on reading."""
        return replace(self, dtype=code)

    def long(self) -> "LazyTensor":
        """Return the values as 64-bit integers."""
        return self.astype("I64")


def _ones(size: Sequence[int]) -> "Tensor":
    import torch

    return torch.ones(tuple(size))


def lazy(tensor: "Tensor") -> LazyTensor:
    """Wrap a tensor in memory."""
    return LazyTensor(shape=tuple(tensor.shape), dtype=dtype_code(tensor.dtype), source=lambda: tensor)


def concatenate(values: Sequence[T]) -> T:
    """Join tensors, lazy or not, along the first dimension."""
    first = values[0]
    if isinstance(first, LazyTensor):
        joined = _concatenate_lazy(cast("Sequence[LazyTensor]", values))
        return cast("T", joined)
    import torch

    return cast("T", torch.cat(cast("list[Tensor]", list(values))))


def _concatenate_lazy(values: Sequence[LazyTensor]) -> LazyTensor:
    def read() -> "Tensor":
        import torch

        return torch.cat([value.tensor() for value in values])

    shape = (sum(value.shape[0] for value in values), *values[0].shape[1:])
    return LazyTensor(shape=shape, dtype=values[0].dtype, source=read)


class MappedFile:
    """A file mapped copy-on-write: its tensors take no memory until touched, and writing to them leaves it as it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def lazy(self, code: str, shape: tuple[int, ...], offset: int) -> LazyTensor:
        """Return the contiguous tensor at a byte offset, unread."""
        return LazyTensor(shape=shape, dtype=code, source=lambda: self.flat(code, math.prod(shape), offset))

    def flat(self, code: str, numel: int, offset: int) -> "Tensor":
        """Return `numel` values from a byte offset on, as a flat view of the file."""
        import torch

        dtype = torch_dtype(code)
        if not numel:
            return torch.empty(0, dtype=dtype)
        if offset % ITEM_BYTES[code]:  # Reading across alignment is undefined in the kernels: copy these few.
            held = bytearray(self._map[offset : offset + numel * ITEM_BYTES[code]])
            return torch.frombuffer(held, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=numel, offset=offset)

"""Growing series of numbers with the extremes of ever larger blocks, so that any window of a long run plots at once.

Dimension key: N values, C columns of a plot.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FACTOR = 16  # Values per block of the first level, blocks per block of the next.
_CHUNK = 512  # Values smoothed at once; decay ** -512 stays far inside float64 for any decay above 0.3.
_PIECE = _CHUNK * 64


class Column:
    """A growing array; appending is amortised constant time."""

    def __init__(self, dtype: str) -> None:
        self._data: NDArray[Any] = np.empty(256, dtype)
        self._size = 0

    def __len__(self) -> int:
        """Return the number of values."""
        return self._size

    @property
    def values(self) -> NDArray[Any]:
        """A view of the values, valid until the next append."""
        return self._data[: self._size]

    def append(self, values_N: NDArray[Any]) -> None:
        """Add values at the end."""
        size = self._size + len(values_N)
        if size > len(self._data):
            grown = np.empty(max(size, len(self._data) * 3 // 2), self._data.dtype)
            grown[: self._size] = self.values
            self._data = grown
        self._data[self._size : size] = values_N
        self._size = size

    def truncate(self, size: int) -> None:
        """Forget all but the first `size` values."""
        self._size = min(self._size, size)


class Pyramid:
    """A series with the minimum and maximum of each block of 16, 256, 4096, ... values.

    A summary of any window reads at most some thousand numbers, and no peak is ever lost in it.
    """

    def __init__(self) -> None:
        self.column = Column("<f4")
        self._lows: list[Column] = []
        self._highs: list[Column] = []

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self.column)

    def append(self, values_N: NDArray[Any]) -> None:
        """Add values at the end; infinite ones count as missing."""
        first = len(self.column)
        finite_N = np.where(np.isfinite(values_N), values_N, np.nan)
        self.column.append(finite_N)
        self._summarise(first)

    def truncate(self, size: int) -> None:
        """Forget all but the first `size` values."""
        if size < len(self.column):
            self.column.truncate(size)
            self._summarise(size)

    def _summarise(self, first: int) -> None:
        """Bring the blocks from the one that holds value `first` up to date."""
        low, high, level = self.column, self.column, 0
        while len(low) > FACTOR or level < len(self._lows):
            if level == len(self._lows):
                self._lows.append(Column("<f4"))
                self._highs.append(Column("<f4"))
                first = 0
            first //= FACTOR
            for blocks, below, reduce in (
                (self._lows[level], low, np.fmin.reduceat),
                (self._highs[level], high, np.fmax.reduceat),
            ):
                blocks.truncate(first)
                tail_N = below.values[first * FACTOR :]
                if len(tail_N):
                    blocks.append(reduce(tail_N, np.arange(0, len(tail_N), FACTOR)))
            low, high, level = self._lows[level], self._highs[level], level + 1

    def extremes(self, edges: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the least and greatest value (C,) between each two of C + 1 ascending positions; NaN where none is."""
        columns = len(edges) - 1
        block, level = 1, -1
        # Two blocks a column at least: a block belongs to the column where it begins, half a column off at most.
        while level + 1 < len(self._lows) and (edges[-1] - edges[0]) >= 2 * columns * block * FACTOR:
            block, level = block * FACTOR, level + 1
        low = self._lows[level] if level >= 0 else self.column
        high = self._highs[level] if level >= 0 else self.column
        starts, last = edges[:-1] // block, -(-int(edges[-1]) // block)
        lows_C, highs_C = np.full(columns, np.nan, "<f4"), np.full(columns, np.nan, "<f4")
        filled = np.diff(starts, append=last) > 0
        if filled.any():
            # Empty columns are left out, since reduceat would give them their neighbour's value.
            lows_C[filled] = np.fmin.reduceat(low.values[:last], starts[filled])
            highs_C[filled] = np.fmax.reduceat(high.values[:last], starts[filled])
        return lows_C, highs_C


def smooth(values_N: NDArray[Any], decay: float, before: float) -> NDArray[Any]:
    """Return the exponential moving average (N,) that starts from `before`; missing values leave it as it is."""
    chunks = -(-len(values_N) // _CHUNK)
    padded = np.zeros(chunks * _CHUNK)
    padded[: len(values_N)] = _filled(values_N, before)
    powers = decay ** np.arange(1, _CHUNK + 1)
    # Within a chunk the recurrence has a closed form; only its last value is carried on one by one.
    weighted = (1 - decay) * np.cumsum(padded.reshape(chunks, _CHUNK) / powers, axis=1)
    carried = np.empty((chunks, 1))
    for chunk, last in enumerate(weighted[:, -1].tolist()):
        carried[chunk] = before
        before = powers[-1] * (before + last)
    averaged: NDArray[Any] = powers * (carried + weighted)
    return averaged.reshape(-1)[: len(values_N)]


def _filled(values_N: NDArray[Any], before: float) -> NDArray[Any]:
    missing = np.isnan(values_N)
    if not missing.any():
        return values_N
    latest = np.maximum.accumulate(np.where(missing, -1, np.arange(len(values_N))))
    return np.where(latest < 0, before, values_N[latest])


class Series:
    """Values at ascending steps, raw and smoothed."""

    def __init__(self, name: str, decay: float = 0.0) -> None:
        self.name = name
        self.decay = decay
        self.steps = Column("<i4")
        self.raw = Pyramid()
        self._smoothed = Pyramid()

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self.steps)

    def append(self, steps_N: NDArray[Any], values_N: NDArray[Any]) -> None:
        """Add values at steps beyond the last one."""
        self.steps.append(steps_N)
        self.raw.append(values_N)

    def truncate_after(self, step: int) -> None:
        """Forget the values beyond a step."""
        size = int(np.searchsorted(self.steps.values, step, side="right"))
        self.steps.truncate(size)
        self.raw.truncate(size)
        self._smoothed.truncate(size)

    def set_decay(self, decay: float) -> None:
        """Smooth with another decay from now on, 0 for not at all."""
        if decay != self.decay:
            self.decay = decay
            self._smoothed = Pyramid()

    @property
    def smoothed(self) -> Pyramid:
        """The moving average, brought up to date when it is asked for; empty without smoothing."""
        if not self.decay or len(self._smoothed) == len(self):
            return self._smoothed
        values_N = self.raw.column.values
        # An average over n steps is a plain mean until there are n, so the first value does not weigh on them all.
        warm = min(round(1 / (1 - self.decay)), len(values_N))
        if len(self._smoothed) < warm:
            self._smoothed.truncate(0)
            self._smoothed.append(np.cumsum(_filled(values_N[:warm], 0.0)) / np.arange(1, warm + 1))
        # In pieces that fit the processor's cache.
        for start in range(len(self._smoothed), len(values_N), _PIECE):
            before = float(self._smoothed.column.values[-1])
            self._smoothed.append(smooth(values_N[start : start + _PIECE], self.decay, before))
        return self._smoothed

    def edges(self, borders: NDArray[Any]) -> NDArray[Any]:
        """Return the position of the first value at or beyond each step in `borders`."""
        # Of the same type, or numpy would convert every step first.
        edges: NDArray[Any] = np.searchsorted(self.steps.values, np.ceil(borders).astype("<i4"))
        return edges

    def at(self, step: float) -> tuple[int, float, float] | None:
        """Return step, raw and smoothed value of the entry nearest to a step; smoothed is NaN without smoothing."""
        if not len(self):
            return None
        steps = self.steps.values
        right = min(int(self.edges(np.array([step]))[0]), len(steps) - 1)
        left = max(right - 1, 0)
        found = left if abs(steps[left] - step) <= abs(steps[right] - step) else right
        smoothed = float(self.smoothed.column.values[found]) if self.decay else float("nan")
        return int(steps[found]), float(self.raw.column.values[found]), smoothed

"""Which bucket a picture goes to, how it is resized and what is cropped away: sd-scripts' rules, number for number.

One picture by plain Python (`place`), many at once by numpy (`place_many`), with the same result. Torch-free.
Dimension key: N pictures, 2 = (width, height), 4 = (left, top, right, bottom).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Size = tuple[int, int]
Box = tuple[int, int, int, int]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_CHUNK = 1 << 15  # Pictures at a time, so that the intermediate arrays stay in the processor's cache.


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a picture goes: its upright size, its bucket, the size it is resized to, what is cropped from that."""

    size: Size
    bucket: Size
    resized: Size
    crop: Box

    @property
    def cut_fraction(self) -> float:
        """The share of the picture that cropping throws away, 0 to 1."""
        return 1 - (self.bucket[0] * self.bucket[1]) / (self.resized[0] * self.resized[1])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placements:
    """Many placements as arrays; `bucket_N` counts into `buckets`, the sorted buckets that hold a picture."""

    buckets: tuple[Size, ...]
    bucket_N: NDArray[np.int32]
    sizes_N2: NDArray[np.int32]
    resized_N2: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.bucket_N)

    def at(self, row: int) -> Placement:
        """Return the placement of one picture."""
        bucket = self.buckets[int(self.bucket_N[row])]
        resized = (int(self.resized_N2[row, 0]), int(self.resized_N2[row, 1]))
        size = (int(self.sizes_N2[row, 0]), int(self.sizes_N2[row, 1]))
        return Placement(size=size, bucket=bucket, resized=resized, crop=centre_crop(resized, bucket))

    @property
    def cut_fractions(self) -> Floats:
        """The share of each picture that cropping throws away, 0 to 1."""
        area_N = np.array(self.buckets, np.int64).reshape(-1, 2).prod(axis=1)[self.bucket_N]
        return np.asarray(1 - area_N / self.resized_N2.astype(np.int64).prod(axis=1), np.float64)


def adjust_limits(min_size: int, max_size: int, step: int) -> tuple[int, int]:
    """Return the shortest side rounded down and the longest rounded up to the step; neither is below one step."""
    return max(step, min_size - min_size % step), max(step, max_size + -max_size % step)


def bucket_resolutions(max_resolution: Size, min_size: int, max_size: int, step: int) -> list[Size]:
    """Return every bucket (width, height) of at most the area of `max_resolution`, sorted.

    Sides are multiples of `step` from `min_size` (rounded down) to `max_size` (rounded up); the square bucket belongs
    to them even where it lies outside these limits, as in sd-scripts.
    """
    min_size, max_size = adjust_limits(min_size, max_size, step)
    area = max_resolution[0] * max_resolution[1]
    square = max(step, int(math.sqrt(area) // step) * step)
    found = {(square, square)}
    for width in range(min_size, max_size + 1, step):
        height = min(max_size, area // width // step * step)
        if height >= min_size:
            found |= {(width, height), (height, width)}
    return sorted(found)


def place(
    size: Size, resolutions: Sequence[Size], *, max_resolution: Size, step: int = 64, no_upscale: bool = False
) -> Placement:
    """Return where a picture of an upright (width, height) goes.

    With `no_upscale` the bucket is made for the picture from `max_resolution` and `step`; else it is the nearest of
    `resolutions` in aspect ratio. One resolution alone means no buckets: cover it, then crop the middle.
    """
    if no_upscale:
        resized, bucket = _without_upscale(size, max_resolution, step)
    else:
        resized, bucket = _nearest(size, resolutions)
    return Placement(size=size, bucket=bucket, resized=resized, crop=centre_crop(resized, bucket))


def centre_crop(resized: Size, bucket: Size) -> Box:
    """Return the middle of a resized picture; an odd pixel is lost on the right or at the bottom."""
    left, top = (resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2
    return left, top, left + bucket[0], top + bucket[1]


def crop_ltrb(bucket: Size, size: Size) -> tuple[float, float, float, float]:
    """Return SDXL's crop conditioning: where the whole picture, fitted inside its bucket, would lie."""
    aspect = size[0] / size[1]
    if bucket[0] / bucket[1] > aspect:
        width, height = bucket[1] * aspect, float(bucket[1])
    else:
        width, height = float(bucket[0]), bucket[0] / aspect
    left, top = (bucket[0] - width) // 2, (bucket[1] - height) // 2
    return left, top, left + width, top + height


def _nearest(size: Size, resolutions: Sequence[Size]) -> tuple[Size, Size]:
    """Return (resized, bucket) for the bucket whose width/height differs least; the first of equals."""
    width, height = size
    aspect = width / height
    bucket = size if size in resolutions else min(resolutions, key=lambda b: abs(b[0] / b[1] - aspect))
    scale = bucket[1] / height if aspect > bucket[0] / bucket[1] else bucket[0] / width
    return (int(width * scale + 0.5), int(height * scale + 0.5)), bucket


def _without_upscale(size: Size, max_resolution: Size, step: int) -> tuple[Size, Size]:
    """Return (resized, bucket) for a bucket of the picture's own shape."""
    resized = size
    if size[0] * size[1] > max_resolution[0] * max_resolution[1]:
        resized = _shrink(size[0] / size[1], max_resolution[0] * max_resolution[1], step)
    if min(resized) < step:
        return _widen(size, max_resolution, step)
    return resized, (resized[0] - resized[0] % step, resized[1] - resized[1] % step)


def _shrink(aspect: float, area: int, step: int) -> Size:
    """Return the size of about `area` whose bucket keeps the aspect best: one side is a whole number of steps."""
    width = math.sqrt(area * aspect)
    by_width = _round_down(width, step)
    its_height = _round_down(by_width / aspect, step)
    by_height = _round_down(area / width, step)
    its_width = _round_down(by_height * aspect, step)
    # A side of zero has no aspect ratio: sd-scripts divides by it and ends.
    error_by_width = abs(by_width / its_height - aspect) if its_height else math.inf
    error_by_height = abs(its_width / by_height - aspect) if by_height else math.inf
    if error_by_width < error_by_height:
        return by_width, int(by_width / aspect + 0.5)
    return int(by_height * aspect + 0.5), by_height


def _widen(size: Size, max_resolution: Size, step: int) -> tuple[Size, Size]:
    """Return (resized, bucket) for a picture with a side below one step, enlarged just enough to fill one.

    sd-scripts makes a bucket of zero pixels here; no rule of its own can be followed. The bucket stays within the area.
    """
    scale = step / min(size)
    resized = max(step, int(size[0] * scale + 0.5)), max(step, int(size[1] * scale + 0.5))
    longest = max(step, max_resolution[0] * max_resolution[1] // step // step * step)
    return resized, (min(longest, resized[0] - resized[0] % step), min(longest, resized[1] - resized[1] % step))


def _round_down(value: float, step: int) -> int:
    rounded = int(value + 0.5)
    return rounded - rounded % step


def place_many(
    sizes_N2: ArrayLike,
    resolutions: Sequence[Size],
    *,
    max_resolution: Size,
    step: int = 64,
    no_upscale: bool = False,
) -> Placements:
    """Return what `place` says for every upright (width, height), with the same floating-point operations."""
    sizes = np.asarray(sizes_N2, np.int32).reshape(-1, 2)
    resized_N2 = np.empty(sizes.shape, np.int32)
    if no_upscale:
        bucket_N2 = np.empty(sizes.shape, np.int32)
        for part in _chunks(len(sizes)):
            _without_upscale_many(sizes[part], max_resolution, step, resized_N2[part], bucket_N2[part])
        code_N = bucket_N2[:, 0].astype(np.int64) << 32 | bucket_N2[:, 1]
        codes, index_N = np.unique(code_N, return_inverse=True)
        buckets = [(int(code >> 32), int(code & 0xFFFFFFFF)) for code in codes]
    else:
        buckets, index_N = list(resolutions), np.empty(len(sizes), np.int32)
        nearest = _nearest_finder(buckets)
        for part in _chunks(len(sizes)):
            nearest(sizes[part], index_N[part], resized_N2[part])
        buckets, index_N = _only_used(buckets, index_N)
    return Placements(buckets=tuple(buckets), bucket_N=index_N.astype(np.int32), sizes_N2=sizes, resized_N2=resized_N2)


def _chunks(count: int) -> list[slice]:
    return [slice(start, min(count, start + _CHUNK)) for start in range(0, count, _CHUNK)]


def _only_used(buckets: list[Size], index_N: NDArray[np.int32]) -> tuple[list[Size], NDArray[np.int32]]:
    """Return the sorted buckets that hold a picture, and the index into them."""
    counts = np.bincount(index_N, minlength=len(buckets))
    used = sorted((bucket, old) for old, bucket in enumerate(buckets) if counts[old])
    renumbered = np.zeros(len(buckets), np.int32)
    renumbered[[old for _, old in used]] = np.arange(len(used))
    return [bucket for bucket, _ in used], renumbered[index_N]


def _nearest_finder(resolutions: Sequence[Size]) -> Callable[[NDArray[np.int32], Any, Any], None]:
    """Return a function of (sizes_N2, bucket index to fill, resized to fill).

    The nearest aspect ratio is one of the two neighbours in sorted order; of equal distances, and of equal aspect
    ratios, the bucket that stands first in `resolutions` wins, as numpy's argmin over all of them would say.
    """
    first_of: dict[float, int] = {}
    for index, (width, height) in enumerate(resolutions):
        first_of.setdefault(width / height, index)
    aspects = sorted(first_of)
    # An infinite neighbour on both sides is never the nearest, and saves the special cases at the ends.
    aspect_K = np.array([-np.inf, *aspects, np.inf])
    index_K = np.array([0, *[first_of[aspect] for aspect in aspects], 0], np.int32)
    width_K, height_K = np.array(resolutions, np.float64)[index_K].T
    twins = [(index, size) for index, size in enumerate(resolutions) if first_of[size[0] / size[1]] != index]

    def find(sizes_N2: NDArray[np.int32], index_out: NDArray[np.int32], resized_out: NDArray[np.int32]) -> None:
        width_N, height_N = sizes_N2[:, 0].astype(np.float64), sizes_N2[:, 1].astype(np.float64)
        aspect_N = width_N / height_N
        low_N = _count_below(aspect_N, aspects)
        high_N = low_N + 1
        gap_N = np.abs(aspect_K[high_N] - aspect_N) - np.abs(aspect_K[low_N] - aspect_N)
        near_N = low_N + ((gap_N < 0) | ((gap_N == 0) & (index_K[high_N] < index_K[low_N])))
        index_out[:] = index_K[near_N]
        by_height_N, by_width_N = height_K[near_N] / height_N, width_K[near_N] / width_N
        scale_N = np.where(aspect_N > aspect_K[near_N], by_height_N, by_width_N)
        resized_out[:, 0] = width_N * scale_N + 0.5
        resized_out[:, 1] = height_N * scale_N + 0.5
        for index, size in twins:  # A picture of a bucket's very size goes there, though a twin stands before it.
            exact_N = (sizes_N2 == size).all(axis=1)
            index_out[exact_N] = index
            resized_out[exact_N] = size

    return find


def _count_below(value_N: Floats, edges: Sequence[float]) -> Ints:
    """Return how many of the sorted edges lie below each value.

    For the usual few dozen edges comparing with all of them takes a quarter of a binary search, which mispredicts.
    """
    if len(edges) > 64:
        return np.searchsorted(edges, value_N)
    count_N = np.zeros(len(value_N), np.uint8)
    for edge in edges:
        count_N += value_N > edge
    return count_N.astype(np.int64)


def _without_upscale_many(
    sizes_N2: NDArray[np.int32],
    max_resolution: Size,
    step: int,
    resized_out: NDArray[np.int32],
    bucket_out: NDArray[np.int32],
) -> None:
    area = max_resolution[0] * max_resolution[1]
    sizes_N2 = sizes_N2.astype(np.int64)
    resized_N2 = sizes_N2.copy()
    is_large_N = sizes_N2.prod(axis=1) > area
    resized_N2[is_large_N] = _shrink_many(sizes_N2[is_large_N, 0] / sizes_N2[is_large_N, 1], area, step)
    resized_out[:] = resized_N2
    bucket_out[:] = resized_N2 - resized_N2 % step
    for row in np.flatnonzero(resized_N2.min(axis=1) < step):
        size = int(sizes_N2[row, 0]), int(sizes_N2[row, 1])
        resized_out[row], bucket_out[row] = _widen(size, max_resolution, step)


def _shrink_many(aspect_N: Floats, area: int, step: int) -> Ints:
    def round_down(value_N: Floats) -> Ints:
        rounded_N = (value_N + 0.5).astype(np.int64)
        return rounded_N - rounded_N % step

    def error(width_N: Ints, height_N: Ints) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(height_N > 0, np.abs(width_N / height_N - aspect_N), np.inf)

    width_N = np.sqrt(area * aspect_N)
    by_width_N, by_height_N = round_down(width_N), round_down(area / width_N)
    error_by_width_N = error(by_width_N, round_down(by_width_N / aspect_N))
    error_by_height_N = error(round_down(by_height_N * aspect_N), by_height_N)
    is_by_width_N = error_by_width_N < error_by_height_N
    return np.stack(
        [
            np.where(is_by_width_N, by_width_N, (by_height_N * aspect_N + 0.5).astype(np.int64)),
            np.where(is_by_width_N, (by_width_N / aspect_N + 0.5).astype(np.int64), by_height_N),
        ],
        axis=1,
    )

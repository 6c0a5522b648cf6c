"""The order of an epoch: a pure function of (seed, epoch), whatever the number of processes. Torch-free.

Dimension key: M items (a picture once for each repeat), B batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.rng import numpy_rng

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EpochBatches:
    """The batches of an epoch in order; batch b holds `items_M[starts[b]:starts[b + 1]]`."""

    items_M: Indices
    starts: Indices
    num_short: int
    """Batches that hold fewer items than their bucket's batch size, because the bucket ran out."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def at(self, batch: int) -> Indices:
        """Return the items of one batch; where it starts is `starts[batch]`."""
        return self.items_M[self.starts[batch] : self.starts[batch + 1]]


def expand_repeats(repeats_N: ArrayLike) -> tuple[Indices, Indices]:
    """Return (row_M, repeat_M): a picture repeated n times makes n items, its repeats counted from 0."""
    counts_N = np.asarray(repeats_N, np.int64)
    rows_M = np.repeat(np.arange(len(counts_N)), counts_N)
    first_N = np.cumsum(counts_N) - counts_N
    return rows_M, np.arange(len(rows_M)) - first_N[rows_M]


def epoch_batches(
    bucket_of_item_M: ArrayLike, batch_size: int | Sequence[int], *, seed: int, epoch: int
) -> EpochBatches:
    """Shuffle the items of each bucket, cut them into batches, shuffle the batches of all buckets together.

    Args:
        bucket_of_item_M: Number of each item's bucket, from 0; several data sets count their buckets on.
        batch_size: One for all buckets, or one for each.
        seed: The run's seed.
        epoch: The epoch; any change of it is another order.
    """
    bucket_M = np.asarray(bucket_of_item_M)
    rng = numpy_rng(seed, "order", epoch)
    shuffled_M = rng.permutation(len(bucket_M))
    # Integers of 8 or 16 bits are sorted by radix: ten times the speed of a comparison sort, and as stable.
    small_M = bucket_M.astype(np.min_scalar_type(int(bucket_M.max(initial=0))))
    items_M = shuffled_M[np.argsort(small_M[shuffled_M], kind="stable")]
    # A bucket may be without items: its pictures are all held out.
    num_buckets = 0 if isinstance(batch_size, int) else len(batch_size)
    counts_K = np.bincount(bucket_M, minlength=num_buckets) if len(bucket_M) else np.zeros(0, np.int64)
    sizes_K = np.broadcast_to(np.asarray(batch_size, np.int64), counts_K.shape)
    lengths_B = _batch_lengths(counts_K, sizes_K)
    order_B = rng.permutation(len(lengths_B))
    starts_B = (np.cumsum(lengths_B) - lengths_B)[order_B]
    starts = np.concatenate([[0], np.cumsum(lengths_B[order_B])])
    gather_M = np.arange(len(items_M)) + np.repeat(starts_B - starts[:-1], lengths_B[order_B])
    num_short = int(np.count_nonzero(counts_K % sizes_K))
    return EpochBatches(items_M=items_M[gather_M], starts=starts, num_short=num_short)


def _batch_lengths(counts_K: Indices, sizes_K: Indices) -> Indices:
    """Return the length of every batch, bucket after bucket: full ones, then what is left."""
    batches_K = -(-counts_K // sizes_K)
    lengths_B = np.repeat(sizes_K, batches_K)
    last_B = np.cumsum(batches_K)[batches_K > 0] - 1
    lengths_B[last_B] = (counts_K - (batches_K - 1) * sizes_K)[batches_K > 0]
    return lengths_B

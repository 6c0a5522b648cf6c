"""How CUDA's caching allocator turns tensors into reserved memory, replayed. Torch-free.

Follows the defaults of torch's c10/cuda/CUDACachingAllocator.cpp on one stream: blocks of 512 bytes, small requests
from segments of 2 MiB, those below 10 MiB from segments of 20 MiB, larger ones from segments of their own in steps of
2 MiB; best fit, split, merged with free neighbours; segments are never given back.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

MIB = 1 << 20
_BLOCK = 512
_SMALL = MIB  # The largest request served from small segments.
_SEGMENT_SMALL, _SEGMENT_LARGE, _LARGE = 2 * MIB, 20 * MIB, 10 * MIB


def rounded(num_bytes: int) -> int:
    """Return what an allocation takes: a multiple of 512 bytes."""
    return -(-num_bytes // _BLOCK) * _BLOCK


@dataclass(slots=True, eq=False)
class Block:
    """A part of a segment."""

    size: int
    is_small: bool
    number: int
    is_free: bool = False
    before: "Block | None" = None
    after: "Block | None" = None


class CachingAllocator:
    """Allocates and releases by size alone; `reserved` is what the driver would see as used."""

    def __init__(self) -> None:
        self.reserved = 0
        self.allocated = 0
        self.peak = 0
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._blocks: dict[int, Block] = {}
        self._count = 0

    def allocate(self, num_bytes: int) -> Block:
        """Return a block of at least so many bytes."""
        size = rounded(num_bytes)
        is_small = size <= _SMALL
        free = self._free[is_small]
        place = bisect_left(free, (size, -1))
        if place < len(free):
            block = self._blocks[free.pop(place)[1]]
            block.is_free = False
        else:
            block = self._segment(size, is_small=is_small)
        rest = block.size - size
        if rest >= _BLOCK if is_small else rest > _SMALL:
            self._split(block, size)
        self.allocated += block.size
        self.peak = max(self.peak, self.allocated)
        return block

    def _segment(self, size: int, *, is_small: bool) -> Block:
        if is_small:
            total = _SEGMENT_SMALL
        else:
            total = _SEGMENT_LARGE if size < _LARGE else -(-size // _SEGMENT_SMALL) * _SEGMENT_SMALL
        self.reserved += total
        return self._block(total, is_small=is_small)

    def _block(self, size: int, *, is_small: bool) -> Block:
        self._count += 1
        block = self._blocks[self._count] = Block(size, is_small, self._count)
        return block

    def _split(self, block: Block, size: int) -> None:
        rest = self._block(block.size - size, is_small=block.is_small)
        rest.is_free, rest.before, rest.after = True, block, block.after
        if block.after is not None:
            block.after.before = rest
        block.after, block.size = rest, size
        insort(self._free[block.is_small], (rest.size, rest.number))

    def release(self, block: Block) -> None:
        """Take a block back and merge it with its free neighbours."""
        self.allocated -= block.size
        if block.before is not None and block.before.is_free:
            block = self._merged(block.before, block, keep_free=block.before)
        if block.after is not None and block.after.is_free:
            block = self._merged(block, block.after, keep_free=block.after)
        block.is_free = True
        insort(self._free[block.is_small], (block.size, block.number))

    def _merged(self, first: Block, second: Block, *, keep_free: Block) -> Block:
        free = self._free[first.is_small]
        del free[bisect_left(free, (keep_free.size, keep_free.number))]
        del self._blocks[second.number]
        first.size += second.size
        first.after = second.after
        if second.after is not None:
            second.after.before = first
        return first


def slack(order: Sequence[int], num_weights: int, end: int) -> float:
    """Return what is reserved but not allocated, as a share of what a second step holds beside weights and state.

    `order` is a ledger's, with the weights first and the release of the gradients from `end` on. Between the first
    backward pass and that, an optimizer makes its state: two numbers of 8 bits for each weight of four bytes.
    """
    allocator = CachingAllocator()
    blocks: dict[int, Block] = {}

    def run(entries: Sequence[int], number: int) -> None:
        for entry in entries:
            if entry >= 0:
                blocks[number] = allocator.allocate(entry)
                number += 1
            else:
                allocator.release(blocks.pop(-1 - entry))

    run(order[:num_weights], 0)
    run(order[num_weights:end], num_weights)
    for size in order[:num_weights]:
        allocator.allocate(size // 4)
        allocator.allocate(size // 4)
    run(order[end:], 0)
    still = allocator.peak = allocator.allocated
    run(order[num_weights:end], num_weights)
    return (allocator.reserved - allocator.peak) / (allocator.peak - still)

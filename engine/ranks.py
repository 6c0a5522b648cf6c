"""Several processes training one model: who is who, what each does of a step, and how they agree.

accelerate (or torchrun) starts the processes and tells each its place by RANK and WORLD_SIZE. Torch-free at import.

Dimension key: 2 = losses and timesteps, I images of a step, P images of the busiest process, R processes.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from engine.plan import Batch

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
# What a border can decide, by the number that travels between the processes.
_REASONS = ("", "SIGINT", "SIGTERM", "request")
_PATIENCE = timedelta(days=1)  # While one process saves or draws samples, the others wait without a time limit.


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process's place among those of a run, counted from 0; the main one, 0, alone writes and is steered."""

    rank: int = 0
    world: int = 1
    group: Any = None
    """The processes' line for decisions: on the CPU, so that no word of it waits for a graphics card."""

    @classmethod
    def here(cls) -> "Ranks":
        """Return the place that the launcher gave this process."""
        return cls(rank=int(os.environ.get("RANK", "0")), world=max(1, int(os.environ.get("WORLD_SIZE", "1"))))

    def joined(self) -> "Ranks":
        """Return the place with a line to the others; call once accelerate has brought the processes together."""
        if self.world == 1:
            return self
        from torch import distributed

        return Ranks(rank=self.rank, world=self.world, group=distributed.new_group(backend="gloo", timeout=_PATIENCE))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes the run folder."""
        return self.rank == 0

    @property
    def key(self) -> tuple[int, ...]:
        """What keys this process's own draws, dropout inside the model; nothing on the main one, as when alone."""
        return () if self.is_main else (self.rank,)

    def share(self, items: Sequence[T], rank: int | None = None) -> tuple[T, ...]:
        """Return what of a step's batches, or of any work, falls to this process, or to process `rank`."""
        return tuple(items[self.rank if rank is None else rank :: self.world])

    def gathered(self, results_2I: "Tensor", batches: Sequence[Batch]) -> "Tensor":
        """Return the results of all the step's images, in the order of its batches, from each process's own (2, I).

        `batches` are those of all processes. One collective on the device; nothing waits for it here.
        """
        if self.world == 1:
            return results_2I
        import torch
        from torch import distributed
        from torch.nn.functional import pad

        sizes_R = [[len(batch.rows) for batch in self.share(batches, rank)] for rank in range(self.world)]
        busiest, mine = max(map(sum, sizes_R)), sum(sizes_R[self.rank])
        padded_2P = pad(results_2I[:, :mine], (0, busiest - mine)).contiguous()
        everyones = [torch.empty_like(padded_2P) for _ in range(self.world)]
        distributed.all_gather(everyones, padded_2P)
        queues = [
            iter(torch.split(results_2P, [*sizes, busiest - sum(sizes)], dim=1))
            for results_2P, sizes in zip(everyones, sizes_R, strict=True)
        ]
        return torch.cat([next(queues[number % self.world]) for number in range(len(batches))], dim=1)

    def agree(self, reason: str) -> str:
        """Return why the run stops, the first reason that any process has, or ""; all hear the same, or wait."""
        if self.world == 1:
            return reason
        import torch
        from torch import distributed

        codes_R = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        distributed.all_gather(codes_R, torch.tensor([_REASONS.index(reason)]), group=self.group)
        return next((_REASONS[int(code)] for code in codes_R if int(code)), "")

    def call(self, *, is_over: bool = False) -> None:
        """Call the others to do together what only all can do; `is_over` says that nothing more comes."""
        self._broadcast(0 if is_over else 1)

    def answer_calls(self, act: Callable[[], object]) -> None:
        """Do as the main process calls, until nothing more comes."""
        while self._broadcast(0):
            act()

    def _broadcast(self, word: int) -> int:
        """Return the main process's word."""
        import torch
        from torch import distributed

        words = torch.tensor([word])
        distributed.broadcast(words, src=0, group=self.group)
        return int(words)

    def wait(self) -> None:
        """Wait until every process has come this far."""
        self.agree("")

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process run the block before the others do, who then find what it has left in the cache."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def leave(self) -> None:
        """Part from the others at the end of the run, or after an error, without waiting for anybody."""
        if self.world == 1:
            return
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


ALONE = Ranks()

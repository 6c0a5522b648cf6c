"""What happens when a window does not fit into memory: its largest batches are run again in halves.

A window's loss is divided by its images, whatever batches they come in, and every draw is keyed by the image's place,
so halves give the same gradient as the whole, up to the order of summation.

Dimension key: B images, I images of the window; 2 = losses and timesteps.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from engine.hardware import is_out_of_memory
from engine.loading import LoadedBatch, Window
from engine.plan import Batch, Plan
from engine.telling import Teller

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Halver:
    """Runs windows and remembers how many pictures of each bucket fit.

    `can_retry` is False where a failed attempt leaves traces: updates within the backward pass, or gradients that
    other processes have taken already. Memory that is short then ends the run.
    """

    tell: Teller
    can_retry: bool
    _most: dict[tuple[int, int], int] = field(default_factory=dict)

    def run(self, window: Window, attempt: Callable[[Window], Tensor], *, begin: Callable[[], None]) -> Tensor:
        """Return what `attempt` gives for the window, (2, I), its batches cut until they fit; none is left out.

        Args:
            window: The batches of a step.
            attempt: Runs them forward and backward.
            begin: Called before every attempt: forgets gradients and sets what the attempt starts from.

        Raises:
            RuntimeError: A single picture does not fit.
        """
        while True:
            fitting = tuple(part for batch in window for part in self._parts(batch))
            begin()
            try:
                return attempt(fitting)
            except (RuntimeError, MemoryError) as error:
                largest = max(fitting, key=_pixels)
                if not self.can_retry or not is_out_of_memory(error) or largest.images == 1:
                    raise
            # Outside the handler: the error's traceback holds the tensors of the failed attempt.
            self._halve(largest)

    def try_largest(
        self, plan: Plan, load: Callable[[Batch], LoadedBatch], attempt: Callable[[Window], Tensor],
        *, begin: Callable[[], None],
    ) -> None:  # fmt: skip
        """Run the largest batch of the plan and forget its gradients, so that what does not fit is known at once.

        Best after the first update, when the optimizer has its memory.
        """
        if self.can_retry:
            self.run((load(largest_batch(plan)),), attempt, begin=begin)
            begin()

    def _parts(self, batch: LoadedBatch) -> Iterator[LoadedBatch]:
        most = self._most.get(batch.batch.bucket, batch.images)
        for start in range(0, batch.images, most):
            yield part_of(batch, slice(start, start + most)) if most < batch.images else batch

    def _halve(self, batch: LoadedBatch) -> None:
        bucket, most = batch.batch.bucket, -(-batch.images // 2)
        self._most[bucket] = most
        free_memory()
        self.tell.warn(
            "out-of-memory",
            f"{batch.images} pictures of {bucket[0]}x{bucket[1]} do not fit into memory; such batches are trained "
            f"{most} at a time, with the same result but slower: a lower train_batch_size avoids it",
        )


def _pixels(batch: LoadedBatch) -> tuple[int, int]:
    width, height = batch.batch.bucket
    return (batch.images > 1) * batch.images * width * height, batch.images


def largest_batch(plan: Plan) -> Batch:
    """Return a batch of the most pixels that an epoch has, of pictures in the order of the catalog."""
    sizes = [min(one.batch_size, one.items) * one.size[0] * one.size[1] for one in plan.buckets]
    number = int(np.argmax(sizes))
    bucket = plan.buckets[number]
    items = np.flatnonzero(plan.bucket_N[plan.rows_M] == number)[: bucket.batch_size]
    return Batch(
        bucket=bucket.size,
        epoch=1,
        first_position=0,
        rows=tuple(plan.rows_M[items].tolist()),
        repeats=tuple(plan.repeats_M[items].tolist()),
    )


def part_of(loaded: LoadedBatch, images: slice) -> LoadedBatch:
    """Return some images of a batch as a batch, with the positions that key their draws."""
    batch = loaded.batch

    def cut(values: T | None) -> T | None:
        return None if values is None else values[images]  # type: ignore[index]

    conditioning = loaded.conditioning
    return replace(
        loaded,
        batch=replace(
            batch,
            first_position=batch.first_position + images.start,
            rows=batch.rows[images],
            repeats=batch.repeats[images],
        ),
        conditioning=replace(
            conditioning,
            states_BLD=cut(conditioning.states_BLD),
            ids_BN77=cut(conditioning.ids_BN77),
            weights_BN77=cut(conditioning.weights_BN77),
        ),
        latents_BChw=cut(loaded.latents_BChw),
        pixels_BHWC=cut(loaded.pixels_BHWC),
        masks_B1hw=cut(loaded.masks_B1hw),
        weights_B=cut(loaded.weights_B),
        vae_seeds=loaded.vae_seeds[images],
    )


def free_memory() -> None:
    """Give back the memory of tensors that nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

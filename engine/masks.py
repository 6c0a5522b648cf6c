"""Masks that weigh the loss of each part of a picture: its own alpha channel, or another picture's red channel.

A mask is cut, mirrored and kept just as the latents of its picture are, as one more channel of the same size.

Dimension key: B pictures, H x W pixels, h x w latent positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engine.dataset.augment import Augmentation
from engine.latent_cache import PIXELS_PER_LATENT, LatentCache, LatentJob
from engine.latents import Latents, encode_latents
from engine.pixels import load_many
from engine.plan import Plan
from engine.telling import Teller


def mask_of(images_BHWC: Tensor, _seeds: Sequence[int] = ()) -> Tensor:
    """Return the red channel of pictures, uint8, as weights of 0 to 1 at latent size, (B, 1, h, w) float32.

    Each weight is the mean of the pixels it stands for, as sd-scripts' area interpolation has it.
    """
    red_B1HW = images_BHWC[..., 0].unsqueeze(1).float() / 255
    return functional.avg_pool2d(red_B1HW, PIXELS_PER_LATENT)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Masks:
    """The masks of a plan's pictures; those without one count in full everywhere."""

    plan: Plan
    workers: int
    kept: Latents | None
    """Masks encoded before, by position; None where pictures change with every showing."""
    positions: dict[int, int]
    """Row of the plan -> position in `kept`."""

    def read(self, rows: Sequence[int], drawn: Sequence[Augmentation | None], size: tuple[int, int]) -> Tensor:
        """Return the masks of a batch, (B, 1, h, w), for a bucket of `size` (width, height) in pixels."""
        height, width = size[1] // PIXELS_PER_LATENT, size[0] // PIXELS_PER_LATENT
        masks_B1hw = torch.ones(len(rows), 1, height, width)
        places = [place for place, row in enumerate(rows) if self.plan.mask_job(row) is not None]
        if not places:
            return masks_B1hw
        if self.kept is not None:
            flips = [augmentation.flip if augmentation else False for augmentation in (drawn[i] for i in places)]
            masks_B1hw[places] = self.kept.read([self.positions[rows[i]] for i in places], flips)
            return masks_B1hw
        jobs = [job for i in places if (job := self.plan.mask_job(rows[i], drawn[i])) is not None]
        pictures = load_many(jobs, workers=self.workers, ahead=len(jobs))
        masks_B1hw[places] = mask_of(torch.from_numpy(np.stack([picture.pixels_HWC for picture in pictures])))
        return masks_B1hw


def prepare_masks(plan: Plan, *, cache_dir: Path | None, is_cached: bool, workers: int, tell: Teller) -> Masks | None:
    """Return the masks of a run, None where it has none; with cached latents they are cached beside these.

    Raises:
        EngineError: A mask can't be read, or is not the size of its picture.
    """
    rows = [row for row in range(plan.num_images) if plan.mask_job(row) is not None]
    if not rows:
        return None
    kept = None
    if is_cached:
        jobs = [
            LatentJob(pixels=job, flip=plan.subset_of(row).augment.flip_aug)
            for row in rows
            if (job := plan.mask_job(row)) is not None
        ]
        cache = LatentCache(cache_dir, vae_fingerprint="mask", dtype="float32", channels=1)
        encode = partial(encode_latents, cache=cache, encode=mask_of, batch_size=16, workers=workers)
        kept = encode(jobs, progress=tell.progress("latents"))
    positions = {row: position for position, row in enumerate(rows)}
    return Masks(plan=plan, workers=workers, kept=kept, positions=positions)

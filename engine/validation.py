"""The loss on pictures that are not trained on, with the same noise and timesteps every time.

Dimension key: B images, C latent channels, h x w latent size.
"""

import itertools
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from engine.diffusion import NUM_TIMESTEPS, add_noise, draw_input_noise, draw_noise, target_for
from engine.events import Validated
from engine.losses import loss_per_image
from engine.parts import Parts
from engine.rng import python_rng, seed_for
from engine.settings import LossSettings

BANDS = 4
"""Timesteps measured of each picture, one in each of so many equal parts of their range."""


def validate(parts: Parts, *, step: int) -> Validated:
    """Measure the loss on every picture held out and return it as an event; nothing of the training is changed.

    Noise, weights of timesteps and masks are those of the training, so that the two losses may be compared; only what
    is drawn stays the same every time.
    """
    began = time.perf_counter()
    bands = timestep_bands(parts.settings.loss)
    by_bucket: dict[tuple[int, int], list[float]] = defaultdict(list)
    by_band: list[list[float]] = [[] for _ in bands]
    with _evaluating(parts.denoiser), torch.no_grad():
        for rows in batches_of(parts):
            for number, band in enumerate(bands):
                losses = _losses(parts, rows, band).tolist()
                by_bucket[parts.plan.placement(rows[0]).bucket] += losses
                by_band[number] += losses
    everything = [loss for losses in by_band for loss in losses]
    return Validated(
        step=step,
        loss=_mean(everything),
        images=len(by_band[0]),
        seconds=time.perf_counter() - began,
        by_bucket=tuple((*bucket, _mean(losses)) for bucket, losses in sorted(by_bucket.items())),
        by_timestep=tuple((*band, _mean(losses)) for band, losses in zip(bands, by_band, strict=True)),
    )


def timestep_bands(loss: LossSettings) -> list[tuple[int, int]]:
    """Return the (first, end) of each band: equal parts of the timesteps that are trained."""
    low = loss.min_timestep or 0
    high = max(low + 1, NUM_TIMESTEPS if loss.max_timestep is None else loss.max_timestep)
    edges = [low + (high - low) * number // BANDS for number in range(BANDS + 1)]
    return [(first, end) for first, end in itertools.pairwise(edges) if end > first]


def batches_of(parts: Parts) -> Iterator[tuple[int, ...]]:
    """Yield the rows of the pictures held out, bucket by bucket, at most max_validation_steps batches."""
    plan = parts.plan
    groups: dict[int, list[int]] = defaultdict(list)
    for row in plan.held_out_rows:
        groups[int(plan.bucket_N[row])].append(row)
    left = parts.settings.training.max_validation_steps
    for number, rows in sorted(groups.items()):
        size = plan.buckets[number].batch_size
        for start in range(0, len(rows), size):
            if left is not None:
                if left == 0:
                    return
                left -= 1
            yield tuple(rows[start : start + size])


def _losses(parts: Parts, rows: Sequence[int], band: tuple[int, int]) -> Tensor:
    """Return the loss of each picture at its timestep in the band, (B,) float32."""
    loss, schedule = parts.settings.loss, parts.schedule
    loaded = parts.source.load_still(rows)
    latents_BChw = parts.latents_of(loaded)
    drawn = [_draw(parts, row, band, latents_BChw[place : place + 1]) for place, row in enumerate(rows)]
    noise_BChw, input_noise_BChw, timesteps_B = (
        torch.cat(tensors).to(latents_BChw.device) for tensors in zip(*drawn, strict=True)
    )
    noisy_BChw = add_noise(latents_BChw, input_noise_BChw, timesteps_B, schedule)
    target_BChw = target_for(latents_BChw, noise_BChw, timesteps_B, schedule)
    # Not the wrapped module: only one process validates, and the others would wait to exchange with it.
    model: nn.Module = parts.accelerator.unwrap_model(parts.denoiser, keep_fp32_wrapper=True)
    with parts.accelerator.autocast():
        prediction_BChw = model(noisy_BChw, timesteps_B, parts.conditioning_of(loaded))
    return loss_per_image(prediction_BChw, target_BChw, timesteps_B, loss, schedule, parts.masks_of(loaded))


def _draw(parts: Parts, row: int, band: tuple[int, int], latents_1Chw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the target's noise and the input's, each (1, C, h, w), and the timestep, (1,), of a picture in a band.

    They depend on the seed, the picture and the band, and on nothing else.
    """
    settings = parts.settings
    seed = settings.training.seed if settings.dataset.validation_seed is None else settings.dataset.validation_seed
    key = (seed, "validation", parts.plan.catalog.keys[row], *band)
    generator = torch.Generator().manual_seed(seed_for(*key, "noise"))
    noise_1Chw = draw_noise(
        latents_1Chw.shape,
        settings.loss,
        generator=generator,
        rng=python_rng(*key, "multires"),
        means_BC11=latents_1Chw.float().mean(dim=(2, 3), keepdim=True).cpu(),
    )
    input_noise_1Chw = draw_input_noise(noise_1Chw, settings.loss, generator)
    generator.manual_seed(seed_for(*key, "timestep"))
    return noise_1Chw, input_noise_1Chw, torch.randint(*band, (1,), generator=generator)


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / max(1, len(losses))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Switch dropout off, and back on where it was."""
    were_training = [inner for inner in module.modules() if inner.training]
    module.eval()
    try:
        yield
    finally:
        for inner in were_training:
            inner.training = True

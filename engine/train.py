"""The recipe: one visible loop over windows, the batches of one optimizer step.

Dimension key: B images of a batch, C latent channels, h x w latent size; 2 = losses and timesteps.
"""

import time
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from engine.border import Border
from engine.control import Control
from engine.curves import learning_rate_at
from engine.diffusion import add_noise, draw_for_batch, target_for
from engine.events import Step
from engine.finite import check_finite
from engine.halving import Halver
from engine.hardware import peak_memory_bytes
from engine.loading import LoadedBatch, Window
from engine.losses import loss_per_image
from engine.optim import adapted_rate, set_learning_rates
from engine.parts import Parts
from engine.rng import seed_for
from engine.telling import Teller


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended: `stopped_by` is "" after the last step, else the signal or request that stopped it."""

    step: int
    stopped_by: str


def train(
    parts: Parts, *, tell: Teller, control: Control, first_step: int = 0, resumed_from: int | None = None
) -> Ending:
    """Train from `first_step` (steps done before) to the plan's last step, or until `control` asks to stop.

    With `resumed_from`, what the run's log says of later steps is void.

    Raises:
        EngineError: Loss or gradient is not finite (before the update), a picture can't be read, a model not saved.
    """
    settings, plan, optimizer, updater = parts.settings, parts.plan, parts.optimizer, parts.updater
    ranks = parts.ranks
    border = Border(parts=parts, tell=tell, control=control, resumed_from=resumed_from)
    halver = Halver(tell=tell, can_retry=ranks.world == 1 and not updater.is_fused)
    stopped_by, step, began = border.before(first_step), first_step, time.perf_counter()
    with parts.windows(first_step) as windows:
        while step < plan.steps and not stopped_by:
            window, batches = border.next_window(windows, step), plan.window(step)
            wait_seconds = time.perf_counter() - began
            images = sum(len(batch.rows) for batch in batches)
            counted = max(1, images - sum(batch.left_out for batch in window))
            rate = set_learning_rates(optimizer, learning_rate_at(step, plan.steps, settings.optimizer))
            # Divided by the window's images, not by its batches: buckets leave short batches all the time.
            attempt, begin = partial(_train_window, parts, share=ranks.world / counted), partial(_begin, parts, step)
            if step == first_step + 1 and parts.is_on_card:
                halver.try_largest(plan, parts.source.load_batch, attempt, begin=begin)
            results_2B = ranks.gathered(halver.run(window, attempt, begin=begin), batches)
            # The step's one wait for the device: losses, timesteps and norm come back together.
            *numbers, grad_norm = torch.cat([results_2B.flatten(), updater.clip().to(results_2B).reshape(1)]).tolist()
            losses, timesteps = numbers[:images], [int(number) for number in numbers[images:]]
            check_finite(parts, batches, (losses, timesteps, grad_norm), step=step + 1, rate=rate)
            updater.apply()
            if parts.ema is not None:
                parts.ema.update()
            step += 1
            ended = time.perf_counter()
            tell(
                Step(
                    step=step,
                    loss=sum(losses) / counted,
                    learning_rate=rate,
                    adapted_rate=adapted_rate(optimizer),
                    grad_norm=grad_norm,
                    images=images,
                    seconds=ended - began,
                    wait_seconds=wait_seconds,
                    bucket=batches[0].bucket,
                    peak_memory_bytes=peak_memory_bytes(parts.accelerator.device),
                    epoch=batches[0].epoch,
                    image_losses=tuple(losses),
                    timesteps=tuple(timesteps),
                )
            )
            stopped_by = border.after(step)
            began = time.perf_counter()
    border.end(step, stopped_by)
    return Ending(step=step, stopped_by=stopped_by)


def _begin(parts: Parts, step: int) -> None:
    """Start a step, perhaps anew: no gradients, and what it draws from the global generator, dropout, is its own."""
    parts.optimizer.zero_grad(set_to_none=True)
    torch.manual_seed(seed_for(parts.settings.training.seed, "model", step, *parts.ranks.key))
    parts.updater.begin(step)


def _train_window(parts: Parts, window: Window, *, share: float) -> Tensor:
    """Run this process's batches and return their losses and timesteps, (2, B); gradients are exchanged with the last.

    `share` is each image's part of the loss, times the processes, since the exchange takes the mean of theirs.
    """
    *earlier, last = window
    with parts.accelerator.no_sync(parts.denoiser):
        results = [_train_batch(parts, batch, share=share) for batch in earlier]
    return torch.cat([*results, _train_batch(parts, last, share=0.0 if last.is_spare else share)], dim=1)


def _train_batch(parts: Parts, loaded: LoadedBatch, *, share: float) -> Tensor:
    """Run one batch forward and backward and return its losses and timesteps, (2, B) float32."""
    settings, schedule, batch = parts.settings, parts.schedule, loaded.batch
    latents_BChw = parts.latents_of(loaded)
    seed = settings.training.seed
    draws = draw_for_batch(latents_BChw, batch.positions, seed=seed, epoch=batch.epoch, loss=settings.loss)
    noisy_BChw = add_noise(latents_BChw, draws.input_noise_BCHW, draws.timesteps_B, schedule)
    target_BChw = target_for(latents_BChw, draws.noise_BCHW, draws.timesteps_B, schedule)
    prediction_BChw = parts.denoiser(noisy_BChw, draws.timesteps_B, parts.conditioning_of(loaded))
    masks_B1hw = parts.masks_of(loaded)
    losses_B = loss_per_image(prediction_BChw, target_BChw, draws.timesteps_B, settings.loss, schedule, masks_B1hw)
    if loaded.weights_B is not None:
        losses_B = losses_B * loaded.weights_B.to(losses_B)
    parts.updater.backward(losses_B.sum() * share)
    return torch.stack([losses_B.detach(), draws.timesteps_B.to(losses_B)])

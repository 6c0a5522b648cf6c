"""The forward process of training: schedule, noise, timesteps, targets.

Dimension key: B images, C channels, H x W latent height and width, T = 1000 timesteps of the schedule.
Draws come from generators that are handed in, on the CPU, so that the numbers are the same on every device.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from engine.rng import python_rng, seed_for
from engine.settings import LossSettings

PredictionType = Literal["epsilon", "v_prediction"]
NUM_TIMESTEPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Schedule:
    """Tables of the forward process, each (T,) float32 on one device, and what the model predicts."""

    prediction_type: PredictionType
    betas_T: Tensor
    alphas_cumprod_T: Tensor
    signal_T: Tensor
    """Share of the latents in the noisy latents, sqrt(alphas_cumprod)."""
    sigma_T: Tensor
    """Share of the noise in the noisy latents, sqrt(1 - alphas_cumprod)."""
    snr_T: Tensor


def make_schedule(
    prediction_type: PredictionType, *, rescale_betas_zero_snr: bool = False, device: torch.device | str = "cpu"
) -> Schedule:
    """Return Stable Diffusion's schedule: 1000 betas from 0.00085 to 0.012, linear in their square roots.

    With `rescale_betas_zero_snr` all tables, the SNR included, are those of the rescaled betas; sd-scripts keeps the
    SNR of the old ones, which misweighs the loss by up to a factor of two.
    """
    betas_T = torch.linspace(0.00085**0.5, 0.012**0.5, NUM_TIMESTEPS, dtype=torch.float32) ** 2
    if rescale_betas_zero_snr:
        betas_T = zero_terminal_snr(betas_T)
    alphas_cumprod_T = torch.cumprod(1 - betas_T, dim=0)
    return Schedule(
        prediction_type=prediction_type,
        betas_T=betas_T.to(device),
        alphas_cumprod_T=alphas_cumprod_T.to(device),
        signal_T=alphas_cumprod_T.sqrt().to(device),
        sigma_T=(1 - alphas_cumprod_T).sqrt().to(device),
        snr_T=snr(alphas_cumprod_T).to(device),
    )


def zero_terminal_snr(betas_T: Tensor) -> Tensor:
    """Return betas (T,) whose last timestep is pure noise, SNR exactly 0, and whose first is unchanged.

    Shifts and scales sqrt(alphas_cumprod): Lin et al. 2023, arXiv:2305.08891, Algorithm 1.
    """
    root_T = torch.cumprod(1 - betas_T, dim=0).sqrt()
    first, last = root_T[0], root_T[-1]
    rescaled_T = ((root_T - last) * (first / (first - last))) ** 2
    alphas_T = torch.cat([rescaled_T[:1], rescaled_T[1:] / rescaled_T[:-1]])
    return 1 - alphas_T


def snr(alphas_cumprod: Tensor) -> Tensor:
    """Return the signal-to-noise ratio alphas_cumprod / (1 - alphas_cumprod), same shape, 0 at a zero terminal SNR."""
    return (alphas_cumprod.sqrt() / (1 - alphas_cumprod).sqrt()) ** 2


def add_noise(latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor, schedule: Schedule) -> Tensor:
    """Return the noisy latents (B, C, H, W) at each image's timestep (B,) int64, 0 <= t < 1000.

    Latents are already scaled (x 0.18215); all tensors are on the schedule's device.
    """
    return _at(schedule.signal_T, timesteps_B) * latents_BCHW + _at(schedule.sigma_T, timesteps_B) * noise_BCHW


def velocity(latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor, schedule: Schedule) -> Tensor:
    """Return the v target (B, C, H, W) of Salimans & Ho 2022, arXiv:2202.00512, appendix D."""
    return _at(schedule.signal_T, timesteps_B) * noise_BCHW - _at(schedule.sigma_T, timesteps_B) * latents_BCHW


def target_for(latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor, schedule: Schedule) -> Tensor:
    """Return what the model should predict (B, C, H, W): the noise, or v for a v-prediction model."""
    if schedule.prediction_type == "epsilon":
        return noise_BCHW
    return velocity(latents_BCHW, noise_BCHW, timesteps_B, schedule)


def _at(table_T: Tensor, timesteps_B: Tensor) -> Tensor:
    return table_T[timesteps_B].view(-1, 1, 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draws:
    """What is drawn for a batch, on the device of its latents."""

    noise_BCHW: Tensor
    """The noise of the target."""
    input_noise_BCHW: Tensor
    """The noise that is added to the latents: the same, or perturbed by ip_noise_gamma."""
    timesteps_B: Tensor


def draw_for_batch(
    latents_BCHW: Tensor, positions: Sequence[int], *, seed: int, epoch: int, loss: LossSettings
) -> Draws:
    """Draw noise and timesteps for a batch, each image by its own position in the epoch.

    A draw depends on (seed, epoch, position) alone: not on the batch, the process or what was drawn before. So
    multires noise has a random scale and is normalised for each image, where sd-scripts does both for a whole batch.
    Purposes have keys of their own: noise_offset, say, leaves timesteps as they were.
    """
    means_BC11 = None
    if loss.adaptive_noise_scale is not None:  # Waits for the device, so only when asked for.
        means_BC11 = latents_BCHW.float().mean(dim=(2, 3), keepdim=True).cpu()
    shape = (1, *latents_BCHW.shape[1:])
    noise, input_noise, timesteps = [], [], []
    for row, position in enumerate(positions):
        generator = torch.Generator().manual_seed(seed_for(seed, "noise", epoch, position))
        rng = python_rng(seed, "multires", epoch, position)
        means_1C11 = None if means_BC11 is None else means_BC11[row : row + 1]
        noise.append(draw_noise(shape, loss, generator=generator, rng=rng, means_BC11=means_1C11))
        input_noise.append(draw_input_noise(noise[-1], loss, generator))
        generator.manual_seed(seed_for(seed, "timestep", epoch, position))
        timesteps.append(draw_timesteps(1, loss, generator))
    device = latents_BCHW.device
    noise_BCHW = torch.cat(noise).to(device)
    return Draws(
        noise_BCHW=noise_BCHW,
        input_noise_BCHW=torch.cat(input_noise).to(device) if loss.ip_noise_gamma else noise_BCHW,
        timesteps_B=torch.cat(timesteps).to(device),
    )


def draw_timesteps(count: int, loss: LossSettings, generator: torch.Generator) -> Tensor:
    """Draw timesteps (count,) int64 from [min_timestep, max_timestep); equal bounds give that timestep, undrawn."""
    low = loss.min_timestep or 0
    high = NUM_TIMESTEPS if loss.max_timestep is None else loss.max_timestep
    assert low <= high, "rules refuse min_timestep above max_timestep"
    if low == high:
        return torch.full((count,), low)
    return torch.randint(low, high, (count,), generator=generator)


def draw_noise(
    shape: Sequence[int],
    loss: LossSettings,
    *,
    generator: torch.Generator,
    rng: random.Random,
    means_BC11: Tensor | None = None,
) -> Tensor:
    """Draw the noise of `shape` (B, C, H, W): normal, then noise_offset, then multires noise.

    `means_BC11` are the latents' means of each channel, needed by adaptive_noise_scale; `rng` draws multires scales.
    Draws in sd-scripts' order, so a generator in the state of its global one gives the same noise.
    """
    noise_BCHW = torch.randn(tuple(shape), generator=generator)
    if loss.noise_offset:
        noise_BCHW += _offset(shape, loss, generator, means_BC11)
    if loss.multires_noise_iterations:
        noise_BCHW = _multires(noise_BCHW, loss, generator, rng)
    return noise_BCHW


def draw_input_noise(noise_BCHW: Tensor, loss: LossSettings, generator: torch.Generator) -> Tensor:
    """Return the noise to add to the latents: perturbed by ip_noise_gamma, a plain reference without it.

    Input perturbation of Ning et al. 2023, arXiv:2301.11706: the target keeps the plain noise.
    """
    if not loss.ip_noise_gamma:
        return noise_BCHW
    strength = _strength(loss.ip_noise_gamma, generator, is_random=loss.ip_noise_gamma_random_strength)
    return noise_BCHW + strength * torch.randn(noise_BCHW.shape, generator=generator)


def _strength(limit: float, generator: torch.Generator, *, is_random: bool) -> Tensor | float:
    return torch.rand(1, generator=generator) * limit if is_random else limit


def _offset(shape: Sequence[int], loss: LossSettings, generator: torch.Generator, means_BC11: Tensor | None) -> Tensor:
    """Draw one number for each image and channel (B, C, 1, 1): whole pictures become darker or lighter."""
    assert loss.noise_offset is not None
    strength = _strength(loss.noise_offset, generator, is_random=loss.noise_offset_random_strength)
    if loss.adaptive_noise_scale is not None:
        assert means_BC11 is not None, "adaptive_noise_scale needs the latents' means"
        strength = (strength + loss.adaptive_noise_scale * means_BC11.abs()).clamp(min=0)
    return strength * torch.randn((*shape[:2], 1, 1), generator=generator)


def _multires(noise_BCHW: Tensor, loss: LossSettings, generator: torch.Generator, rng: random.Random) -> Tensor:
    """Add ever coarser layers of noise, down to one pixel, and scale the sum back to unit deviation."""
    height, width = noise_BCHW.shape[2:]
    for level in range(loss.multires_noise_iterations or 0):
        shrink = (rng.random() * 2 + 2) ** level
        size = max(1, int(height / shrink)), max(1, int(width / shrink))
        coarse_BChw = torch.randn((*noise_BCHW.shape[:2], *size), generator=generator)
        layer_BCHW = functional.interpolate(coarse_BChw, size=(height, width), mode="bilinear")
        noise_BCHW = noise_BCHW + layer_BCHW * loss.multires_noise_discount**level
        if 1 in size:
            break
    return noise_BCHW / noise_BCHW.std()

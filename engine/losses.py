"""The loss of each image: a distance to the target, weighed by the timestep.

Dimension key: B images, C channels, H x W latent height and width. Everything is computed in float32.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from engine.diffusion import NUM_TIMESTEPS, Schedule
from engine.errors import EngineError
from engine.setting_types import HuberSchedule, LossName
from engine.settings import LossSettings

_MAX_SNR = 1000.0  # sd-scripts' bound; it is reached below timestep 1 only.


def loss_per_image(
    prediction_BCHW: Tensor,
    target_BCHW: Tensor,
    timesteps_B: Tensor,
    settings: LossSettings,
    schedule: Schedule,
    masks_B1HW: Tensor | None = None,
) -> Tensor:
    """Return the weighted loss of each image, (B,) float32; their mean is the loss of a batch.

    Prediction and target (B, C, H, W) may be of any float type; timesteps (B,) are int64; `schedule` knows the
    prediction type and the SNR. Masks of 0 to 1 multiply the distance of each element before the mean, which is still
    taken over all of them, as in sd-scripts: a picture with a small unmasked part has a small loss.
    """
    threshold_B111 = huber_threshold_at(timesteps_B, settings, schedule).view(-1, 1, 1, 1)
    distance_BCHW = DISTANCES[settings.loss_type](prediction_BCHW.float(), target_BCHW.float(), threshold_B111)
    if masks_B1HW is not None:
        distance_BCHW = distance_BCHW * masks_B1HW
    loss_B = distance_BCHW.mean(dim=(1, 2, 3))
    return loss_B * weight_at(timesteps_B, settings, schedule)


def check_weights(settings: LossSettings, schedule: Schedule) -> None:
    """Refuse weightings that are infinite at a timestep that training may draw.

    Raises:
        EngineError: 1/SNR weightings of a noise-predicting model have no value where the SNR is zero.
    """
    timesteps_T = torch.arange(
        settings.min_timestep or 0, settings.max_timestep or NUM_TIMESTEPS, device=schedule.snr_T.device
    )
    bad = timesteps_T[~weight_at(timesteps_T, settings, schedule).isfinite()]
    if bad.numel():
        raise EngineError(
            f"the loss weight is infinite at timestep {bad[0].item()}, where zero_terminal_snr leaves no signal: "
            "turn off zero_terminal_snr, debiased_estimation_loss or v_pred_like_loss, or set max_timestep = 999"
        )


def l2(prediction: Tensor, target: Tensor, threshold: Tensor) -> Tensor:  # noqa: ARG001 - one shape for all distances
    """Return the squared error of each element."""
    return (prediction - target) ** 2


def l1(prediction: Tensor, target: Tensor, threshold: Tensor) -> Tensor:  # noqa: ARG001
    """Return the absolute error of each element."""
    return (prediction - target).abs()


def huber(prediction: Tensor, target: Tensor, threshold: Tensor) -> Tensor:
    """Return the pseudo-Huber loss, 2c (sqrt(d^2 + c^2) - c): about d^2 below c and 2c |d| above."""
    return threshold * smooth_l1(prediction, target, threshold)


def smooth_l1(prediction: Tensor, target: Tensor, threshold: Tensor) -> Tensor:
    """Return the pseudo-Huber loss over c: about d^2 / c below c and 2 |d| above."""
    return 2 * (torch.sqrt((prediction - target) ** 2 + threshold**2) - threshold)


DISTANCES: dict[LossName, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "l2": l2,
    "l1": l1,
    "huber": huber,
    "smooth_l1": smooth_l1,
}


def huber_threshold_at(timesteps_B: Tensor, settings: LossSettings, schedule: Schedule) -> Tensor:
    """Return where huber and smooth_l1 turn from square to straight, (B,); high noise gets a low threshold."""
    return HUBER_SCHEDULES[settings.huber_schedule](timesteps_B, settings, schedule)


def _constant(timesteps_B: Tensor, settings: LossSettings, schedule: Schedule) -> Tensor:
    value = settings.huber_c * settings.huber_scale
    return torch.full(timesteps_B.shape, value, dtype=torch.float32, device=schedule.snr_T.device)


def _exponential(timesteps_B: Tensor, settings: LossSettings, schedule: Schedule) -> Tensor:
    """Fall from 1 to huber_c; Khrapov et al. 2024, arXiv:2403.16728."""
    decay = -math.log(settings.huber_c) / NUM_TIMESTEPS
    return torch.exp(-decay * timesteps_B.to(schedule.snr_T.device)) * settings.huber_scale


def _snr(timesteps_B: Tensor, settings: LossSettings, schedule: Schedule) -> Tensor:
    """Follow the noise level sigma / signal; huber_scale has no effect, as in sd-scripts."""
    sigma_B = schedule.sigma_T[timesteps_B] / schedule.signal_T[timesteps_B]
    return (1 - settings.huber_c) / (1 + sigma_B) ** 2 + settings.huber_c


HUBER_SCHEDULES: dict[HuberSchedule, Callable[[Tensor, LossSettings, Schedule], Tensor]] = {
    "constant": _constant,
    "exponential": _exponential,
    "snr": _snr,
}


def weight_at(timesteps_B: Tensor, settings: LossSettings, schedule: Schedule) -> Tensor:
    """Return the product of the chosen weightings at each timestep, (B,) float32; 1 where none is chosen."""
    snr_B = schedule.snr_T[timesteps_B]
    weight_B = torch.ones_like(snr_B)
    for name, weighting in WEIGHTINGS.items():
        if getattr(settings, name):
            weight_B = weight_B * weighting(snr_B, settings, is_v=schedule.prediction_type == "v_prediction")
    return weight_B


def min_snr(snr_B: Tensor, settings: LossSettings, *, is_v: bool) -> Tensor:
    """Min-SNR-gamma of Hang et al. 2023 (arXiv:2303.09556); v-prediction divides by SNR + 1."""
    assert settings.min_snr_gamma is not None
    if is_v:
        return snr_B.clamp(max=settings.min_snr_gamma) / (snr_B + 1)
    return (settings.min_snr_gamma / snr_B).clamp(max=1)  # min(SNR, gamma) / SNR, and 1 rather than 0/0 at SNR 0.


def scale_v_pred(snr_B: Tensor, settings: LossSettings, *, is_v: bool) -> Tensor:  # noqa: ARG001
    """Weigh v-prediction as if noise were predicted: SNR / (SNR + 1)."""
    snr_B = snr_B.clamp(max=_MAX_SNR)
    return snr_B / (snr_B + 1)


def v_pred_like(snr_B: Tensor, settings: LossSettings, *, is_v: bool) -> Tensor:
    """Add a share of the loss that v-prediction would have: 1 + k (SNR + 1) / SNR."""
    assert settings.v_pred_like_loss is not None
    return 1 + settings.v_pred_like_loss / scale_v_pred(snr_B, settings, is_v=is_v)


def debiased(snr_B: Tensor, settings: LossSettings, *, is_v: bool) -> Tensor:  # noqa: ARG001
    """Debiased estimation of Yu et al. 2023 (arXiv:2310.08442): 1 / sqrt(SNR), or 1 / (SNR + 1) for v-prediction."""
    snr_B = snr_B.clamp(max=_MAX_SNR)
    return 1 / (snr_B + 1) if is_v else snr_B.rsqrt()


# By the setting that switches it on, in sd-scripts' order.
WEIGHTINGS: dict[str, Callable[..., Tensor]] = {
    "min_snr_gamma": min_snr,
    "scale_v_pred_loss_like_noise_pred": scale_v_pred,
    "v_pred_like_loss": v_pred_like,
    "debiased_estimation_loss": debiased,
}

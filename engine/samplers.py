"""diffusers' samplers under sd-scripts' names, set up for a schedule of ours."""

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
)
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler

from engine.diffusion import NUM_TIMESTEPS, Schedule
from engine.setting_types import SamplerName

_LAST_SIGNAL = 2.0**-24  # alphas_cumprod at a zero terminal SNR, as in diffusers: at 0 sigma would be infinite.


class LmsScheduler(LMSDiscreteScheduler):
    """The linear multistep sampler, with its integrals solved exactly; diffusers' quadrature needs scipy."""

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """Return the integral of a Lagrange basis polynomial over the sigmas of a step.

        Args:
            order: Number of derivatives in use.
            t: Index of the step.
            current_order: Which derivative, 0 = the newest.
        """
        nodes = [float(self.sigmas[t - index]) for index in range(order)]
        own = nodes.pop(current_order)
        basis = np.atleast_1d(np.poly(nodes)) / np.prod([own - node for node in nodes])
        integral = np.polyint(basis)
        return float(np.polyval(integral, float(self.sigmas[t + 1])) - np.polyval(integral, float(self.sigmas[t])))


_DDIM = partial(DDIMScheduler, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
_PNDM = partial(PNDMScheduler, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
# Plain DPM-Solver divides by the noise that is left, so it can't go down to none.
_DPM_SOLVER = partial(DPMSolverMultistepScheduler, algorithm_type="dpmsolver", final_sigmas_type="sigma_min")

SAMPLERS: dict[SamplerName, Callable[..., Any]] = {
    "ddim": _DDIM,
    "pndm": _PNDM,
    "lms": LmsScheduler,
    "k_lms": LmsScheduler,
    "euler": EulerDiscreteScheduler,
    "k_euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "k_euler_a": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "dpm_2": KDPM2DiscreteScheduler,
    "k_dpm_2": KDPM2DiscreteScheduler,
    "dpm_2_a": KDPM2AncestralDiscreteScheduler,
    "k_dpm_2_a": KDPM2AncestralDiscreteScheduler,
    "dpmsolver": _DPM_SOLVER,
    "dpmsolver++": DPMSolverMultistepScheduler,
    "dpmsingle": partial(DPMSolverSinglestepScheduler, lower_order_final=True),
}


def make_sampler(name: SamplerName, schedule: Schedule, steps: int) -> Any:  # noqa: ANN401 - they share no type
    """Return the diffusers scheduler of that name, set to `steps`, for the schedule and prediction type of training.

    With a zero terminal SNR, sampling starts at the last timestep: the model learned to begin from pure noise
    (Lin et al. 2023, arXiv:2305.08891, section 3.3).
    """
    constructor = SAMPLERS[name]
    arguments: dict[str, Any] = {
        "num_train_timesteps": NUM_TIMESTEPS,
        "prediction_type": schedule.prediction_type,
        "trained_betas": _betas(schedule).numpy(),
    }
    # Without the choice a sampler starts there anyway.
    if schedule.snr_T[-1] == 0 and "timestep_spacing" in inspect.signature(constructor).parameters:
        arguments["timestep_spacing"] = "trailing"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Plain DPM-Solver goes away in diffusers 1.0.
        warnings.simplefilter("ignore", DeprecationWarning)  # KDPM2 hands tensors to numpy 2.
        sampler = constructor(**arguments)
        sampler.set_timesteps(steps)
    return sampler


def _betas(schedule: Schedule) -> torch.Tensor:
    betas_T = schedule.betas_T.cpu().clone()
    if schedule.alphas_cumprod_T[-1] == 0:
        betas_T[-1] = 1 - _LAST_SIGNAL / schedule.alphas_cumprod_T[-2].cpu()
    return betas_T

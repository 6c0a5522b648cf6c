"""Every sampler arrives where an exact model leads, for each kind of prediction and schedule."""

from typing import get_args

import numpy as np
import pytest
import torch

from engine.diffusion import make_schedule
from engine.preview import PreviewOptions, _denoise
from engine.prompts import SamplePrompt
from engine.samplers import SAMPLERS, make_sampler
from engine.setting_types import SamplerName

SCHEDULES = {
    "epsilon": make_schedule("epsilon"),
    "v": make_schedule("v_prediction"),
    "v_zero_snr": make_schedule("v_prediction", rescale_betas_zero_snr=True),
}
MEAN, DEVIATION = 0.5, 0.8


class ExactModel(torch.nn.Module):
    """The best prediction for latents that are normal with MEAN and DEVIATION in every element."""

    def __init__(self, schedule):
        super().__init__()
        self._schedule = schedule
        self.timesteps = []

    def forward(self, noisy, timestep, *_, **__):
        self.timesteps.append(float(timestep))
        signal = float(np.interp(float(timestep), range(1000), self._schedule.signal_T.numpy()))
        sigma = (1 - signal**2) ** 0.5
        variance = (signal * DEVIATION) ** 2 + sigma**2
        latents = MEAN + signal * DEVIATION**2 / variance * (noisy - signal * MEAN)
        noise = sigma / variance * (noisy - signal * MEAN)
        return (noise if self._schedule.prediction_type == "epsilon" else signal * noise - sigma * latents,)


def denoised(name, schedule, steps):
    model = ExactModel(schedule)
    options = PreviewOptions(
        folder=None, output_name="x", seed=0, sampler=name, schedule=schedule, device=torch.device("cpu")
    )
    prompt = SamplePrompt(prompt="", width=256, height=256, sample_steps=steps, scale=1)
    latents = _denoise(model, torch.zeros(1, 77, 4), prompt, options, torch.Generator().manual_seed(0))
    return latents, model.timesteps


def test_every_sampler_in_the_settings_can_be_made():
    assert set(get_args(SamplerName)) == set(SAMPLERS)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", get_args(SamplerName))
def test_sampler_reaches_the_distribution_of_the_data(name, schedule):
    latents, _ = denoised(name, schedule, steps=50)

    assert latents.isfinite().all()
    assert latents.mean().item() == pytest.approx(MEAN, abs=0.05)
    assert latents.std().item() == pytest.approx(DEVIATION, abs=0.08)


@pytest.mark.parametrize("name", get_args(SamplerName))
def test_sampling_starts_at_the_last_timestep_with_a_zero_terminal_snr(name):
    assert denoised(name, SCHEDULES["v_zero_snr"], steps=10)[1][0] == 999


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", get_args(SamplerName))
def test_few_steps_are_enough_for_no_failure(name, steps):
    assert denoised(name, SCHEDULES["epsilon"], steps=steps)[0].isfinite().all()


@pytest.mark.parametrize("name", get_args(SamplerName))
def test_sampling_leaves_the_global_generator_alone(name):
    before = torch.get_rng_state()

    denoised(name, SCHEDULES["epsilon"], steps=4)

    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_integrates_the_basis_polynomials(order):
    """Against a fine midpoint rule; together they integrate 1, the length of the step."""
    sampler = make_sampler("lms", SCHEDULES["epsilon"], 10)
    step, sigmas = 5, sampler.sigmas.double().numpy()
    edges = np.linspace(sigmas[step], sigmas[step + 1], 20_001)
    middles, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]

    def basis(own):
        others = [sigmas[step - index] for index in range(order) if index != own]
        return np.prod([(middles - other) / (sigmas[step - own] - other) for other in others], axis=0) * np.ones(20_000)

    expected = [basis(own).sum() * width for own in range(order)]
    actual = [sampler.get_lms_coefficient(order, step, own) for own in range(order)]

    assert expected == pytest.approx(actual, rel=1e-6)
    assert sum(actual) == pytest.approx(sigmas[step + 1] - sigmas[step])

"""Distances, thresholds and weightings against sd-scripts' numbers."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

from engine.diffusion import make_schedule
from engine.errors import EngineError
from engine.losses import (
    DISTANCES,
    HUBER_SCHEDULES,
    WEIGHTINGS,
    check_weights,
    huber_threshold_at,
    loss_per_image,
    weight_at,
)
from engine.setting_types import HuberSchedule, LossName
from engine.settings import LossSettings

GOLDEN = Path(__file__).parents[1] / "golden"
ALL = torch.arange(1000)
EPS = make_schedule("epsilon")
V = make_schedule("v_prediction")


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "loss_functions.safetensors")


def assert_close(expected, actual, atol=0.0):
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=atol)


@pytest.mark.parametrize("gamma", [1, 5, 20])
@pytest.mark.parametrize(("short", "schedule"), [("eps", EPS), ("v", V)])
def test_min_snr_weight_equals_the_golden_vector(golden, gamma, short, schedule):
    weight = weight_at(ALL, LossSettings(min_snr_gamma=gamma), schedule)

    assert_close(golden[f"min_snr_weight/gamma{gamma}/{short}"], weight)


@pytest.mark.parametrize(("short", "schedule"), [("eps", EPS), ("v", V)])
def test_debiased_weight_equals_the_golden_vector(golden, short, schedule):
    assert_close(golden[f"debiased/{short}"], weight_at(ALL, LossSettings(debiased_estimation_loss=True), schedule))


def test_scale_v_pred_weight_equals_the_golden_vector(golden):
    weight = weight_at(ALL, LossSettings(scale_v_pred_loss_like_noise_pred=True), V)

    assert_close(golden["scale_v_pred_loss_like_noise_pred"], weight)


def test_v_pred_like_weight_equals_the_golden_vector(golden):
    assert_close(golden["v_pred_like_loss/0.5"], weight_at(ALL, LossSettings(v_pred_like_loss=0.5), EPS))


def test_weightings_multiply():
    both = weight_at(ALL, LossSettings(min_snr_gamma=5, debiased_estimation_loss=True), V)

    alone = [
        weight_at(ALL, LossSettings(**one), V) for one in ({"min_snr_gamma": 5}, {"debiased_estimation_loss": True})
    ]

    assert_close(alone[0] * alone[1], both)


def test_no_weighting_weighs_one():
    assert torch.equal(torch.ones(1000), weight_at(ALL, LossSettings(), EPS))


@pytest.mark.parametrize("schedule_name", get_args(HuberSchedule))
@pytest.mark.parametrize(("c", "scale"), [(0.1, 1.0), (0.01, 1.0), (0.1, 2.5)])
def test_huber_threshold_equals_the_golden_vector(golden, schedule_name, c, scale):
    settings = LossSettings(huber_schedule=schedule_name, huber_c=c, huber_scale=scale)

    expected = golden[f"huber_threshold_same_for_both/{schedule_name}/c{c}/scale{scale}"]

    assert_close(expected, huber_threshold_at(ALL, settings, EPS))


@pytest.mark.parametrize("loss_type", get_args(LossName))
def test_distance_equals_the_golden_tensors(golden, loss_type):
    threshold = golden["loss/huber_c"].view(-1, 1, 1, 1)

    elements = DISTANCES[loss_type](golden["loss/pred"], golden["loss/target"], threshold)

    # sqrt(d^2 + c^2) - c cancels where d is small, so the last bit of a CPU's sqrt shows: two units of c <= 0.9.
    assert_close(golden[f"loss/{loss_type}/none"], elements, atol=2 * 0.9 * torch.finfo(torch.float32).eps)
    assert_close(golden[f"loss/{loss_type}/mean"], elements.mean())
    assert_close(golden[f"loss/{loss_type}/sum"], elements.sum())


def test_loss_of_an_image_is_its_mean_distance_times_its_weight(golden):
    prediction, target, timesteps = golden["loss/pred"], golden["loss/target"], torch.tensor([0, 500, 999])

    loss = loss_per_image(prediction, target, timesteps, LossSettings(min_snr_gamma=5), V)

    expected = ((prediction - target) ** 2).mean(dim=(1, 2, 3)) * golden["min_snr_weight/gamma5/v"][timesteps]
    assert_close(expected, loss)


def test_loss_is_float32_for_half_precision_predictions():
    prediction, target = torch.full((2, 4, 8, 8), 300.0).half(), torch.zeros(2, 4, 8, 8).half()

    loss = loss_per_image(prediction, target, torch.tensor([1, 2]), LossSettings(), EPS)

    assert torch.float32 == loss.dtype
    assert loss.tolist() == [90_000.0, 90_000.0]


def test_every_choice_in_the_settings_has_its_function():
    assert set(get_args(LossName)) == set(DISTANCES)
    assert set(get_args(HuberSchedule)) == set(HUBER_SCHEDULES)
    assert set(WEIGHTINGS) <= set(LossSettings.model_fields)


@pytest.mark.parametrize("setting", [{}, {"min_snr_gamma": 5}, {"loss_type": "huber"}])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_losses_stay_finite_at_a_zero_terminal_snr(setting, prediction_type):
    schedule = make_schedule(prediction_type, rescale_betas_zero_snr=True)
    prediction = torch.zeros(1, 4, 8, 8, requires_grad=True)

    loss = loss_per_image(prediction, torch.ones(1, 4, 8, 8), torch.tensor([999]), LossSettings(**setting), schedule)
    loss.sum().backward()

    assert loss.isfinite().all()
    assert prediction.grad.isfinite().all()
    check_weights(LossSettings(**setting), schedule)


@pytest.mark.parametrize("setting", [{"debiased_estimation_loss": True}, {"v_pred_like_loss": 0.5}])
def test_weights_that_are_infinite_at_a_zero_snr_are_refused(setting):
    schedule = make_schedule("epsilon", rescale_betas_zero_snr=True)

    with pytest.raises(EngineError, match=r"infinite at timestep 999.*max_timestep = 999"):
        check_weights(LossSettings(**setting), schedule)
    check_weights(LossSettings(**setting, max_timestep=999), schedule)


def test_weights_follow_the_schedules_snr_table():
    """A table of one's own is how sd-scripts' weights before the rescale can be replayed."""
    schedule = make_schedule("v_prediction", rescale_betas_zero_snr=True)
    settings = LossSettings(scale_v_pred_loss_like_noise_pred=True)

    replaced = weight_at(ALL, settings, replace(schedule, snr_T=EPS.snr_T))

    assert torch.equal(weight_at(ALL, settings, V), replaced)
    assert not torch.allclose(replaced, weight_at(ALL, settings, schedule))

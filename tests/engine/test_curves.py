"""Learning-rate curves against transformers' schedulers, step by step."""

import subprocess
import sys
from typing import get_args

import pytest
import torch
from transformers import get_scheduler

from engine.curves import CURVES, learning_rate_at, multiplier_at, warmup_steps
from engine.errors import EngineError
from engine.setting_types import CurveName
from engine.settings import OptimizerSettings

NUM_STEPS = 57


def rates_of_transformers(settings, num_steps):
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 3e-5}]
    optimizer = torch.optim.SGD(groups, lr=settings.learning_rate)
    specific = {
        "cosine_with_restarts": {"num_cycles": settings.lr_scheduler_num_cycles},
        "polynomial": {"power": settings.lr_scheduler_power},
    }
    scheduler = get_scheduler(
        settings.lr_scheduler,
        optimizer,
        num_warmup_steps=warmup_steps(settings, num_steps),
        num_training_steps=num_steps,
        scheduler_specific_kwargs=specific.get(settings.lr_scheduler, {}),
    )
    for _ in range(num_steps):
        yield scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("warmup", [0, 10, 0.2])
@pytest.mark.parametrize(("cycles", "power"), [(1, 1.0), (3, 2.0), (2, 0.5)])
@pytest.mark.parametrize("name", get_args(CurveName))
def test_rates_equal_transformers_at_every_step(name, cycles, power, warmup):
    settings = OptimizerSettings(
        learning_rate=2e-4,
        lr_scheduler=name,
        lr_warmup_steps=0 if name == "constant" else warmup,
        lr_scheduler_num_cycles=cycles,
        lr_scheduler_power=power,
    )
    expected = list(rates_of_transformers(settings, NUM_STEPS))

    unet = [learning_rate_at(step, NUM_STEPS, settings) for step in range(NUM_STEPS)]
    text_encoder = [3e-5 * multiplier_at(step, NUM_STEPS, settings) for step in range(NUM_STEPS)]

    assert [rates[0] for rates in expected] == pytest.approx(unet, rel=1e-12, abs=1e-19)
    assert [rates[1] for rates in expected] == pytest.approx(text_encoder, rel=1e-12, abs=1e-19)


def test_every_curve_in_the_settings_has_its_function():
    assert set(get_args(CurveName)) == set(CURVES)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (10, 10), (10.0, 10), (0.05, 5), (1, 1), (1.0, 1)])
def test_warmup_is_steps_or_below_one_a_share(value, expected):
    assert expected == warmup_steps(OptimizerSettings(lr_warmup_steps=value), 100)


def test_constant_with_a_warmup_is_refused():
    with pytest.raises(EngineError, match=r"lr_warmup_steps = 10 .* choose constant_with_warmup"):
        multiplier_at(0, NUM_STEPS, OptimizerSettings(lr_warmup_steps=10))


def test_polynomial_from_below_its_end_is_refused():
    with pytest.raises(EngineError, match=r"learning_rate = 1e-08 .* polynomial"):
        learning_rate_at(0, NUM_STEPS, OptimizerSettings(lr_scheduler="polynomial", learning_rate=1e-8))


@pytest.mark.parametrize("name", [name for name in get_args(CurveName) if name != "constant"])
def test_a_warmup_longer_than_the_run_is_cut_with_it(name):
    settings = OptimizerSettings(lr_scheduler=name, lr_warmup_steps=100)

    assert pytest.approx([multiplier_at(step, 3, settings) for step in range(3)]) == [0.0, 0.01, 0.02]
    assert 0 <= multiplier_at(100, 100, settings) <= 1


def test_curves_load_without_torch():
    code = "import sys, engine.curves; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Learning-rate curves against transformers' schedulers, step by step."""

import subprocess
import sys
from typing import get_args

import pytest
import torch
from diffusers.optimization import get_piecewise_constant_schedule
from transformers import get_scheduler

from engine.arguments import parse_arguments
from engine.curves import CURVES, decay_steps, learning_rate_at, multiplier_at, warmup_steps
from engine.errors import EngineError
from engine.setting_types import CurveName
from engine.settings import OptimizerSettings

NUM_STEPS = 57


RULES = "1:10,0.1:20,0.01:30,0.005"


def scheduler_of_transformers(settings, num_steps, optimizer):
    """Return what sd-scripts would make: it halves the cycles of the two cosines that end above zero."""
    warmup = warmup_steps(settings, num_steps)
    if settings.lr_scheduler == "piecewise_constant":
        return get_piecewise_constant_schedule(optimizer, RULES)
    floor = settings.lr_scheduler_min_lr_ratio
    waves = settings.lr_scheduler_num_cycles / 2
    specific = {
        "cosine_with_restarts": {"num_cycles": settings.lr_scheduler_num_cycles},
        "polynomial": {"power": settings.lr_scheduler_power},
        "inverse_sqrt": {"timescale": settings.lr_scheduler_timescale},
        "cosine_with_min_lr": {"num_cycles": waves, "min_lr_rate": floor},
        "warmup_stable_decay": {
            "num_cycles": waves,
            "min_lr_ratio": floor,
            "num_decay_steps": decay_steps(settings, num_steps),
        },
    }
    return get_scheduler(
        settings.lr_scheduler,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=num_steps,
        scheduler_specific_kwargs=specific.get(settings.lr_scheduler, {}),
    )


def rates_of_transformers(settings, num_steps):
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 3e-5}]
    optimizer = torch.optim.SGD(groups, lr=settings.learning_rate)
    scheduler = scheduler_of_transformers(settings, num_steps, optimizer)
    for _ in range(num_steps):
        yield scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("warmup", [0, 10, 0.2])
@pytest.mark.parametrize(("cycles", "power"), [(1, 1.0), (3, 2.0), (2, 0.5)])
@pytest.mark.parametrize("name", [name for name in get_args(CurveName) if name != "adafactor"])
def test_rates_equal_transformers_at_every_step(name, cycles, power, warmup):
    settings = OptimizerSettings(
        learning_rate=2e-4,
        lr_scheduler=name,
        lr_warmup_steps=0 if name == "constant" else warmup,
        lr_scheduler_num_cycles=cycles,
        lr_scheduler_power=power,
        lr_scheduler_timescale=None if cycles == 1 else 7 * cycles,
        lr_scheduler_min_lr_ratio=power / 10,
        lr_decay_steps=9 * cycles,
        lr_scheduler_args=(f"step_rules={RULES!r}",),
    )
    expected = list(rates_of_transformers(settings, NUM_STEPS))

    unet = [learning_rate_at(step, NUM_STEPS, settings) for step in range(NUM_STEPS)]
    text_encoder = [3e-5 * multiplier_at(step, NUM_STEPS, settings) for step in range(NUM_STEPS)]

    assert [rates[0] for rates in expected] == pytest.approx(unet, rel=1e-12, abs=1e-19)
    assert [rates[1] for rates in expected] == pytest.approx(text_encoder, rel=1e-12, abs=1e-19)


def test_every_curve_in_the_settings_has_its_function():
    assert set(get_args(CurveName)) == set(CURVES)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (10, 10), (10.0, 10), (0.05, 5), (1, 1), (1.0, 100)])
def test_warmup_is_steps_or_below_one_a_share(value, expected):
    assert expected == warmup_steps(OptimizerSettings(lr_warmup_steps=value), 100)


def test_constant_with_a_warmup_is_refused():
    with pytest.raises(EngineError, match=r"lr_warmup_steps = 10 .* choose constant_with_warmup"):
        multiplier_at(0, NUM_STEPS, OptimizerSettings(lr_warmup_steps=10))


def test_polynomial_from_below_its_end_is_refused():
    with pytest.raises(EngineError, match=r"learning_rate = 1e-08 .* polynomial"):
        learning_rate_at(0, NUM_STEPS, OptimizerSettings(lr_scheduler="polynomial", learning_rate=1e-8))


@pytest.mark.parametrize("name", ["constant_with_warmup", "linear", "cosine", "inverse_sqrt", "warmup_stable_decay"])
def test_a_warmup_longer_than_the_run_is_cut_with_it(name):
    settings = OptimizerSettings(lr_scheduler=name, lr_warmup_steps=100)

    assert pytest.approx([multiplier_at(step, 3, settings) for step in range(3)]) == [0.0, 0.01, 0.02]
    assert 0 <= multiplier_at(100, 100, settings) <= 1


def test_adafactor_stands_for_its_own_steps():
    """sd-scripts' "adafactor:1e-4" shows that rate until the first step and changes nothing."""
    assert {multiplier_at(step, 9, OptimizerSettings(lr_scheduler="adafactor:1e-4")) for step in range(9)} == {1.0}


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("StepLR", ("step_size=5", "gamma=0.5")),
        ("torch.optim.lr_scheduler.CosineAnnealingWarmRestarts", ("T_0=7",)),
        ("OneCycleLR", ("max_lr=1e-3", "total_steps=57", "cycle_momentum=False")),
    ],
)
def test_a_class_of_torch_gives_its_own_rates(name, pairs):
    """In any order of asking, as a plot or a resumed run would."""
    settings = OptimizerSettings(learning_rate=2e-4, lr_scheduler_type=name, lr_scheduler_args=pairs)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    scheduler = getattr(torch.optim.lr_scheduler, name.rpartition(".")[2])(optimizer, **parse_arguments(pairs))
    expected = []
    for _ in range(NUM_STEPS - 1):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()

    late = learning_rate_at(40, NUM_STEPS, settings)
    rates = [learning_rate_at(step, NUM_STEPS, settings) for step in range(NUM_STEPS - 1)]

    assert rates == pytest.approx(expected, rel=1e-12)
    assert late == rates[40]


@pytest.mark.parametrize(
    ("name", "pairs", "message"),
    [
        ("StepLRR", (), "has no such class; did you mean 'StepLR'"),
        ("nowhere.Curve", (), "the module nowhere can't be imported"),
        ("StepLR", (), "can't be used with lr_scheduler_args"),
        ("ReduceLROnPlateau", (), "can't be used with lr_scheduler_args"),
        ("StepLR", ("step_size",), "lr_scheduler_args: 'step_size' is not of the form name=value"),
    ],
)
def test_a_class_that_does_not_fit_is_refused(name, pairs, message):
    with pytest.raises(EngineError, match=message):
        multiplier_at(0, 9, OptimizerSettings(lr_scheduler_type=name, lr_scheduler_args=pairs))


def test_step_rules_that_can_not_be_read_are_refused():
    settings = OptimizerSettings(lr_scheduler="piecewise_constant", lr_scheduler_args=("step_rules='1:x,2'",))

    with pytest.raises(EngineError, match="write factors with the step"):
        multiplier_at(0, 9, settings)


def test_curves_load_without_torch():
    code = "import sys, engine.curves; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

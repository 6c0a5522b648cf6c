"""Optimizers as sd-scripts sets them up, each taking real steps."""

import sys
from typing import get_args

import pytest
import torch
from torch import nn

from engine.errors import EngineError
from engine.optim import OPTIMIZERS, build_optimizer, parse_arguments, set_learning_rates
from engine.setting_types import OptimizerName
from engine.settings import OptimizerSettings


@pytest.fixture
def parts():
    """A UNet and a text encoder in miniature, large enough that 8-bit states are used."""
    torch.manual_seed(0)
    return [("unet", nn.Linear(128, 64)), ("text_encoder", nn.Linear(64, 64))]


def loss_of(parts):
    inputs = torch.linspace(-1, 1, 8 * 128).view(8, 128)
    return (parts[1][1](parts[0][1](inputs)) - 1).square().mean()


def train(parts, optimizer, steps=20):
    losses = []
    for _ in range(steps):
        loss = loss_of(parts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


RATES = {"AdamW": 1e-3, "AdamW8bit": 1e-3, "Lion": 1e-3, "SGDNesterov": 1e-1, "AdaFactor": 1e-3}


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizer_learns_on_the_cpu(name, parts):
    optimizer = build_optimizer(parts, OptimizerSettings(optimizer_type=name, learning_rate=RATES[name]))

    losses = train(parts, optimizer)

    assert losses[-1] < 0.9 * losses[0]


def test_every_optimizer_in_the_settings_has_its_factory():
    assert set(get_args(OptimizerName)) == set(OPTIMIZERS)


def test_adamw_8bit_keeps_its_states_in_8_bits(parts):
    optimizer = build_optimizer(parts, OptimizerSettings(optimizer_type="AdamW8bit", learning_rate=1e-3))

    train(parts, optimizer, steps=1)

    state = optimizer.state[parts[0][1].weight]
    assert torch.uint8 == state["state1"].dtype
    assert torch.uint8 == state["state2"].dtype


def test_adamw_8bit_stays_close_to_adamw(parts):
    other = [(name, nn.Linear(module.in_features, 64)) for name, module in parts]
    for (_, source), (_, target) in zip(parts, other, strict=True):
        target.load_state_dict(source.state_dict())

    exact = train(parts, build_optimizer(parts, OptimizerSettings(learning_rate=1e-3)))
    packed = train(other, build_optimizer(other, OptimizerSettings(optimizer_type="AdamW8bit", learning_rate=1e-3)))

    assert exact == pytest.approx(packed, rel=0.02)


def test_adamw_is_fused_and_decays_weights_by_a_hundredth(parts):
    optimizer = build_optimizer(parts, OptimizerSettings())

    assert optimizer.defaults["fused"] is True
    assert optimizer.defaults["weight_decay"] == 0.01
    assert optimizer.defaults["betas"] == (0.9, 0.999)


def test_adamw_can_be_told_not_to_fuse(parts):
    optimizer = build_optimizer(parts, OptimizerSettings(optimizer_args=("fused=False",)))

    assert optimizer.defaults["fused"] is False


def test_sgd_is_nesterov_with_its_momentum(parts):
    defaults = build_optimizer(parts, OptimizerSettings(optimizer_type="SGDNesterov")).defaults

    assert (defaults["momentum"], defaults["nesterov"]) == (0.9, True)


@pytest.mark.parametrize(("rate_te", "expected"), [(None, 1e-4), (5e-5, 5e-5), (0.0, 0.0)])
def test_the_text_encoder_has_its_own_rate(parts, rate_te, expected):
    optimizer = build_optimizer(parts, OptimizerSettings(learning_rate=1e-4, learning_rate_te=rate_te))

    assert [group["name"] for group in optimizer.param_groups] == ["unet", "text_encoder"]
    assert [1e-4, expected] == [group["lr"] for group in optimizer.param_groups]


def test_setting_a_rate_keeps_the_parts_in_proportion(parts):
    optimizer = build_optimizer(parts, OptimizerSettings(learning_rate=1e-4, learning_rate_te=5e-5))

    returned = set_learning_rates(optimizer, 2e-5)

    assert returned == 2e-5
    assert pytest.approx([group["lr"] for group in optimizer.param_groups]) == [2e-5, 1e-5]


def test_frozen_parameters_are_left_out(parts):
    parts[0][1].bias.requires_grad_(requires_grad=False)

    optimizer = build_optimizer(parts, OptimizerSettings())

    assert len(optimizer.param_groups[0]["params"]) == 1


def test_adafactor_takes_relative_steps_unless_told(parts):
    optimizer = build_optimizer(parts, OptimizerSettings(optimizer_type="AdaFactor", learning_rate=1e-3))

    assert optimizer.param_groups[0]["relative_step"] is True
    assert set_learning_rates(optimizer, 5.0) == 1e-2
    assert [group["lr"] for group in optimizer.param_groups] == [None, None]


def test_adafactor_reports_the_step_it_takes(parts):
    settings = OptimizerSettings(optimizer_type="AdaFactor", optimizer_args=("warmup_init=True",))
    optimizer = build_optimizer(parts, settings)
    reported = []

    for _ in range(3):
        reported.append(set_learning_rates(optimizer, 5.0))
        train(parts, optimizer, steps=1)

    assert pytest.approx(reported) == [1e-6, 2e-6, 3e-6]


def test_adafactor_without_relative_steps_follows_the_rate(parts):
    settings = OptimizerSettings(
        optimizer_type="AdaFactor",
        learning_rate=1e-3,
        optimizer_args=("relative_step=False", "scale_parameter=False"),
    )
    optimizer = build_optimizer(parts, settings)

    assert set_learning_rates(optimizer, 5e-4) == 5e-4
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4, 5e-4]
    losses = train(parts, optimizer)
    assert losses[-1] < losses[0]


def test_arguments_are_python_literals():
    pairs = ("weight_decay=0.1", "betas=(0.9, 0.95)", "amsgrad = True", "momentum=None")

    assert parse_arguments(pairs) == {"weight_decay": 0.1, "betas": (0.9, 0.95), "amsgrad": True, "momentum": None}


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (("weight_decay",), "not of the form name=value"),
        (("=3",), "not of the form name=value"),
        (("weight_decay=abc",), "can't be read"),
        (("betas=(0.9",), "can't be read"),
        (("eps=1", "eps=2"), "eps is given twice"),
        (("weight_decai=1",), "has no argument weight_decai; did you mean 'weight_decay'"),
        (("lr=1e-3",), "lr is set by learning_rate"),
        (("betas=0.9",), "AdamW refuses betas=0.9"),
        (("betas=(1.5, 0.9)",), "Invalid beta parameter"),
        (("weight_decay='x'",), "AdamW refuses"),
        (("eps=__import__('os')",), "can't be read"),
    ],
)
def test_wrong_arguments_are_refused_by_name(parts, pairs, message):
    with pytest.raises(EngineError, match=message):
        build_optimizer(parts, OptimizerSettings(optimizer_args=pairs))


@pytest.mark.parametrize(("name", "module"), [("Lion", "lion_pytorch"), ("AdamW8bit", "bitsandbytes.optim.adamw")])
def test_a_missing_package_is_named(parts, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(EngineError, match=f"optimizer_type = {name}"):
        build_optimizer(parts, OptimizerSettings(optimizer_type=name))

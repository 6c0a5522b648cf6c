"""Optimizers as sd-scripts sets them up, each taking real steps."""

import sys
from typing import get_args

import pytest
import torch
from torch import nn

from engine.errors import EngineError
from engine.optim import OPTIMIZERS, adapted_rate, averaged, build_optimizer, parse_arguments, set_learning_rates
from engine.rounding import RoundedUpdates
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


RATES = {
    "SGDNesterov": 1e-1,
    "SGDNesterov8bit": 1e-1,
    "SGD": 1.0,
    "ASGD": 1.0,
    "SGDScheduleFree": 1.0,
    "Adadelta": 10.0,
}
FINDING = [name for name in get_args(OptimizerName) if name == "Prodigy" or name.startswith("DAdapt")]


def rate_for(name):
    return 1.0 if name in FINDING else RATES.get(name, 1e-2 if "ScheduleFree" in name else 1e-3)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizer_learns_on_the_cpu(name, parts):
    optimizer = build_optimizer(parts, OptimizerSettings(optimizer_type=name, learning_rate=rate_for(name)))

    losses = train(parts, optimizer, steps=40)

    # Those that look for a rate overshoot at first on a problem as small as this.
    assert min(losses) < (0.9995 if name in FINDING else 0.95) * losses[0]


@pytest.mark.parametrize("name", FINDING)
def test_optimizers_that_find_a_rate_tell_it(name, parts):
    """d x lr, which grows from next to nothing."""
    optimizer = build_optimizer(parts, OptimizerSettings(optimizer_type=name, learning_rate=1.0))
    before = adapted_rate(optimizer)

    train(parts, optimizer)

    assert 0 < before <= 1e-5
    assert adapted_rate(optimizer) == pytest.approx(float(optimizer.param_groups[0]["d"]))
    assert adapted_rate(optimizer) > before
    assert adapted_rate(build_optimizer(parts, OptimizerSettings())) is None


@pytest.mark.parametrize(
    ("name", "constructor"),
    [
        ("Muon", "refused"),
        ("torch.optim.Adam", torch.optim.Adam),
        ("bitsandbytes.optim.AdEMAMix8bit", "AdEMAMix8bit"),
        ("torch.optim.LBFGS", "computes the loss anew"),
        ("torch.nn.Linear", "is no torch optimizer"),
        ("torch.optim.Adan", "has no such class; did you mean 'Adam'"),
        ("nowhere.Adam", "the module nowhere can't be imported"),
    ],
)
def test_any_class_may_be_named(parts, name, constructor):
    """By its dotted name; what is none is refused by name."""
    if name == "Muon":
        with pytest.raises(ValueError, match="optimizer_type"):
            OptimizerSettings(optimizer_type=name)
        return
    settings = OptimizerSettings(optimizer_type=name, learning_rate=1e-3)
    if isinstance(constructor, str) and " " in constructor:
        with pytest.raises(EngineError, match=constructor):
            build_optimizer(parts, settings)
        return

    optimizer = build_optimizer(parts, settings)

    assert type(optimizer) is constructor or type(optimizer).__name__ == constructor
    assert min(train(parts, optimizer)) < loss_of(parts).item() * 10


def test_schedule_free_weights_of_16_bits_have_an_average_too():
    """Their state is float32, so that eval() alone would refuse to mix the two."""
    module = nn.Linear(128, 64).to(torch.bfloat16)
    optimizer = build_optimizer([("unet", module)], OptimizerSettings(optimizer_type="AdamWScheduleFree"))
    RoundedUpdates(optimizer, seed=0)
    module.weight.grad = torch.ones_like(module.weight)
    optimizer.step()
    before = module.weight.detach().clone()

    with averaged(optimizer):
        assert module.weight.dtype == torch.bfloat16
        assert not optimizer.param_groups[0]["train_mode"]

    assert torch.equal(before, module.weight)


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree"])
def test_schedule_free_weights_are_the_average_inside_the_block_only(name, parts):
    """Inside they are what the optimizer's own eval() gives; after it bit for bit what they were."""
    weight = parts[0][1].weight
    optimizer = build_optimizer(parts, OptimizerSettings(optimizer_type=name, learning_rate=rate_for(name)))
    train(parts, optimizer)
    trained, z = weight.detach().clone(), optimizer.state[weight]["z"].clone()
    beta = optimizer.param_groups[0].get("betas", (optimizer.param_groups[0].get("momentum"),))[0]

    with averaged(optimizer):
        inside = weight.detach().clone()

    # y = (1 - beta) z + beta x, so x = (y - (1 - beta) z) / beta.
    assert torch.allclose((trained - (1 - beta) * z) / beta, inside, atol=1e-5)
    assert not torch.equal(trained, inside)
    assert torch.equal(trained, weight)
    assert optimizer.param_groups[0]["train_mode"]


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


@pytest.mark.parametrize(
    ("name", "module"), [("Lion", "lion_pytorch"), ("AdamW8bit", "bitsandbytes.optim"), ("Prodigy", "prodigyopt")]
)
def test_a_missing_package_is_named(parts, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(EngineError, match=f"optimizer_type = {name}"):
        build_optimizer(parts, OptimizerSettings(optimizer_type=name))

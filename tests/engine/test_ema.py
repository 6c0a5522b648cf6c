"""The running average of weights, against diffusers' own."""

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from engine.ema import Ema, decay_at
from engine.errors import EngineError


def jitter(module, step):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.9999])
def test_averages_equal_diffusers_after_every_update(module, decay):
    theirs, ours = EMAModel(module.parameters(), decay=decay), Ema([("unet", module)], decay)

    for step in range(30):
        jitter(module, step)
        theirs.step(module.parameters())
        ours.update()

        torch.testing.assert_close(list(ours.state_dict().values()), theirs.shadow_params)
        assert theirs.cur_decay_value == decay_at(step + 1, decay)


def test_swapping_in_shows_the_average_and_then_the_weights_again(module):
    ema = Ema([("unet", module)], 0.9)
    for step in range(3):
        jitter(module, step)
        ema.update()
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    averages = {name: value.clone() for name, value in ema.state_dict().items()}

    with ema.swapped_in():
        inside = {f"unet.{name}": value.clone() for name, value in module.state_dict().items()}

    torch.testing.assert_close(inside, averages, rtol=0, atol=0)
    torch.testing.assert_close(dict(module.state_dict()), weights, rtol=0, atol=0)
    torch.testing.assert_close(ema.state_dict(), averages, rtol=0, atol=0)


def test_weights_come_back_when_sampling_fails(module):
    ema = Ema([("unet", module)], 0.9)
    jitter(module, 1)
    weight = module[0].weight.detach().clone()

    with pytest.raises(KeyError), ema.swapped_in():
        raise KeyError

    assert torch.equal(weight, module[0].weight)


def test_training_goes_on_after_a_swap(module):
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    ema = Ema([("unet", module)], 0.9)
    before = module[0].weight.detach().clone()

    with ema.swapped_in():
        pass
    module(torch.ones(1, 4)).sum().backward()
    optimizer.step()

    assert not torch.equal(before, module[0].weight)
    assert torch.equal(before, ema.state_dict()["unet.0.weight"])


def test_state_continues_where_it_was(module):
    ema = Ema([("unet", module)], 0.99)
    for step in range(5):
        jitter(module, step)
        ema.update()
    other = Ema([("unet", module)], 0.99)

    other.load_state_dict({name: value.clone() for name, value in ema.state_dict().items()}, ema.num_updates)
    jitter(module, 9)
    ema.update()
    other.update()

    torch.testing.assert_close(other.state_dict(), ema.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda s: s.pop("unet.0.bias"), "bias is missing"), (lambda s: s.update({"unet.0.bias": torch.zeros(9)}), "9")],
)
def test_state_of_another_model_is_refused(module, change, message):
    ema = Ema([("unet", module)], 0.99)
    state = ema.state_dict()
    change(state)

    with pytest.raises(EngineError, match=message):
        ema.load_state_dict(state, 1)


def test_frozen_parameters_have_no_average(module):
    module[0].requires_grad_(requires_grad=False)

    assert {"unet.1.weight", "unet.1.bias"} == set(Ema([("unet", module)], 0.9).state_dict())

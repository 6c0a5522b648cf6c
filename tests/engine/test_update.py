"""Updates of 16-bit weights and updates inside the backward pass, in numbers and in whole runs."""

import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from engine.errors import EngineError
from engine.optim import build_optimizer
from engine.rounding import RoundedUpdates, round_at_random
from engine.settings import OptimizerSettings, Settings
from engine.update import allow_half_gradients, make_updater

from .run_support import UNET, base_run, go, same


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_goes_to_a_neighbour_and_keeps_the_mean(dtype):
    """Also for negative numbers, and for those so small that the format spaces them evenly."""
    for value in (1 / 3, -1 / 3, 1e-5, 1.2345e-6, 1000.7):
        values = torch.full((20_000,), value)

        rounded = round_at_random(values, dtype, generator()).float()

        low, high = rounded.unique().tolist()
        step = high - low
        assert low < value < high
        assert torch.nextafter(torch.tensor(low, dtype=dtype), torch.tensor(math.inf, dtype=dtype)).item() == high
        # Four standard deviations of the mean of so many draws.
        assert abs(rounded.double().mean().item() - torch.tensor(value).item()) < 4 * 0.5 * step / 20_000**0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_the_format_holds_stays(dtype):
    exact = torch.cat([torch.randn(1000, generator=generator()).to(dtype), torch.zeros(1, dtype=dtype)])

    assert torch.equal(exact, round_at_random(exact.float(), dtype, generator(1)))


def descend(dtype, *, rounded, steps=400):
    """Take SGD steps of 1e-4 from 1.0, where bf16 numbers lie 0.004 to 0.008 apart."""
    weights = nn.Parameter(torch.ones(4096, dtype=dtype))
    optimizer = torch.optim.SGD([weights], lr=1e-4)
    updates = RoundedUpdates(optimizer, seed=0) if rounded else None
    for step in range(steps):
        if updates:
            updates.finished_steps = step
        weights.grad = torch.ones_like(weights)
        optimizer.step()
    return weights.detach().float()


def test_small_updates_are_lost_without_random_rounding_only():
    """400 steps of 1e-4 are 0.04; rounding to the nearest makes nothing of them."""
    assert descend(torch.bfloat16, rounded=False).mean().item() == 1.0
    weights = descend(torch.bfloat16, rounded=True)
    assert weights.mean().item() == pytest.approx(0.96, abs=5e-4)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, descend(torch.bfloat16, rounded=True))


@pytest.mark.parametrize("name", ["AdamW", "AdamW8bit", "Lion", "SGDNesterov", "AdaFactor"])
def test_rounded_updates_follow_those_in_float32(name):
    """For every kind of optimizer the steps are those of float32 weights, to the precision of bf16."""
    ends = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        module = nn.Linear(128, 64).to(dtype)
        optimizer = build_optimizer([("unet", module)], OptimizerSettings(optimizer_type=name, learning_rate=1e-3))
        updates = RoundedUpdates(optimizer, seed=0) if dtype is torch.bfloat16 else None
        for step in range(20):
            if updates:
                updates.finished_steps = step
            module.weight.grad = torch.full_like(module.weight, 0.5)
            optimizer.step()
        ends.append(module.weight.detach().float())
        assert module.weight.dtype == dtype

    exact, rounded = ends
    assert (exact - rounded).abs().max() < 0.01
    assert (exact - rounded).mean().abs() < 1e-4


def test_the_state_is_float32_and_stays_so_when_loaded():
    """torch alone would round it to the weights' precision, and a resumed run would differ."""
    optimizers = []
    for _ in range(2):
        weights = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
        optimizers.append(torch.optim.AdamW([weights], lr=1e-3))
        RoundedUpdates(optimizers[-1], seed=0)
        weights.grad = torch.full_like(weights, 0.3)
        if len(optimizers) == 1:
            optimizers[-1].step()
    source, target = optimizers

    target.load_state_dict(source.state_dict())

    (first,), (second,) = source.state.values(), target.state.values()
    assert first["exp_avg"].dtype == torch.float32
    assert all(torch.equal(first[name], second[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def test_weights_in_bf16_learn_and_are_saved_so(tmp_path):
    """Half the memory of weights and gradients; saved as trained, with the average kept in float32."""
    plain = base_run()
    run = go(tmp_path, max_train_steps=6, full_bf16=True, mixed_precision="bf16", use_ema=True, ema_decay=0.5)

    assert run.code == 0
    assert run.losses == pytest.approx(plain.losses, rel=0.05)
    assert run.losses != plain.losses
    assert run.weights()[f"{UNET}input_blocks.0.0.weight"].dtype == torch.float32


def test_weights_in_bf16_are_saved_as_trained(tmp_path):
    run = go(tmp_path, full_bf16=True, mixed_precision="bf16", train_text_encoder=True)

    assert run.code == 0
    assert run.weights()[f"{UNET}input_blocks.0.0.weight"].dtype == torch.bfloat16


def test_weights_in_fp16_are_refused_where_there_is_no_graphics_card(tmp_path):
    with pytest.raises(EngineError, match="mixed_precision = fp16 is not possible on this device"):
        go(tmp_path, full_fp16=True, mixed_precision="fp16")


def test_fp16_gradients_are_unscaled():
    """torch's scaler refuses them; with fp16 weights there are no others."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    weights = nn.Parameter(torch.ones(8, dtype=torch.float16))
    optimizer = torch.optim.SGD([weights], lr=0.5)
    RoundedUpdates(optimizer, seed=0)
    allow_half_gradients(SimpleNamespace(scaler=scaler))

    scaler.scale(weights.sum() * 0.25).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)

    assert torch.equal(torch.full((8,), 0.875, dtype=torch.float16), weights)


@pytest.mark.parametrize("name", ["AdamW", "AdamW8bit", "AdaFactor"])
def test_updates_inside_the_backward_pass_are_the_same_updates(tmp_path, name):
    """Without clipping, which is by tensor there, every weight comes out bit for bit as without."""
    rate = {} if name != "AdaFactor" else {"learning_rate": None}
    values = {"max_train_steps": 3, "max_grad_norm": 0, "optimizer_type": name, **rate}
    plain, fused = (go(tmp_path / str(on), fused_backward_pass=on, **values) for on in (False, True))

    assert fused.losses == plain.losses
    assert [step.grad_norm for step in fused.steps] == pytest.approx([step.grad_norm for step in plain.steps], rel=1e-4)
    assert same(fused.weights(), plain.weights(), UNET)


def test_clipping_inside_the_backward_pass_is_by_tensor(tmp_path):
    """A norm so small that only the direction counts: each tensor moves by lr x norm."""
    run = go(
        tmp_path, max_train_steps=1, fused_backward_pass=True, max_grad_norm=1e-3, learning_rate=1.0,
        optimizer_type="SGDNesterov", optimizer_args=["nesterov=False", "momentum=0.0"],
    )  # fmt: skip
    start = go(tmp_path / "still", max_train_steps=1, learning_rate=1e-12).weights()

    moved = {name: (tensor - start[name]).norm().item() for name, tensor in run.weights().items() if UNET in name}

    assert max(moved.values()) == pytest.approx(1e-3, rel=0.02)
    assert sorted(moved.values())[len(moved) // 2] == pytest.approx(1e-3, rel=0.02)


def test_an_optimizer_that_looks_at_all_tensors_is_refused_there():
    module = nn.Linear(2, 2)
    accelerator = Accelerator()
    optimizer = accelerator.prepare(torch.optim.LBFGS(module.parameters()))

    with pytest.raises(EngineError, match="remove fused_backward_pass"):
        make_updater(accelerator, optimizer, Settings().replace(fused_backward_pass=True))

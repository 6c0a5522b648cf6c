"""Every choice of the recipe does what it says, in whole runs."""

import math

import pytest
import torch
from safetensors.torch import load_file

from engine.curves import CURVES
from engine.errors import EngineError
from engine.optim import OPTIMIZERS

from .run_support import TEXT, UNET, base_run, go, same, tiny_model, uncached_run


@pytest.fixture(scope="module")
def base():
    return base_run()


@pytest.fixture(scope="module")
def uncached():
    return uncached_run()


def test_a_frozen_text_encoder_and_vae_are_saved_bit_for_bit(base, tmp_path):
    """Also under bf16, where they compute in bf16: what is not trained comes from the source."""
    half = go(tmp_path, mixed_precision="bf16")
    source = load_file(tiny_model() / "text_encoder" / "model.safetensors")
    vae = load_file(tiny_model() / "vae" / "diffusion_pytorch_model.safetensors")
    name = next(name for name in source if name.endswith("layers.1.mlp.fc1.weight"))

    for run in (base, half):
        weights = run.weights()
        assert torch.equal(weights[f"{TEXT}text_model.encoder.layers.1.mlp.fc1.weight"], source[name])
        assert torch.equal(weights["first_stage_model.encoder.conv_in.weight"], vae["encoder.conv_in.weight"])
        assert weights[f"{UNET}input_blocks.0.0.weight"].dtype == torch.float32


def test_the_text_encoder_trains_at_its_own_rate(base, tmp_path):
    """Rate 0 leaves it where it is, another moves it; the UNet's rate is the one told."""
    still, moved = (
        go(tmp_path / str(rate), train_text_encoder=True, learning_rate_te=rate, max_train_steps=6)
        for rate in (0.0, 1e-4)
    )

    assert moved.of("started")[0].trains == ("unet", "text_encoder")
    assert same(still.weights(), base.weights(), TEXT)
    assert not same(moved.weights(), base.weights(), TEXT)
    assert {step.learning_rate for step in moved.steps} == {1e-3}
    assert still.losses == pytest.approx(base.losses, rel=1e-3)


def test_the_average_is_saved(base, tmp_path):
    """With decay 0.5 the saved weights lag behind; the losses are those of the weights themselves."""
    run = go(tmp_path, max_train_steps=6, use_ema=True, ema_decay=0.5)

    assert run.losses == base.losses
    assert not same(run.weights(), base.weights(), UNET)
    assert same(run.weights(), base.weights(), TEXT)


@pytest.mark.parametrize(
    ("choice", "tolerance"),
    [
        ({"gradient_checkpointing": True}, 1e-5),
        ({"gradient_checkpointing": True, "train_text_encoder": True, "learning_rate_te": 0.0}, 1e-3),
        ({"mem_eff_attn": True}, 1e-3),
        ({"sdpa": True}, 0),
        ({"mixed_precision": "bf16"}, 0.05),
        ({"vae_batch_size": 3}, 1e-3),
        ({"no_half_vae": True}, 0),
    ],
    ids=str,
)
def test_what_only_saves_memory_leaves_the_losses_alone(base, tmp_path, choice, tolerance):
    """To the precision chosen."""
    run = go(tmp_path, max_train_steps=6, **choice)

    assert base.losses == pytest.approx(run.losses, rel=tolerance)
    assert tolerance == 0.05 or base.losses[0] == pytest.approx(run.losses[0], rel=1e-6)


@pytest.mark.parametrize(
    ("choice", "message"),
    [({"mixed_precision": "fp16"}, "fp16 is not possible on this device"), ({"xformers": True}, "set sdpa = true")],
)
def test_what_this_machine_can_not_do_is_refused(tmp_path, choice, message):
    """In one sentence, with no run folder left."""
    with pytest.raises(EngineError, match=message) as caught:
        go(tmp_path, **choice)

    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains(tmp_path, name):
    """For real, with an argument of its own."""
    arguments = {"SGDNesterov": "momentum=0.8", "AdaFactor": "scale_parameter=True"}
    rate = {"learning_rate": 1e-4} if name != "AdaFactor" else {"learning_rate": None}

    run = go(tmp_path, optimizer_type=name.lower(), optimizer_args=[arguments.get(name, "weight_decay=0.1")], **rate)

    start = load_file(tiny_model() / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    assert run.code == 0
    assert not torch.equal(run.weights()[f"{UNET}input_blocks.0.0.weight"], start)
    assert all(math.isfinite(step.learning_rate) and step.learning_rate > 0 for step in run.steps)


@pytest.mark.parametrize("name", [name for name in CURVES if name != "constant"])
def test_every_schedule_sets_the_rate(tmp_path, name):
    """With a warmup of half the run the first update has rate 0, as in sd-scripts."""
    run = go(tmp_path, lr_scheduler=name, lr_warmup_steps=0.5, max_train_steps=4)

    rates = [step.learning_rate for step in run.steps]
    assert rates[:3] == pytest.approx([0, 5e-4, 1e-3])
    assert (rates[3] == 1e-3) == (name == "constant_with_warmup")


@pytest.mark.parametrize(
    "choice",
    [
        {"noise_offset": 0.1, "adaptive_noise_scale": 0.1},
        {"noise_offset": 0.1, "noise_offset_random_strength": True},
        {"multires_noise_iterations": 3},
        {"ip_noise_gamma": 0.1, "ip_noise_gamma_random_strength": True},
        {"min_timestep": 100, "max_timestep": 200},
        {"loss_type": "l1"},
        {"loss_type": "huber", "huber_schedule": "exponential", "huber_scale": 2.0},
        {"loss_type": "smooth_l1", "huber_schedule": "constant"},
        {"min_snr_gamma": 5.0},
        {"debiased_estimation_loss": True},
        {"v_pred_like_loss": 0.5},
        {"v_parameterization": True},
        {"v_parameterization": True, "zero_terminal_snr": True, "min_snr_gamma": 5.0},
        {"v_parameterization": True, "scale_v_pred_loss_like_noise_pred": True},
        {"max_grad_norm": 0.001},
        {"clip_skip": 2},
        {"max_token_length": 150},
        {"max_token_length": 225},
        {"weighted_captions": True},
    ],
    ids="-".join,
)
def test_every_choice_of_the_recipe_changes_the_run(base, tmp_path, choice):
    """None is accepted and then ignored."""
    run = go(tmp_path, max_train_steps=6, **choice)

    assert run.code == 0
    assert run.losses != base.losses
    assert all(math.isfinite(loss) for loss in run.losses)
    if "min_timestep" in choice:
        assert all(100 <= timestep < 200 for step in run.steps for timestep in step.timesteps)


@pytest.mark.parametrize(
    "subset",
    [
        {"shuffle_caption": True, "keep_tokens": 1},
        {"caption_dropout_rate": 0.5},
        {"caption_tag_dropout_rate": 0.5},
        {"flip_aug": True},
        {"enable_wildcard": True, "caption_suffix": "{p|q}"},
        {"color_aug": True},
        {"random_crop": True},
        {"num_repeats": 2},
    ],
    ids=lambda subset: next(iter(subset)),
)
def test_augmentations_change_the_run_and_repeat(base, uncached, tmp_path, subset):
    """Each has an effect, and the same one twice."""
    is_cached = not subset.keys() & {"color_aug", "random_crop"}
    values = {"max_train_steps": 6, "cache_latents": is_cached, "subset": subset}

    run, again = go(tmp_path / "a", **values), go(tmp_path / "b", **values)

    assert run.code == 0
    assert run.losses == again.losses
    assert run.losses != (base if is_cached else uncached).losses

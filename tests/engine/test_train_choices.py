"""Every choice of the recipe does what it says, in whole runs."""

import math

import pytest
import torch
from safetensors.torch import load_file
from schedulefree import AdamWScheduleFree

from engine.errors import EngineError
from engine.models.sd import StableDiffusion
from engine.preview import draw

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


def test_compiling_without_a_compiler_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _name: None)

    with pytest.raises(EngineError, match=r"needs a C.. compiler .* set dynamo_backend=aot_eager"):
        go(tmp_path, torch_compile=True)


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


@pytest.mark.parametrize("name", ["AdamW8bit", "Lion", "AdaFactor", "torch.optim.RAdam"])
def test_every_kind_of_optimizer_trains(tmp_path, name):
    """For real, with an argument of its own; tests/engine/test_optim.py has them all."""
    arguments = {"AdaFactor": "scale_parameter=True"}
    rate = {"learning_rate": 1e-4} if name != "AdaFactor" else {"learning_rate": None}

    run = go(
        tmp_path,
        optimizer_type=name if "." in name else name.lower(),
        optimizer_args=[arguments.get(name, "weight_decay=0.1")],
        **rate,
    )

    start = load_file(tiny_model() / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    assert run.code == 0
    assert not torch.equal(run.weights()[f"{UNET}input_blocks.0.0.weight"], start)
    assert all(math.isfinite(step.learning_rate) and step.learning_rate > 0 for step in run.steps)


def test_the_rate_found_is_told_and_the_text_encoder_shares_it(tmp_path):
    """Prodigy's d x lr is an event's field of its own."""
    run = go(tmp_path, optimizer_type="prodigy", learning_rate=1.0, train_text_encoder=True, max_train_steps=3)

    rates = [step.adapted_rate for step in run.steps]
    assert {step.learning_rate for step in run.steps} == {1.0}
    assert rates == sorted(rates)
    assert 0 < rates[0] < rates[-1] < 1e-2


def test_schedule_free_runs_save_and_draw_the_average(tmp_path, monkeypatch):
    """And neither changes the training: the losses are those of a run without samples and saves in between."""
    modes = []

    def recording(function):
        def called(*arguments, **keywords):
            modes.append(current[0].param_groups[0]["train_mode"])
            return function(*arguments, **keywords)

        return called

    current = []
    original = AdamWScheduleFree.__init__
    monkeypatch.setattr(
        AdamWScheduleFree,
        "__init__",
        lambda self, *given, **named: (original(self, *given, **named), current.insert(0, self))[0],
    )
    monkeypatch.setattr(StableDiffusion, "save", recording(StableDiffusion.save))
    monkeypatch.setattr("engine.preview.draw", recording(draw))
    (tmp_path / "prompts.txt").write_text("a cat --s 1 --w 64 --h 64 --l 1\n")
    values = {"optimizer_type": "AdamWScheduleFree", "max_train_steps": 6}
    plain = go(tmp_path / "plain", **values)
    run = go(tmp_path / "drawn", save_every_n_steps=2, sample_prompts=str(tmp_path / "prompts.txt"),
             sample_every_n_steps=1, **values)  # fmt: skip

    assert modes == [False] * (1 + 6 + 4)
    assert run.losses == plain.losses
    assert same(run.weights(), plain.weights())


@pytest.mark.parametrize("name", ["cosine", "warmup_stable_decay", "StepLR"])
def test_a_schedule_sets_the_rate(tmp_path, name):
    """With a warmup of half the run the first update has rate 0, as in sd-scripts."""
    chosen = {
        "cosine": {"lr_scheduler": "cosine", "lr_warmup_steps": 0.5},
        "warmup_stable_decay": {
            "lr_scheduler": name, "lr_warmup_steps": "50%", "lr_decay_steps": 1, "lr_scheduler_min_lr_ratio": 0.5
        },
        "StepLR": {"lr_scheduler_type": name, "lr_scheduler_args": ["step_size=2", "gamma=0.1"]},
    }  # fmt: skip

    run = go(tmp_path, max_train_steps=4, **chosen[name])

    rates = [step.learning_rate for step in run.steps]
    expected = {
        "cosine": [0, 5e-4, 1e-3, 5e-4],
        "warmup_stable_decay": [5e-4, 7.5e-4, 1e-3, 1e-3],
        "StepLR": [1e-3, 1e-3, 1e-4, 1e-4],
    }
    assert rates == pytest.approx(expected[name])


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

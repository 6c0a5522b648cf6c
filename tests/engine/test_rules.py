"""Every rule finds what it is for, and leaves good settings alone."""

import importlib.util

import pytest

from engine.rules import RULES, find_problems
from engine.settings import Settings

GOOD = {"pretrained_model_name_or_path": "m", "output_dir": "o", "train_data_dir": "d"}

# rule -> (settings that trigger it, the setting it names, severity, settings beside them that do not)
CASES = {
    "required": [
        ({"pretrained_model_name_or_path": ""}, "pretrained_model_name_or_path", "error", {}),
        ({"output_dir": ""}, "output_dir", "error", {}),
        ({"train_data_dir": None}, "train_data_dir", "error", {"train_data_dir": None, "in_json": "m.json"}),
    ],
    "output-name": [
        ({"output_name": "a/b"}, "output_name", "error", {"output_name": "a b-1.5"}),
        ({"output_name": ".."}, "output_name", "error", {}),
        ({"output_name": "a\nb"}, "output_name", "error", {}),
    ],
    "attention": [({"sdpa": True, "xformers": True}, "xformers", "error", {"mem_eff_attn": True})],
    "cached-latents": [
        ({"cache_latents": True, "color_aug": True}, "color_aug", "error", {"color_aug": True}),
        ({"cache_latents_to_disk": True, "random_crop": True}, "random_crop", "error", {"cache_latents": True}),
        (
            {"cache_latents": True, "face_crop_aug_range": (1.0, 2.0)},
            "face_crop_aug_range",
            "error",
            {"face_crop_aug_range": (1.0, 2.0)},
        ),
    ],
    "noise": [
        ({"adaptive_noise_scale": 0.1}, "adaptive_noise_scale", "error", {"noise_offset": 0.1}),
        ({"noise_offset_random_strength": True}, "noise_offset_random_strength", "warning", {}),
        ({"ip_noise_gamma_random_strength": True}, "ip_noise_gamma_random_strength", "warning", {}),
        (
            {"noise_offset": 0.1, "multires_noise_iterations": 6},
            "multires_noise_iterations",
            "warning",
            {"multires_noise_iterations": 6},
        ),
    ],
    "timesteps": [
        ({"min_timestep": 500, "max_timestep": 400}, "min_timestep", "error", {"min_timestep": 5, "max_timestep": 6})
    ],
    "prediction": [
        (
            {"v_parameterization": False, "scale_v_pred_loss_like_noise_pred": True},
            "scale_v_pred_loss_like_noise_pred",
            "error",
            {"v_parameterization": True, "scale_v_pred_loss_like_noise_pred": True},
        ),
        ({"v_parameterization": True, "v_pred_like_loss": 0.5}, "v_pred_like_loss", "error", {"v_pred_like_loss": 0.5}),
        (
            {"v_parameterization": False, "zero_terminal_snr": True},
            "zero_terminal_snr",
            "warning",
            {"v_parameterization": True, "zero_terminal_snr": True},
        ),
    ],
    "clip-skip": [({"v2": True, "clip_skip": 2}, "clip_skip", "warning", {"clip_skip": 2})],
    "schedule": [
        ({"lr_warmup_steps": 5}, "lr_warmup_steps", "error", {"lr_warmup_steps": 5, "lr_scheduler": "linear"}),
        ({"lr_scheduler_num_cycles": 2}, "lr_scheduler_num_cycles", "warning", {}),
        (
            {"lr_scheduler_power": 2.0},
            "lr_scheduler_power",
            "warning",
            {"lr_scheduler_power": 2.0, "lr_scheduler": "polynomial"},
        ),
    ],
    "polynomial": [
        (
            {"lr_scheduler": "polynomial", "learning_rate": 1e-7},
            "learning_rate",
            "error",
            {"lr_scheduler": "polynomial", "learning_rate": 2e-7},
        )
    ],
    "adafactor": [
        (
            {"optimizer_type": "AdaFactor"},
            "max_grad_norm",
            "warning",
            {"optimizer_type": "AdaFactor", "max_grad_norm": 0.0},
        ),
        (
            {"optimizer_type": "AdaFactor", "max_grad_norm": 0.0, "lr_scheduler": "cosine"},
            "lr_scheduler",
            "error",
            {
                "optimizer_type": "AdaFactor",
                "max_grad_norm": 0.0,
                "lr_scheduler": "cosine",
                "optimizer_args": ("relative_step = False",),
            },
        ),
        (
            {"optimizer_type": "AdaFactor", "max_grad_norm": 0.0, "learning_rate": 1e-5},
            "learning_rate",
            "warning",
            {"learning_rate": 1e-5},
        ),
    ],
    "text-encoder": [
        (
            {"learning_rate_te": 1e-6},
            "learning_rate_te",
            "warning",
            {"learning_rate_te": 1e-6, "train_text_encoder": True},
        )
    ],
    "without-effect": [
        ({"huber_c": 0.2}, "huber_c", "warning", {"huber_c": 0.2, "loss_type": "huber"}),
        ({"huber_schedule": "constant"}, "huber_schedule", "warning", {}),
        (
            {"huber_scale": 2.0, "loss_type": "huber"},
            "huber_scale",
            "warning",
            {"huber_scale": 2.0, "loss_type": "huber", "huber_schedule": "constant"},
        ),
        (
            {"multires_noise_discount": 0.5},
            "multires_noise_discount",
            "warning",
            {"multires_noise_discount": 0.5, "multires_noise_iterations": 6},
        ),
        ({"save_last_n_epochs": 1}, "save_last_n_epochs", "warning", {"save_every_n_epochs": 1}),
        ({"save_last_n_steps": 1}, "save_last_n_steps", "warning", {"save_every_n_steps": 1}),
        (
            {"dataset_config": "d.toml"},
            "train_data_dir",
            "warning",
            {"dataset_config": "d.toml", "train_data_dir": None},
        ),
    ],
    "ema": [({"ema_decay": 0.9}, "ema_decay", "warning", {"ema_decay": 0.9, "use_ema": True})],
    "sampling": [
        ({"sample_at_first": True}, "sample_prompts", "error", {"sample_at_first": True, "sample_prompts": "p.txt"}),
        ({"sample_prompts": "p.txt"}, "sample_prompts", "warning", {}),
    ],
    "packages": [],  # Needs a machine without the packages; see below.
    "buckets": [
        (
            {"enable_bucket": True, "bucket_reso_steps": 32},
            "bucket_reso_steps",
            "error",
            {"enable_bucket": True, "bucket_reso_steps": 128},
        )
    ],
}


def codes(values):
    """Return (code, setting, severity) of every problem of good settings with these changed."""
    problems = find_problems(Settings().replace(**{**GOOD, **values}))
    assert all(problem.message and problem.fix for problem in problems)
    return {(problem.code, problem.where, problem.severity) for problem in problems}


@pytest.mark.parametrize(
    ("code", "values", "name", "severity", "good"),
    [(code, *case) for code, cases in CASES.items() for case in cases],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_rule_finds_what_it_is_for(code, values, name, severity, good):
    """It names the setting, and is silent on the other choice."""
    assert (code, name, severity) in codes(values)
    assert (code, name, severity) not in codes(good)


@pytest.mark.parametrize(
    ("module", "values"), [("lion_pytorch", {"optimizer_type": "Lion"}), ("xformers", {"xformers": True})]
)
def test_a_missing_package_is_named(monkeypatch, module, values):
    """With the command that installs it."""
    name = next(iter(values))
    assert not {code for code, *_ in codes(values)} & {"packages"}

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == module else found(wanted))

    assert ("packages", name, "error") in codes(values)


def test_good_settings_have_no_problems():
    """The defaults contradict nothing."""
    assert codes({}) == set()


def test_every_rule_is_tested():
    """One entry for each rule."""
    assert set(CASES) == {rule.__name__.strip("_").replace("_", "-") for rule in RULES}


def test_problems_stand_where_the_settings_were_given():
    """File and line instead of the bare name."""
    settings = Settings().replace(**GOOD, lr_warmup_steps=5)

    (problem,) = find_problems(settings, {"lr_warmup_steps": "run.toml:7"})

    assert problem.where == "run.toml:7"

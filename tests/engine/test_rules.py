"""Every rule on settings finds what it is for, leaves good settings alone, and its fix mends it."""

import importlib.util

import pytest

from engine.rules import SETTINGS_RULES, find_problems
from engine.rules.document import ALL_RULES
from engine.rules.idle import NEEDS
from engine.settings import Settings

GOOD = {"pretrained_model_name_or_path": "m", "output_dir": "o", "train_data_dir": "d", "cache_latents": True}
FACTOR = {"optimizer_type": "AdaFactor", "max_grad_norm": 0.0}
FREE = {"optimizer_type": "AdamWScheduleFree"}
PRODIGY = {"optimizer_type": "Prodigy", "learning_rate": 1.0}
FUSED = {"fused_backward_pass": True, "max_grad_norm": 0.0}
HYPER = {"train_hypernetwork": True, "save_model_as": "ckpt"}
V = {"v_parameterization": True}
EPSILON = {"v_parameterization": False}

PROMPTS = {"sample_prompts": "p.txt", "sample_at_first": True}
WANDB = {"log_with": "wandb"}
HUB = {"huggingface_repo_id": "owner/model"}
BUCKETS = {"enable_bucket": True}
HELD_OUT = {"validation_split": 0.1}
CLASS = {"lr_scheduler_type": "CosineAnnealingLR"}
# setting -> (a value that does nothing by itself, what it needs beside it)
IDLE = {
    "lr_scheduler_num_cycles": (2, {"lr_scheduler": "cosine_with_restarts"}),
    "lr_scheduler_power": (2.0, {"lr_scheduler": "polynomial"}),
    "lr_decay_steps": (5, {"lr_scheduler": "warmup_stable_decay"}),
    "lr_scheduler_timescale": (10, {"lr_scheduler": "inverse_sqrt"}),
    "lr_scheduler_min_lr_ratio": (0.1, {"lr_scheduler": "cosine_with_min_lr"}),
    "lr_scheduler_args": (("T_max=5",), CLASS),
    "learning_rate_te": (1e-6, {"train_text_encoder": True}),
    "ema_decay": (0.9, {"use_ema": True}),
    "noise_offset_random_strength": (True, {"noise_offset": 0.05}),
    "ip_noise_gamma_random_strength": (True, {"ip_noise_gamma": 0.1}),
    "multires_noise_discount": (0.5, {"multires_noise_iterations": 6}),
    "huber_schedule": ("constant", {"loss_type": "huber"}),
    "huber_c": (0.2, {"loss_type": "huber"}),
    "no_half_vae": (True, {"mixed_precision": "bf16"}),
    "save_last_n_epochs": (1, {"save_every_n_epochs": 1}),
    "save_last_n_steps": (1, {"save_every_n_steps": 1}),
    "sample_sampler": ("euler", PROMPTS),
    "dynamo_backend": ("eager", {"torch_compile": True}),
    "wandb_run_name": ("r", WANDB),
    "wandb_api_key": ("k", WANDB),
    "log_tracker_config": ("c.toml", WANDB),
    "log_config": (True, WANDB),
    "huggingface_repo_type": ("dataset", HUB),
    "huggingface_path_in_repo": ("p", HUB),
    "huggingface_token": ("t", HUB),
    "huggingface_repo_visibility": ("public", HUB),
    "async_upload": (True, HUB),
    "save_state_to_huggingface": (True, HUB),
    "resume_from_huggingface": (True, {"resume": "owner/model"}),
    "log_prefix": ("a", {"logging_dir": "l"}),
    "log_tracker_name": ("a", {"logging_dir": "l"}),
    "min_bucket_reso": (512, BUCKETS),
    "bucket_reso_steps": (128, BUCKETS),
    "bucket_no_upscale": (True, BUCKETS),
    "keep_tokens": (1, {"shuffle_caption": True}),
    "keep_tokens_separator": ("|||", {"shuffle_caption": True}),
    "token_warmup_min": (3, {"token_warmup_step": 0.1}),
    "validation_seed": (3, HELD_OUT),
    "validate_every_n_steps": (3, HELD_OUT),
    "validate_every_n_epochs": (3, HELD_OUT),
    "max_validation_steps": (3, HELD_OUT),
    "masked_loss": (True, {"conditioning_data_dir": "m"}),
    "conditioning_data_dir": ("m", {"masked_loss": True}),
    "hypernetwork_weights": ("h.pt", HYPER),
    "hypernetwork_sizes": ((320,), HYPER),
    "hypernetwork_layer_structure": ((1.0, 1.0), HYPER),
    "hypernetwork_layer_norm": (True, HYPER),
    "hypernetwork_activation": ("relu", HYPER),
    "hypernetworks": (("h.pt",), PROMPTS),
    "hypernetwork_strength": (0.5, {**HYPER, **PROMPTS}),
}
METADATA = ("metadata_title", "metadata_author", "metadata_description", "metadata_license", "metadata_tags",
            "metadata_usage_hint", "metadata_thumbnail", "metadata_merged_from", "metadata_trigger_phrase",
            "metadata_preprocessor", "metadata_is_negative_embedding")  # fmt: skip

# code -> (settings that trigger it, the setting it names, settings beside them that do not)
CASES = {
    "no-model": [({"pretrained_model_name_or_path": ""}, "pretrained_model_name_or_path", {})],
    "no-output": [({"output_dir": ""}, "output_dir", {})],
    "no-pictures-named": [
        ({"train_data_dir": None}, "train_data_dir", {"train_data_dir": None, "in_json": "m.json"}),
    ],
    "output-name": [
        ({"output_name": "a/b"}, "output_name", {"output_name": "a b-1.5"}),
        ({"output_name": ".."}, "output_name", {}),
        ({"output_name": "a\nb"}, "output_name", {}),
    ],
    "two-data-sets": [
        ({"dataset_config": "d.toml"}, "train_data_dir", {"dataset_config": "d.toml", "train_data_dir": None}),
        ({"dataset_config": "d.toml", "in_json": "m.json"}, "in_json", {"in_json": "m.json"}),
    ],
    "no-prompts": [
        ({"sample_at_first": True}, "sample_prompts", {"sample_at_first": True, "sample_prompts": "p.txt"}),
    ],
    "idle-prompts": [
        ({"sample_prompts": "p.txt"}, "sample_prompts", {"sample_prompts": "p.txt", "sample_every_n_steps": 5}),
    ],
    "epochs-win": [
        ({"max_train_epochs": 2, "max_train_steps": 9}, "max_train_steps", {"max_train_epochs": 2}),
        (
            {"sample_every_n_epochs": 1, "sample_every_n_steps": 1, "sample_prompts": "p"},
            "sample_every_n_steps",
            {"sample_every_n_epochs": 1, "sample_prompts": "p"},
        ),
        (
            {"save_n_epoch_ratio": 2, "save_every_n_epochs": 1},
            "save_every_n_epochs",
            {"save_n_epoch_ratio": 2},
        ),
    ],
    "log-with": [({"log_with": "all"}, "logging_dir", {"log_with": "all", "logging_dir": "l"})],
    "wandb-missing": [],  # Likewise; see below.
    "packages": [],  # Needs a machine without the packages; see below.
    "constant-warmup": [({"lr_warmup_steps": 5}, "lr_warmup_steps", {"lr_warmup_steps": 5, "lr_scheduler": "linear"})],
    "long-warmup": [
        (
            {"lr_warmup_steps": 100, "max_train_steps": 100, "lr_scheduler": "linear"},
            "lr_warmup_steps",
            {"lr_warmup_steps": 100, "max_train_epochs": 100, "lr_scheduler": "linear"},
        )
    ],
    "polynomial-floor": [
        (
            {"lr_scheduler": "polynomial", "learning_rate": 1e-7},
            "learning_rate",
            {"lr_scheduler": "polynomial", "learning_rate": 2e-7},
        )
    ],
    "optimizer-args": [
        ({"optimizer_args": ("weight_decay",)}, "optimizer_args", {"optimizer_args": ("weight_decay = 0.1",)}),
        ({"optimizer_args": ("lr=1", "eps=1e-8")}, "optimizer_args", {"optimizer_args": ("eps=1e-8",)}),
    ],
    "adafactor-schedule": [
        (
            {**FACTOR, "lr_scheduler": "cosine"},
            "lr_scheduler",
            {**FACTOR, "lr_scheduler": "cosine", "optimizer_args": ("relative_step = False",)},
        ),
    ],
    "adafactor-curve": [
        ({"lr_scheduler": "adafactor:1e-4"}, "lr_scheduler", {**FACTOR, "lr_scheduler": "adafactor:1e-4"}),
    ],
    "min-lr-missing": [
        (
            {"lr_scheduler": "cosine_with_min_lr"},
            "lr_scheduler_min_lr_ratio",
            {"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_min_lr_ratio": 0.0},
        )
    ],
    "step-rules": [
        (
            {"lr_scheduler": "piecewise_constant"},
            "lr_scheduler_args",
            {"lr_scheduler": "piecewise_constant", "lr_scheduler_args": ("step_rules='1:10,0.5'",)},
        )
    ],
    "schedule-free": [
        ({**FREE, "lr_scheduler": "cosine"}, "lr_scheduler", FREE),
        ({**FREE, "use_ema": True, "ema_decay": 0.99}, "use_ema", {"use_ema": True, "ema_decay": 0.99}),
    ],
    "adaptive-rate": [({"optimizer_type": "Prodigy"}, "learning_rate", PRODIGY)],
    "adaptive-te-rate": [
        (
            {**PRODIGY, "train_text_encoder": True, "learning_rate_te": 0.5},
            "learning_rate_te",
            {**PRODIGY, "train_text_encoder": True, "learning_rate_te": 1.0},
        )
    ],
    "adafactor-rate": [({**FACTOR, "learning_rate": 1e-5}, "learning_rate", {"learning_rate": 1e-5})],
    "adafactor-clip": [({"optimizer_type": "AdaFactor"}, "max_grad_norm", FACTOR)],
    "adafactor-memory": [(FACTOR, "optimizer_type", {})],
    "high-rate": [
        ({"learning_rate": 1e-2}, "learning_rate", {"learning_rate": 1e-3}),
        (
            {"learning_rate_te": 1.0, "train_text_encoder": True},
            "learning_rate_te",
            {"learning_rate": 1.0, "optimizer_type": "SGDNesterov"},
        ),
    ],
    "te-rate-zero": [
        (
            {"learning_rate_te": 0.0, "train_text_encoder": True},
            "learning_rate_te",
            {"learning_rate_te": 1e-6, "train_text_encoder": True},
        )
    ],
    "slow-average": [
        (
            {"use_ema": True, "max_train_steps": 2000},
            "ema_decay",
            {"use_ema": True, "max_train_steps": 2000, "ema_decay": 0.99},
        )
    ],
    "adaptive-noise": [({"adaptive_noise_scale": 0.1}, "adaptive_noise_scale", {"noise_offset": 0.1})],
    "two-low-noises": [
        (
            {"noise_offset": 0.1, "multires_noise_iterations": 6},
            "multires_noise_iterations",
            {"multires_noise_iterations": 6},
        )
    ],
    "large-noise-offset": [({"noise_offset": 0.5}, "noise_offset", {"noise_offset": 0.1})],
    "large-input-noise": [({"ip_noise_gamma": 0.5}, "ip_noise_gamma", {"ip_noise_gamma": 0.1})],
    "timesteps": [({"min_timestep": 500, "max_timestep": 400}, "min_timestep", {"min_timestep": 5})],
    "few-timesteps": [
        ({"min_timestep": 950}, "min_timestep", {"min_timestep": 900}),
        ({"max_timestep": 99}, "max_timestep", {"max_timestep": 500}),
    ],
    "scale-needs-v": [
        (
            {**EPSILON, "scale_v_pred_loss_like_noise_pred": True},
            "scale_v_pred_loss_like_noise_pred",
            {**V, "scale_v_pred_loss_like_noise_pred": True},
        )
    ],
    "v-like-needs-epsilon": [({**V, "v_pred_like_loss": 0.5}, "v_pred_like_loss", {"v_pred_like_loss": 0.5})],
    "zero-snr-epsilon": [
        ({**EPSILON, "zero_terminal_snr": True}, "zero_terminal_snr", {**V, "zero_terminal_snr": True})
    ],
    "zero-snr-offset": [
        ({"zero_terminal_snr": True, "noise_offset": 0.1}, "noise_offset", {"zero_terminal_snr": True})
    ],
    "two-weightings": [
        (
            {"min_snr_gamma": 5.0, "debiased_estimation_loss": True},
            "debiased_estimation_loss",
            {"debiased_estimation_loss": True},
        )
    ],
    "min-snr-range": [({"min_snr_gamma": 0.1}, "min_snr_gamma", {"min_snr_gamma": 5.0})],
    "two-attentions": [({"sdpa": True, "xformers": True}, "xformers", {"mem_eff_attn": True})],
    "half-weights": [
        ({"full_fp16": True}, "full_fp16", {"full_fp16": True, "mixed_precision": "fp16"}),
        (
            {"full_bf16": True, "mixed_precision": "fp16"},
            "full_bf16",
            {"full_bf16": True, "mixed_precision": "bf16"},
        ),
    ],
    "full-fp16": [
        (
            {"full_fp16": True, "mixed_precision": "fp16"},
            "full_fp16",
            {"full_bf16": True, "mixed_precision": "bf16"},
        )
    ],
    "fused-accumulation": [
        ({**FUSED, "gradient_accumulation_steps": 2}, "fused_backward_pass", {"gradient_accumulation_steps": 2})
    ],
    "fused-fp16": [({**FUSED, "mixed_precision": "fp16"}, "fused_backward_pass", {**FUSED, "mixed_precision": "bf16"})],
    "fused-clip": [({"fused_backward_pass": True}, "max_grad_norm", FUSED)],
    "xformers-fp32": [({"xformers": True}, "xformers", {"xformers": True, "mixed_precision": "fp16"})],
    "cached-augmentation": [
        ({"color_aug": True}, "color_aug", {"color_aug": True, "cache_latents": False}),
        ({"cache_latents_to_disk": True, "random_crop": True}, "random_crop", {}),
        ({"face_crop_aug_range": (1.0, 2.0)}, "face_crop_aug_range", {}),
    ],
    "sliced-attention": [({"mem_eff_attn": True}, "mem_eff_attn", {"sdpa": True})],
    "bucket-steps": [
        (
            {"enable_bucket": True, "bucket_reso_steps": 32},
            "bucket_reso_steps",
            {"enable_bucket": True, "bucket_reso_steps": 128},
        )
    ],
    "bucket-limits": [
        (
            {"enable_bucket": True, "min_bucket_reso": 1024, "max_bucket_reso": 512},
            "min_bucket_reso",
            {"enable_bucket": True, "min_bucket_reso": 512},
        )
    ],
    "clip-skip-v2": [({"v2": True, "clip_skip": 2}, "clip_skip", {"clip_skip": 2})],
    "deep-clip-skip": [({"clip_skip": 4}, "clip_skip", {"clip_skip": 2})],
    "high-caption-dropout": [
        ({"caption_dropout_rate": 0.9}, "caption_dropout_rate", {"caption_dropout_rate": 0.1}),
    ],
    "no-captions-shown": [
        (
            {"caption_dropout_every_n_epochs": 1},
            "caption_dropout_every_n_epochs",
            {"caption_dropout_every_n_epochs": 4},
        )
    ],
    "hypernetwork-alone": [({**HYPER, "train_text_encoder": True}, "train_text_encoder", HYPER)],
    "hypernetwork-format": [({**HYPER, "save_model_as": "diffusers"}, "save_model_as", HYPER)],
    "hypernetwork-reader": [({"train_hypernetwork": True}, "save_model_as", HYPER)],
    "hypernetwork-xformers": [
        ({**HYPER, "xformers": True, "mixed_precision": "fp16"}, "xformers", {**HYPER, "sdpa": True}),
    ],
    "idle-option": [
        *(({name: value}, name, {name: value, **beside}) for name, (value, beside) in IDLE.items()),
        (
            {"lr_warmup_steps": 5, "lr_scheduler_type": "CosineAnnealingLR"},
            "lr_warmup_steps",
            {"lr_warmup_steps": 5, "lr_scheduler": "linear"},
        ),
        ({"lr_scheduler": "cosine", "lr_scheduler_type": "StepLR"}, "lr_scheduler", {"lr_scheduler": "cosine"}),
        (
            {"huber_scale": 2.0, "loss_type": "huber"},
            "huber_scale",
            {"huber_scale": 2.0, "loss_type": "huber", "huber_schedule": "constant"},
        ),
        ({"vae_batch_size": 2, "cache_latents": False}, "vae_batch_size", {"vae_batch_size": 2}),
        ({"max_bucket_reso": 512}, "max_bucket_reso", {"max_bucket_reso": 512, "dataset_config": "d"}),
        ({"caption_extension": ".txt", "in_json": "m"}, "caption_extension", {"caption_extension": ".txt"}),
        ({**HYPER, "hypernetwork_weights": "h.pt", "hypernetwork_dropout": 0.3}, "hypernetwork_dropout", HYPER),
        *(
            ({name: value, "save_model_as": "ckpt"}, name, {name: value})
            for name, value in dict.fromkeys(METADATA, "t").items()
        ),
    ],
}


def found(values):
    """Return every problem of good settings with these changed, by code and setting."""
    problems = find_problems(Settings().replace(**{**GOOD, **values}))
    assert all(problem.message and problem.fix and problem.reason and problem.setting for problem in problems)
    return {(problem.code, problem.setting): problem for problem in problems}


@pytest.mark.parametrize(
    ("code", "values", "name", "good"),
    [(code, *case) for code, cases in CASES.items() for case in cases],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_rule_finds_what_it_is_for_and_its_fix_mends_it(code, values, name, good):
    """It names the setting, is silent on the other choice, and the change it proposes brings no new error."""
    before = found(values)
    assert before[code, name].severity == next(rule.severity for rule in SETTINGS_RULES if rule.code == code)
    assert (code, name) not in found(good)

    proposed = before[code, name].values
    changes = {key: Settings().flat()[key] if value is None else value for key, value in proposed}
    after = found({**values, **changes})

    assert not changes or (code, name) not in after
    assert {key for key in after if after[key].severity == "error"} <= before.keys()


@pytest.mark.parametrize(
    ("module", "values", "code"),
    [
        ("lion_pytorch", {"optimizer_type": "Lion"}, "packages"),
        ("prodigyopt", {"optimizer_type": "Prodigy", "learning_rate": 1.0}, "packages"),
        ("xformers", {"xformers": True}, "packages"),
        ("wandb", {"log_with": "wandb"}, "wandb-missing"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, module, values, code):
    """With the command that installs it."""
    name = next(iter(values))
    assert (code, name) not in found(values)

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == module else find_spec(wanted))

    assert "pip install" in found(values)[code, name].fix


def test_good_settings_have_no_problems():
    """The defaults contradict nothing."""
    assert found({}) == {}


def test_every_rule_is_tested_and_has_a_code_of_its_own():
    """One entry in a table for each rule, here or where the plan's and the machine's are."""
    codes = [rule.code for rules in ALL_RULES.values() for rule in rules]

    assert len(codes) == len(set(codes))
    assert {rule.code for rule in SETTINGS_RULES} == CASES.keys()
    assert {need.name for need in NEEDS} == {name for _, name, _ in CASES["idle-option"]}
    assert all(rule.what.endswith(".") and rule.why.endswith(".") and rule.source for rule in SETTINGS_RULES)


def test_problems_stand_where_the_settings_were_given():
    """File and line instead of the bare name, which programs read in `setting`."""
    settings = Settings().replace(**GOOD, lr_warmup_steps=5)

    (problem,) = find_problems(settings, {"lr_warmup_steps": "run.toml:7"})

    assert (problem.where, problem.setting) == ("run.toml:7", "lr_warmup_steps")
    assert problem.as_json()["set"] == {"lr_scheduler": "constant_with_warmup"}

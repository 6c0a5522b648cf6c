"""Options that do nothing under the other choices, as one table. Torch-free."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from engine.errors import Values
from engine.hypernetworks import STRUCTURE_SETTINGS
from engine.rules.rule import Finding, rule, set_to, to_default
from engine.settings import SECTION_OF, SECTIONS, DatasetSettings, Settings


@dataclass(frozen=True, slots=True)
class Need:
    """A setting that is read only where `is_read` holds, and what would make it so; `values` where that is meant."""

    name: str
    is_read: Callable[[Settings], bool]
    needed: str
    values: Values = ()


def _is_huber(settings: Settings) -> bool:
    return settings.loss.loss_type in ("huber", "smooth_l1")


def _caches(settings: Settings) -> bool:
    return settings.memory.cache_latents or settings.memory.cache_latents_to_disk


def _takes_apart(dataset: DatasetSettings) -> bool:
    return bool(dataset.shuffle_caption or dataset.caption_tag_dropout_rate or dataset.token_warmup_step)


def _writes_metadata(settings: Settings) -> bool:
    return settings.saving.save_model_as == "safetensors"


def _makes_hypernetwork(settings: Settings) -> bool:
    return settings.training.train_hypernetwork and settings.training.hypernetwork_weights is None


def _has_inner_layer(settings: Settings) -> bool:
    return not _makes_hypernetwork(settings) or len(settings.training.hypernetwork_layer_structure) > 2


_ENDING = ("cosine_with_min_lr", "warmup_stable_decay")


def _follows(*names: str) -> Callable[[Settings], bool]:
    return lambda settings: not settings.optimizer.lr_scheduler_type and settings.optimizer.lr_scheduler in names


# ---- The data-set file says the same for each folder, so these are looked at only where there is none.


def _without_file(is_read: Callable[[DatasetSettings], object]) -> Callable[[Settings], bool]:
    return lambda settings: bool(settings.dataset.dataset_config or is_read(settings.dataset))


_BUCKETS = ("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale")
_METADATA = tuple(name for name in SECTION_OF if name.startswith("metadata_"))

_HUB = (
    *(name for name in SECTION_OF if name.startswith("huggingface_") and name != "huggingface_repo_id"),
    "save_state_to_huggingface",
    "async_upload",
)

NEEDS = (
    Need("lr_scheduler_num_cycles", _follows("cosine_with_restarts", *_ENDING), "lr_scheduler=cosine_with_restarts"),
    Need("lr_scheduler_power", _follows("polynomial"), "lr_scheduler=polynomial"),
    Need("lr_decay_steps", _follows("warmup_stable_decay"), "lr_scheduler=warmup_stable_decay"),
    Need("lr_scheduler_timescale", _follows("inverse_sqrt"), "lr_scheduler=inverse_sqrt"),
    Need("lr_scheduler_min_lr_ratio", _follows(*_ENDING), "lr_scheduler=cosine_with_min_lr"),
    Need("lr_scheduler_args", lambda s: bool(s.optimizer.lr_scheduler_type) or _follows("piecewise_constant")(s),
         "lr_scheduler_type"),
    Need("lr_warmup_steps", lambda s: not s.optimizer.lr_scheduler_type
         and s.optimizer.lr_scheduler != "piecewise_constant", "another lr_scheduler and no lr_scheduler_type"),
    Need("lr_scheduler", lambda s: not s.optimizer.lr_scheduler_type, "lr_scheduler_type left out"),
    Need("learning_rate_te", lambda s: s.training.train_text_encoder, "train_text_encoder"),
    Need("ema_decay", lambda s: s.training.use_ema, "use_ema", set_to(use_ema=True)),
    Need("noise_offset_random_strength", lambda s: bool(s.loss.noise_offset), "noise_offset"),
    Need("ip_noise_gamma_random_strength", lambda s: bool(s.loss.ip_noise_gamma), "ip_noise_gamma"),
    Need("multires_noise_discount", lambda s: bool(s.loss.multires_noise_iterations), "multires_noise_iterations"),
    Need("huber_schedule", _is_huber, "loss_type=huber"),
    Need("huber_c", _is_huber, "loss_type=huber"),
    Need("huber_scale", lambda s: _is_huber(s) and s.loss.huber_schedule != "snr",
         "loss_type=huber and huber_schedule=constant"),
    Need("vae_batch_size", _caches, "cache_latents"),
    Need("no_half_vae", lambda s: s.memory.mixed_precision != "no", "mixed_precision=fp16 or bf16"),
    Need("save_last_n_epochs", lambda s: bool(s.saving.save_every_n_epochs or s.saving.save_n_epoch_ratio),
         "save_every_n_epochs"),
    Need("save_last_n_steps", lambda s: bool(s.saving.save_every_n_steps), "save_every_n_steps"),
    Need("sample_sampler", lambda s: bool(s.sampling.sample_prompts), "sample_prompts"),
    Need("dynamo_backend", lambda s: s.memory.torch_compile, "torch_compile", set_to(torch_compile=True)),
    *(Need(name, lambda s: s.logging.log_with in ("wandb", "all"), "log_with=wandb")
      for name in ("wandb_run_name", "wandb_api_key", "log_tracker_config", "log_config")),
    *(Need(name, lambda s: bool(s.saving.huggingface_repo_id), "huggingface_repo_id") for name in _HUB),
    Need("resume_from_huggingface", lambda s: bool(s.saving.resume), "resume"),
    Need("log_prefix", lambda s: bool(s.logging.logging_dir), "logging_dir"),
    Need("log_tracker_name", lambda s: bool(s.logging.logging_dir or s.logging.log_with), "logging_dir"),
    *(Need(name, _without_file(lambda d: d.enable_bucket), "enable_bucket") for name in _BUCKETS),
    Need("keep_tokens", _without_file(_takes_apart), "shuffle_caption"),
    Need("keep_tokens_separator", _without_file(_takes_apart), "shuffle_caption"),
    Need("token_warmup_min", _without_file(lambda d: d.token_warmup_step), "token_warmup_step"),
    *(Need(name, lambda s: bool(s.dataset.dataset_config or s.dataset.validation_split), "validation_split")
      for name in ("validation_seed", "validate_every_n_steps", "validate_every_n_epochs", "max_validation_steps")),
    Need("masked_loss", lambda s: bool(s.dataset.dataset_config or s.dataset.conditioning_data_dir),
         "conditioning_data_dir"),
    Need("conditioning_data_dir", lambda s: s.loss.masked_loss, "masked_loss", set_to(masked_loss=True)),
    Need("caption_extension", lambda s: bool(s.dataset.dataset_config or not s.dataset.in_json), "no in_json"),
    Need("hypernetwork_weights", lambda s: s.training.train_hypernetwork, "train_hypernetwork",
         set_to(train_hypernetwork=True)),
    *(Need(name, _makes_hypernetwork, "train_hypernetwork and no hypernetwork_weights") for name in STRUCTURE_SETTINGS),
    *(Need(name, _has_inner_layer, "an inner layer in hypernetwork_layer_structure")
      for name in ("hypernetwork_activation", "hypernetwork_dropout")),
    Need("hypernetworks", lambda s: bool(s.sampling.sample_prompts), "sample_prompts"),
    Need("hypernetwork_strength", lambda s: bool(s.sampling.sample_prompts and s.training.train_hypernetwork),
         "sample_prompts and train_hypernetwork"),
    *(Need(name, _writes_metadata, "save_model_as=safetensors") for name in _METADATA),
)  # fmt: skip


@rule(
    "idle-option", "warning", why="A setting that nothing reads is mistaken for one that works.",
    source="sd-scripts accepts these silently: library/train_util.py",
)  # fmt: skip
def idle_options(settings: Settings) -> Iterator[Finding]:
    """A setting has no effect under the other choices."""
    for need in NEEDS:
        section = SECTION_OF[need.name]
        value = getattr(getattr(settings, section), need.name)
        if value != SECTIONS[section].model_fields[need.name].default and not need.is_read(settings):
            message = f"{need.name} has no effect without {need.needed}"
            fix = f"remove {need.name}, or set {need.needed}"
            yield Finding(setting=need.name, message=message, fix=fix, values=need.values or to_default(need.name))


RULES = (idle_options,)

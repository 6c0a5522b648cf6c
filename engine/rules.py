"""Settings that contradict each other or the machine, found before anything is loaded. Torch-free."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping

from engine.curves import POLYNOMIAL_END
from engine.errors import Problem, Severity
from engine.settings import Settings

# Each rule yields (severity, setting it is about, message, fix).
Finding = tuple[Severity, str, str, str]
Rule = Callable[[Settings], Iterator[Finding]]


def find_problems(settings: Settings, places: Mapping[str, str] | None = None) -> tuple[Problem, ...]:
    """Return every problem of the settings alone; `places` maps a setting to where it was given."""
    where = places or {}
    return tuple(
        Problem(
            code=f"{rule.__name__.strip('_').replace('_', '-')}",
            severity=severity,
            where=where.get(name, name),
            message=message,
            fix=fix,
        )
        for rule in RULES
        for severity, name, message, fix in rule(settings)
    )


def _required(settings: Settings) -> Iterator[Finding]:
    if not settings.model.pretrained_model_name_or_path:
        yield "error", "pretrained_model_name_or_path", "no model is named", "set pretrained_model_name_or_path"
    if not settings.saving.output_dir:
        yield "error", "output_dir", "no folder for the run is named", "set output_dir"
    if not (settings.dataset.dataset_config or settings.dataset.train_data_dir or settings.dataset.in_json):
        yield "error", "train_data_dir", "no pictures are named", "set dataset_config or train_data_dir"


def _output_name(settings: Settings) -> Iterator[Finding]:
    name = settings.saving.output_name
    if set(name) & set('/\\:*?"<>|') or name.strip(". ") != name or any(ord(char) < 32 for char in name):
        yield "error", "output_name", "output_name must be a plain file name", 'leave out / \\ : * ? " < > |'


def _attention(settings: Settings) -> Iterator[Finding]:
    memory = settings.memory
    chosen = [name for name in ("sdpa", "xformers", "mem_eff_attn") if getattr(memory, name)]
    if len(chosen) > 1:
        yield "error", chosen[1], f"{' and '.join(chosen)} exclude each other", f"keep only {chosen[0]}"


def _cached_latents(settings: Settings) -> Iterator[Finding]:
    memory, dataset = settings.memory, settings.dataset
    if not (memory.cache_latents or memory.cache_latents_to_disk):
        return
    for name in ("color_aug", "random_crop"):
        if getattr(dataset, name):
            yield "error", name, f"{name} changes pictures, so their latents can't be cached", f"remove {name}"
    if dataset.face_crop_aug_range:
        text = "face_crop_aug_range changes pictures, so their latents can't be cached"
        yield "error", "face_crop_aug_range", text, "remove face_crop_aug_range"


def _noise(settings: Settings) -> Iterator[Finding]:
    loss = settings.loss
    if loss.adaptive_noise_scale is not None and not loss.noise_offset:
        text = "adaptive_noise_scale has no effect without noise_offset"
        yield "error", "adaptive_noise_scale", text, "set noise_offset"
    for name, needed in (
        ("noise_offset_random_strength", loss.noise_offset),
        ("ip_noise_gamma_random_strength", loss.ip_noise_gamma),
    ):
        if getattr(loss, name) and not needed:
            yield (
                "warning",
                name,
                f"{name} has no effect without {name.removesuffix('_random_strength')}",
                f"remove {name}",
            )
    if loss.noise_offset and loss.multires_noise_iterations:
        text = "noise_offset and multires_noise_iterations both change the same low frequencies"
        yield "warning", "multires_noise_iterations", text, "use one of them"


def _timesteps(settings: Settings) -> Iterator[Finding]:
    low, high = settings.loss.min_timestep, settings.loss.max_timestep
    if low is not None and high is not None and low > high:
        yield "error", "min_timestep", f"min_timestep {low} lies above max_timestep {high}", "swap them"


def _prediction(settings: Settings) -> Iterator[Finding]:
    loss, is_v = settings.loss, settings.model.v_parameterization
    if is_v is False and loss.scale_v_pred_loss_like_noise_pred:
        text = "scale_v_pred_loss_like_noise_pred needs a v-prediction model"
        yield "error", "scale_v_pred_loss_like_noise_pred", text, "remove it, or set v_parameterization"
    if is_v and loss.v_pred_like_loss:
        text = "v_pred_like_loss is for models that predict noise"
        yield "error", "v_pred_like_loss", text, "remove v_pred_like_loss"
    if is_v is False and loss.zero_terminal_snr:
        text = "zero_terminal_snr teaches nothing at the last step to a model that predicts noise"
        yield "warning", "zero_terminal_snr", text, "remove it, or train a v-prediction model"


def _clip_skip(settings: Settings) -> Iterator[Finding]:
    if settings.model.v2 and (settings.model.clip_skip or 1) > 1:
        text = "SD 2.x is trained on the penultimate layer already; clip_skip takes one further away"
        yield "warning", "clip_skip", text, "remove clip_skip"


def _schedule(settings: Settings) -> Iterator[Finding]:
    optimizer = settings.optimizer
    if optimizer.lr_scheduler == "constant" and optimizer.lr_warmup_steps:
        text = "the constant schedule has no warmup"
        yield "error", "lr_warmup_steps", text, "set lr_scheduler=constant_with_warmup"
    for name, schedule in (
        ("lr_scheduler_num_cycles", "cosine_with_restarts"),
        ("lr_scheduler_power", "polynomial"),
    ):
        if getattr(optimizer, name) != 1 and optimizer.lr_scheduler != schedule:
            text = f"{name} has no effect with lr_scheduler={optimizer.lr_scheduler}"
            yield "warning", name, text, f"remove {name}, or set lr_scheduler={schedule}"


def _polynomial(settings: Settings) -> Iterator[Finding]:
    optimizer = settings.optimizer
    if optimizer.lr_scheduler == "polynomial" and optimizer.learning_rate <= POLYNOMIAL_END:
        text = f"learning_rate = {optimizer.learning_rate} is not above {POLYNOMIAL_END}, where polynomial ends"
        yield "error", "learning_rate", text, "raise it, or set lr_scheduler=linear"


def _adafactor(settings: Settings) -> Iterator[Finding]:
    """AdaFactor takes relative steps unless they are declined, and clips updates by itself."""
    optimizer = settings.optimizer
    if optimizer.optimizer_type != "AdaFactor":
        return
    if optimizer.max_grad_norm:
        text = "AdaFactor limits its updates by itself; max_grad_norm limits the gradients besides"
        yield "warning", "max_grad_norm", text, "set max_grad_norm=0"
    if any(pair.replace(" ", "") == "relative_step=False" for pair in optimizer.optimizer_args):
        return
    declined = "or optimizer_args=relative_step=False"
    if optimizer.lr_scheduler != "constant" or optimizer.lr_warmup_steps:
        text = f"AdaFactor takes steps by a rule of its own, not by lr_scheduler={optimizer.lr_scheduler}"
        yield "error", "lr_scheduler", text, f"set lr_scheduler=constant without warmup, {declined}"
    for name in ("learning_rate", "learning_rate_te"):
        if getattr(optimizer, name) != type(optimizer).model_fields[name].default:
            text = f"{name} has no effect: AdaFactor takes steps by a rule of its own"
            yield "warning", name, text, f"remove {name}, {declined}"


def _text_encoder(settings: Settings) -> Iterator[Finding]:
    if settings.optimizer.learning_rate_te is not None and not settings.training.train_text_encoder:
        text = "learning_rate_te has no effect while the text encoder is frozen"
        yield "warning", "learning_rate_te", text, "set train_text_encoder, or remove learning_rate_te"


def _without_effect(settings: Settings) -> Iterator[Finding]:
    loss, saving, dataset = settings.loss, settings.saving, settings.dataset
    is_huber = loss.loss_type in ("huber", "smooth_l1")
    for name, default, is_read in (
        ("huber_schedule", "snr", is_huber),
        ("huber_c", 0.1, is_huber),
        ("huber_scale", 1.0, is_huber and loss.huber_schedule != "snr"),
        ("multires_noise_discount", 0.3, bool(loss.multires_noise_iterations)),
    ):
        if getattr(loss, name) != default and not is_read:
            yield "warning", name, f"{name} has no effect under the current choices", f"remove {name}"
    if saving.save_last_n_epochs and not (saving.save_every_n_epochs or saving.save_n_epoch_ratio):
        yield "warning", "save_last_n_epochs", "save_last_n_epochs has no effect", "set save_every_n_epochs"
    if saving.save_last_n_steps and not saving.save_every_n_steps:
        yield "warning", "save_last_n_steps", "save_last_n_steps has no effect", "set save_every_n_steps"
    if dataset.dataset_config and (dataset.in_json or dataset.train_data_dir):
        yield "warning", "train_data_dir", "dataset_config wins over train_data_dir and in_json", "remove them"


def _ema(settings: Settings) -> Iterator[Finding]:
    if not settings.training.use_ema and settings.training.ema_decay != 0.9999:
        yield "warning", "ema_decay", "ema_decay has no effect without use_ema", "set use_ema"


def _sampling(settings: Settings) -> Iterator[Finding]:
    sampling = settings.sampling
    is_asked = sampling.sample_every_n_steps or sampling.sample_every_n_epochs or sampling.sample_at_first
    if is_asked and not sampling.sample_prompts:
        yield "error", "sample_prompts", "samples are asked for but no prompts are given", "set sample_prompts"
    if sampling.sample_prompts and not is_asked:
        text = "sample_prompts has no effect: nothing says when to draw"
        yield "warning", "sample_prompts", text, "set sample_every_n_steps or sample_every_n_epochs"


def _packages(settings: Settings) -> Iterator[Finding]:
    needed = {"Lion": ("lion_pytorch", "sdtui[optimizers]")}
    module, extra = needed.get(settings.optimizer.optimizer_type, ("", ""))
    if module and importlib.util.find_spec(module) is None:
        text = f"{settings.optimizer.optimizer_type} needs the package {module}"
        yield "error", "optimizer_type", text, f"pip install '{extra}'"
    if settings.memory.xformers and importlib.util.find_spec("xformers") is None:
        yield "error", "xformers", "xformers is not installed", "pip install 'sdtui[cuda]', or use sdpa"


def _buckets(settings: Settings) -> Iterator[Finding]:
    dataset = settings.dataset
    if dataset.enable_bucket and dataset.bucket_reso_steps % 64:
        text = f"bucket_reso_steps = {dataset.bucket_reso_steps}: SD 1.x and 2.x need multiples of 64"
        yield "error", "bucket_reso_steps", text, "set bucket_reso_steps=64"


RULES: tuple[Rule, ...] = (
    _required,
    _output_name,
    _attention,
    _cached_latents,
    _noise,
    _timesteps,
    _prediction,
    _clip_skip,
    _schedule,
    _polynomial,
    _adafactor,
    _text_encoder,
    _without_effect,
    _ema,
    _sampling,
    _packages,
    _buckets,
)

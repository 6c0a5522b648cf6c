"""Rules for noise, timesteps, the prediction and the loss. Torch-free."""

from collections.abc import Iterator

from engine.rules.rule import Finding, rule, set_to, to_default
from engine.settings import Settings

VERIFY = "sd-scripts library/train_util.py, verify_training_args"
LIN = "Lin et al. 2023, arXiv:2305.08891"
HANG = "Hang et al. 2023, arXiv:2303.09556"


@rule("adaptive-noise", "error", why="It is added to noise_offset, and there is none.", source=VERIFY)
def adaptive_noise(settings: Settings) -> Iterator[Finding]:
    """adaptive_noise_scale is set without noise_offset."""
    if settings.loss.adaptive_noise_scale is not None and not settings.loss.noise_offset:
        message = "adaptive_noise_scale has no effect without noise_offset"
        name = "adaptive_noise_scale"
        yield Finding(setting=name, message=message, fix=f"set noise_offset, or remove {name}", values=to_default(name))


@rule(
    "two-low-noises", "warning", why="Both add noise of low frequency, so the picture is drowned twice.",
    source="sd-scripts library/train_util.py, get_noise_noisy_latents_and_timesteps",
)  # fmt: skip
def two_low_noises(settings: Settings) -> Iterator[Finding]:
    """noise_offset and multires_noise_iterations are both set."""
    if settings.loss.noise_offset and settings.loss.multires_noise_iterations:
        message = "noise_offset and multires_noise_iterations both change the same low frequencies"
        name = "multires_noise_iterations"
        yield Finding(setting=name, message=message, fix=f"remove {name}", values=to_default(name))


@rule(
    "large-noise-offset", "warning", why="0.05 to 0.1 is usual; more makes pictures too dark or too bright.",
    source="sd-scripts library/train_util.py, help of --noise_offset: 0.1 is recommended",
)  # fmt: skip
def large_noise_offset(settings: Settings) -> Iterator[Finding]:
    """noise_offset is more than twice the usual."""
    offset = settings.loss.noise_offset
    if offset and offset > 0.2:
        message = f"noise_offset = {offset:g} is far above the usual 0.05 to 0.1"
        yield Finding(
            setting="noise_offset", message=message, fix="set noise_offset=0.1", values=set_to(noise_offset=0.1)
        )


@rule(
    "large-input-noise", "warning", why="0.1 was found best for input perturbation.",
    source="Ning et al. 2023, arXiv:2301.11706",
)  # fmt: skip
def large_input_noise(settings: Settings) -> Iterator[Finding]:
    """ip_noise_gamma is more than twice the published value."""
    gamma = settings.loss.ip_noise_gamma
    if gamma and gamma > 0.2:
        message = f"ip_noise_gamma = {gamma:g} is far above the usual 0.1"
        fix = "set ip_noise_gamma=0.1"
        yield Finding(setting="ip_noise_gamma", message=message, fix=fix, values=set_to(ip_noise_gamma=0.1))


@rule("timesteps", "error", why="No timestep lies between them.", source="DDPM, Ho et al. 2020, arXiv:2006.11239")
def timesteps(settings: Settings) -> Iterator[Finding]:
    """min_timestep lies above max_timestep."""
    low, high = settings.loss.min_timestep, settings.loss.max_timestep
    if low is not None and high is not None and low > high:
        message = f"min_timestep {low} lies above max_timestep {high}"
        values = set_to(min_timestep=high - 1, max_timestep=min(low + 1, 1000))
        yield Finding(setting="min_timestep", message=message, fix="swap them", values=values)


@rule(
    "few-timesteps", "info", why="Noise levels that are not trained drift from those that are.",
    source="Balaji et al. 2022, arXiv:2211.01324, on experts for noise levels",
)  # fmt: skip
def few_timesteps(settings: Settings) -> Iterator[Finding]:
    """Fewer than a tenth of the timesteps are trained."""
    low, high = settings.loss.min_timestep or 0, settings.loss.max_timestep or 1000
    if 0 <= high - low < 100:
        name = "min_timestep" if settings.loss.min_timestep else "max_timestep"
        message = f"only the timesteps {low} to {high} of 1000 are trained"
        yield Finding(
            setting=name, message=message, fix="remove both for all of them",
            values=to_default("min_timestep", "max_timestep"),
        )  # fmt: skip


@rule("scale-needs-v", "error", why="It undoes the weight that v-prediction gives to the timesteps.", source=VERIFY)
def scale_needs_v(settings: Settings) -> Iterator[Finding]:
    """scale_v_pred_loss_like_noise_pred is set for a model that predicts noise."""
    name = "scale_v_pred_loss_like_noise_pred"
    if settings.model.v_parameterization is False and settings.loss.scale_v_pred_loss_like_noise_pred:
        message = f"{name} needs a v-prediction model"
        yield Finding(
            setting=name, message=message, fix=f"remove {name}, or set v_parameterization", values=to_default(name)
        )


@rule("v-like-needs-epsilon", "error", why="A v-prediction model has that loss already.", source=VERIFY)
def v_like_needs_epsilon(settings: Settings) -> Iterator[Finding]:
    """v_pred_like_loss is set for a v-prediction model."""
    name = "v_pred_like_loss"
    if settings.model.v_parameterization and settings.loss.v_pred_like_loss:
        message = f"{name} is for models that predict noise"
        yield Finding(setting=name, message=message, fix=f"remove {name}", values=to_default(name))


@rule(
    "zero-snr-epsilon", "warning", why="At zero SNR the input is the noise itself, so predicting it teaches nothing.",
    source=f"{LIN}, section 3.2; {VERIFY}",
)  # fmt: skip
def zero_snr_epsilon(settings: Settings) -> Iterator[Finding]:
    """zero_terminal_snr is set for a model that predicts noise."""
    name = "zero_terminal_snr"
    if settings.model.v_parameterization is False and settings.loss.zero_terminal_snr:
        message = f"{name} teaches nothing at the last step to a model that predicts noise"
        fix = f"remove {name}, or train a v-prediction model"
        yield Finding(setting=name, message=message, fix=fix, values=to_default(name))


@rule(
    "zero-snr-offset", "warning", why="Both mend the same flaw, that pictures of one brightness can't be drawn.",
    source=LIN,
)  # fmt: skip
def zero_snr_offset(settings: Settings) -> Iterator[Finding]:
    """noise_offset is set beside zero_terminal_snr."""
    if settings.loss.zero_terminal_snr and settings.loss.noise_offset:
        message = "noise_offset is not needed with zero_terminal_snr, which reaches darks and lights by itself"
        yield Finding(
            setting="noise_offset", message=message, fix="remove noise_offset", values=to_default("noise_offset")
        )


@rule("two-weightings", "warning", why="Their weights are multiplied, which neither was made for.", source=HANG)
def two_weightings(settings: Settings) -> Iterator[Finding]:
    """min_snr_gamma and debiased_estimation_loss are both set."""
    if settings.loss.min_snr_gamma and settings.loss.debiased_estimation_loss:
        message = "min_snr_gamma and debiased_estimation_loss both weigh timesteps, and are multiplied"
        name = "debiased_estimation_loss"
        yield Finding(setting=name, message=message, fix=f"remove {name}", values=to_default(name))


@rule("min-snr-range", "warning", why="5 was found best; 1 trains the noisiest timesteps alone.", source=HANG)
def min_snr_range(settings: Settings) -> Iterator[Finding]:
    """min_snr_gamma is far from the published 5."""
    gamma = settings.loss.min_snr_gamma
    if gamma and not 1 <= gamma <= 20:
        message = f"min_snr_gamma = {gamma:g} is far from the usual 5"
        yield Finding(
            setting="min_snr_gamma", message=message, fix="set min_snr_gamma=5", values=set_to(min_snr_gamma=5.0)
        )


RULES = (
    adaptive_noise, two_low_noises, large_noise_offset, large_input_noise, timesteps, few_timesteps, scale_needs_v,
    v_like_needs_epsilon, zero_snr_epsilon, zero_snr_offset, two_weightings, min_snr_range,
)  # fmt: skip

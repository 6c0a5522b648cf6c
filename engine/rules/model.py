"""Rules that compare the settings with the model's file, read without its weights. Torch-free."""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.models.inspect import ModelInfo
from engine.rules.rule import Finding, rule, set_to, to_default
from engine.settings import Settings

FULL_SIZE = 100_000_000
"""Parameters of a UNet above which the usual rates of whole SD models hold; SD 1.x has 860 million."""
KOHYA = "sd-scripts docs/fine_tune_README_ja.md: 1e-6 to 5e-6"
USUAL_RATES = {"AdamW": (5e-7, 1e-5), "AdamW8bit": (5e-7, 1e-5), "Lion": (5e-8, 3e-6)}
HYPERNETWORK_RATES = (2e-6, 1e-4)  # Above, they turn to noise: A1111 issue 2269.


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSubject:
    """The settings, and what is known of the model; None where it is on a hub and not on this machine."""

    settings: Settings
    info: ModelInfo | None

    @property
    def is_trainable(self) -> bool:
        """Whether the file is known and can be trained."""
        return self.info is not None and not self.info.obstacle


@rule(
    "v2-mismatch",
    "error",
    why="The two families have other text encoders; training refuses it.",
    source="engine/models/inspect.py",
)
def v2_mismatch(subject: ModelSubject) -> Iterator[Finding]:
    """The setting v2 contradicts the model's file."""
    info, v2 = subject.info, subject.settings.model.v2
    if info is None or not subject.is_trainable or v2 is None or v2 == (info.family == "sd2"):
        return
    message = f"v2 = {str(v2).lower()}, but the model is {info.what}"
    yield Finding(setting="v2", message=message, fix="remove v2", values=to_default("v2"))


@rule(
    "prediction-unknown", "error", why="Trained to the wrong target, a model draws noise; training refuses to guess.",
    source="diffusers issue 1429",
)  # fmt: skip
def prediction_unknown(subject: ModelSubject) -> Iterator[Finding]:
    """Nothing says whether an SD 2.x model predicts noise or v."""
    info = subject.info
    if info is None or not subject.is_trainable or info.prediction_type is not None:
        return
    if subject.settings.model.v_parameterization is None:
        yield Finding(
            setting="v_parameterization",
            message="the file does not tell whether this SD 2.x model predicts noise or v",
            fix="set v_parameterization: true for a 768-v model, false for a base model; `probe` measures it",
        )


@rule(
    "prediction-mismatch", "warning", why="Trained to the wrong target, a model draws noise or flat pictures.",
    source="diffusers issue 1429, peft issue 421",
)  # fmt: skip
def prediction_mismatch(subject: ModelSubject) -> Iterator[Finding]:
    """The setting v_parameterization contradicts the model's file."""
    info, is_v = subject.info, subject.settings.model.v_parameterization
    if info is None or not subject.is_trainable or None in (info.prediction_type, is_v):
        return
    if is_v != (info.prediction_type == "v_prediction"):
        shown = "v" if info.prediction_type == "v_prediction" else "noise (epsilon)"
        message = f"v_parameterization = {str(is_v).lower()}, but by its files the model predicts {shown}"
        name = "v_parameterization"
        yield Finding(setting=name, message=message, fix=f"remove {name}", values=to_default(name))


@rule(
    "unusual-rate",
    "warning",
    why="Higher rates destroy what a whole model knows; lower ones teach nothing.",
    source=f"{KOHYA}; Lion takes a third to a tenth: Chen et al. 2023, arXiv:2302.06675",
)
def unusual_rate(subject: ModelSubject) -> Iterator[Finding]:
    """A learning rate lies outside the usual range for a whole SD model."""
    settings, info = subject.settings, subject.info
    usual = USUAL_RATES.get(settings.optimizer.optimizer_type)
    if usual is None or (info is not None and info.parameters.get("unet", 0) < FULL_SIZE):
        return
    low, high = HYPERNETWORK_RATES if settings.training.train_hypernetwork else usual
    names = ["learning_rate", "learning_rate_te"] if settings.training.train_text_encoder else ["learning_rate"]
    for name in names:
        rate = getattr(settings.optimizer, name)
        if rate and not low <= rate <= high:
            message = f"{name} = {rate:g} is {'above' if rate > high else 'below'} the usual {low:g} to {high:g}"
            proposed = 2e-5 if settings.training.train_hypernetwork else min(5e-6, high / 2)
            yield Finding(
                setting=name, message=f"{message} of {settings.optimizer.optimizer_type}",
                fix=f"set {name}={proposed:g}", values=set_to(**{name: proposed}),
            )  # fmt: skip


@rule(
    "foreign-vae",
    "info",
    why="Latents of another VAE are another language to the UNet, unless it was tuned from the same.",
    source="Rombach et al. 2022, arXiv:2112.10752",
)
def foreign_vae(subject: ModelSubject) -> Iterator[Finding]:
    """Another VAE than the model's own is used."""
    if subject.settings.model.vae:
        message = "latents are encoded by another VAE than the model's own, and that one is saved with it"
        yield Finding(setting="vae", message=message, fix="remove vae unless it was tuned from this model's")


RULES = (v2_mismatch, prediction_unknown, prediction_mismatch, unusual_rate, foreign_vae)

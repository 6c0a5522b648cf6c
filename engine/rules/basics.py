"""Rules for what every run needs, where it goes, and when it saves and draws. Torch-free."""

import importlib.util
from collections.abc import Iterator
from typing import get_args

from engine.rules.rule import Finding, rule, set_to, to_default
from engine.setting_types import OptimizerName
from engine.settings import Settings

CONTRACT = "docs/architecture.md"


@rule("no-model", "error", why="There is nothing to train.", source=CONTRACT)
def no_model(settings: Settings) -> Iterator[Finding]:
    """No model is named."""
    if not settings.model.pretrained_model_name_or_path:
        name = "pretrained_model_name_or_path"
        yield Finding(setting=name, message="no model is named", fix=f"set {name}")


@rule("no-output", "error", why="A run is a folder.", source=CONTRACT)
def no_output(settings: Settings) -> Iterator[Finding]:
    """No folder for the run is named."""
    if not settings.saving.output_dir:
        yield Finding(setting="output_dir", message="no folder for the run is named", fix="set output_dir")


@rule("no-pictures-named", "error", why="There is nothing to learn from.", source=CONTRACT)
def no_pictures_named(settings: Settings) -> Iterator[Finding]:
    """Neither a data-set file nor a folder nor a metadata file is named."""
    dataset = settings.dataset
    if not (dataset.dataset_config or dataset.train_data_dir or dataset.in_json):
        message, fix = "no pictures are named", "set dataset_config or train_data_dir"
        yield Finding(setting="train_data_dir", message=message, fix=fix)


@rule("output-name", "error", why="Model files carry this name on every system.", source="Windows file naming rules")
def output_name(settings: Settings) -> Iterator[Finding]:
    """output_name is no plain file name."""
    name = settings.saving.output_name
    if set(name) & set('/\\:*?"<>|') or name.strip(". ") != name or any(ord(char) < 32 for char in name):
        message = "output_name must be a plain file name"
        fix = 'leave out / \\ : * ? " < > |'
        yield Finding(setting="output_name", message=message, fix=fix, values=to_default("output_name"))


@rule(
    "two-data-sets", "warning", why="The data-set file names its own pictures.",
    source="sd-scripts library/config_util.py, fine_tune.py",
)  # fmt: skip
def two_data_sets(settings: Settings) -> Iterator[Finding]:
    """train_data_dir or in_json is given beside dataset_config, which wins."""
    dataset = settings.dataset
    if not dataset.dataset_config:
        return
    for name in ("train_data_dir", "in_json"):
        if getattr(dataset, name):
            message = f"{name} has no effect: dataset_config names the pictures"
            yield Finding(setting=name, message=message, fix=f"remove {name}", values=to_default(name))


@rule(
    "no-prompts", "error", why="Samples are drawn from prompts.",
    source="sd-scripts library/train_util.py, sample_images",
)  # fmt: skip
def no_prompts(settings: Settings) -> Iterator[Finding]:
    """Samples are asked for, but no prompts are given."""
    if _draws(settings) and not settings.sampling.sample_prompts:
        message = "samples are asked for but no prompts are given"
        asked = [name for name in _OCCASIONS if getattr(settings.sampling, name)]
        yield Finding(setting="sample_prompts", message=message, fix="set sample_prompts", values=to_default(*asked))


@rule(
    "idle-prompts", "warning", why="Prompts say what to draw, not when.",
    source="sd-scripts library/train_util.py, sample_images",
)  # fmt: skip
def idle_prompts(settings: Settings) -> Iterator[Finding]:
    """Prompts are given, but nothing says when to draw."""
    if settings.sampling.sample_prompts and not _draws(settings):
        yield Finding(
            setting="sample_prompts",
            message="sample_prompts has no effect: nothing says when to draw",
            fix="set sample_every_n_epochs=1",
            values=set_to(sample_every_n_epochs=1),
        )


_OCCASIONS = ("sample_every_n_steps", "sample_every_n_epochs", "sample_at_first")


def _draws(settings: Settings) -> bool:
    return any(getattr(settings.sampling, name) for name in _OCCASIONS)


@rule(
    "epochs-win", "warning", why="Only one of two settings for the same thing can count.",
    source="sd-scripts fine_tune.py; library/train_util.py, sample_images and get_epoch_ckpt_name",
)  # fmt: skip
def epochs_win(settings: Settings) -> Iterator[Finding]:
    """A setting counts nothing beside another one that says the same thing in another unit."""
    training, sampling, saving = settings.training, settings.sampling, settings.saving
    default_steps = type(training).model_fields["max_train_steps"].default
    for name, winner, is_both in (
        ("max_train_steps", "max_train_epochs",
         training.max_train_epochs is not None and training.max_train_steps != default_steps),
        ("sample_every_n_steps", "sample_every_n_epochs",
         bool(sampling.sample_every_n_epochs and sampling.sample_every_n_steps)),
        ("save_every_n_epochs", "save_n_epoch_ratio",
         bool(saving.save_n_epoch_ratio and saving.save_every_n_epochs)),
    ):  # fmt: skip
        if is_both:
            message = f"{name} has no effect beside {winner}, which wins"
            yield Finding(setting=name, message=message, fix=f"remove {name}", values=to_default(name))


_PACKAGES = {
    "Lion": "lion_pytorch",
    "Prodigy": "prodigyopt",
    **dict.fromkeys(("AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree"), "schedulefree"),
    **dict.fromkeys((name for name in get_args(OptimizerName) if name.startswith("DAdapt")), "dadaptation"),
}


@rule("packages", "error", why="The choice is made by a package that is not there.", source="pyproject.toml, extras")
def packages(settings: Settings) -> Iterator[Finding]:
    """A choice needs a package that this machine does not have."""
    chosen = settings.optimizer.optimizer_type
    module = _PACKAGES.get(chosen, "")
    if module and importlib.util.find_spec(module) is None:
        message = f"{chosen} needs the package {module}"
        yield Finding(setting="optimizer_type", message=message, fix="pip install 'sdtui[optimizers]'")
    if settings.memory.xformers and importlib.util.find_spec("xformers") is None:
        yield Finding(
            setting="xformers",
            message="xformers is not installed on this machine",
            fix="pip install 'sdtui[cuda]', or set sdpa=true, which is as fast",
            values=(*to_default("xformers"), *set_to(sdpa=True)),
        )


@rule("log-with", "error", why="TensorBoard's files need a place.", source="sd-scripts library/train_util.py")
def log_with(settings: Settings) -> Iterator[Finding]:
    """TensorBoard is asked for, but no folder for its files is named."""
    chosen = settings.logging
    if chosen.log_with in ("tensorboard", "all") and not chosen.logging_dir:
        message = f"log_with={chosen.log_with} needs logging_dir, a folder for TensorBoard's files"
        yield Finding(setting="logging_dir", message=message, fix="set logging_dir", values=to_default("log_with"))


@rule("wandb-missing", "error", why="It is an extra of this program.", source="pyproject.toml, extras")
def wandb_missing(settings: Settings) -> Iterator[Finding]:
    """Weights & Biases is asked for on a machine that does not have it."""
    if settings.logging.log_with in ("wandb", "all") and importlib.util.find_spec("wandb") is None:
        message = "wandb is not installed on this machine"
        yield Finding(
            setting="log_with", message=message, fix="pip install 'sdtui[wandb]'", values=to_default("log_with")
        )


RULES = (
    log_with, wandb_missing,
    no_model, no_output, no_pictures_named, output_name, two_data_sets, no_prompts, idle_prompts, epochs_win, packages,
)  # fmt: skip

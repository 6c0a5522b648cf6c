"""Rules for training a hypernetwork. Torch-free."""

from collections.abc import Iterator

from engine.rules.rule import Finding, rule, set_to, to_default
from engine.settings import Settings

A1111 = "A1111 modules/hypernetworks/hypernetwork.py"


@rule(
    "hypernetwork-alone", "error", why="A hypernetwork is trained on a model that stays as it is.", source=A1111,
)  # fmt: skip
def hypernetwork_alone(settings: Settings) -> Iterator[Finding]:
    """train_hypernetwork and train_text_encoder are both set."""
    if settings.training.train_hypernetwork and settings.training.train_text_encoder:
        message = "train_text_encoder with train_hypernetwork: the text encoder stays as it is"
        name = "train_text_encoder"
        yield Finding(setting=name, message=message, fix=f"remove {name}", values=to_default(name))


@rule(
    "hypernetwork-format", "error", why="A hypernetwork is one file; no diffusers folder holds one.", source=A1111,
)  # fmt: skip
def hypernetwork_format(settings: Settings) -> Iterator[Finding]:
    """A hypernetwork is to be saved as a diffusers folder."""
    kind = settings.saving.save_model_as
    if settings.training.train_hypernetwork and kind.startswith("diffusers"):
        message = f"save_model_as = {kind}: a hypernetwork is a single file"
        fix = "set save_model_as=ckpt for the .pt that A1111 reads, or safetensors"
        yield Finding(setting="save_model_as", message=message, fix=fix, values=set_to(save_model_as="ckpt"))


@rule("hypernetwork-reader", "info", why="The web UI looks for .pt files only.", source=A1111)
def hypernetwork_reader(settings: Settings) -> Iterator[Finding]:
    """A hypernetwork is saved as .safetensors, which the web UI does not load."""
    if settings.training.train_hypernetwork and settings.saving.save_model_as == "safetensors":
        message = "a hypernetwork saved as safetensors is read by this program, not by A1111's web UI"
        fix = "set save_model_as=ckpt for a .pt, or convert the file afterwards"
        yield Finding(setting="save_model_as", message=message, fix=fix, values=set_to(save_model_as="ckpt"))


@rule(
    "hypernetwork-xformers", "info",
    why="sd-scripts can't train one with diffusers_xformers; here it works on what keys and values are made from.",
    source="sd-scripts docs/fine_tune_README_ja.md, diffusers_xformers; engine/models/hypernetwork.py",
)  # fmt: skip
def hypernetwork_xformers(settings: Settings) -> Iterator[Finding]:
    """A hypernetwork is trained with attention by xformers, as diffusers_xformers says."""
    if settings.training.train_hypernetwork and settings.memory.xformers:
        message = "xformers with train_hypernetwork: it works here, sd-scripts refuses diffusers_xformers for it"
        fix = "keep it, or set sdpa=true, which both can do"
        values = (*to_default("xformers"), *set_to(sdpa=True))
        yield Finding(setting="xformers", message=message, fix=fix, values=values)


RULES = (hypernetwork_alone, hypernetwork_format, hypernetwork_reader, hypernetwork_xformers)

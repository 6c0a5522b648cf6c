"""Rules for buckets, captions and augmentation as the settings give them; a data-set file is checked with the plan."""

from collections.abc import Iterator

from engine.rules.rule import Finding, rule, set_to, to_default
from engine.settings import Settings


@rule(
    "bucket-steps", "error", why="The UNet halves the latents three times, and latents are an eighth of the pixels.",
    source="sd-scripts fine_tune.py, verify_bucket_reso_steps(64)",
)  # fmt: skip
def bucket_steps(settings: Settings) -> Iterator[Finding]:
    """bucket_reso_steps is no multiple of 64."""
    dataset = settings.dataset
    if dataset.enable_bucket and dataset.bucket_reso_steps % 64:
        message = f"bucket_reso_steps = {dataset.bucket_reso_steps}: SD 1.x and 2.x need multiples of 64"
        fix = "set bucket_reso_steps=64"
        yield Finding(setting="bucket_reso_steps", message=message, fix=fix, values=set_to(bucket_reso_steps=64))


@rule(
    "bucket-limits",
    "error",
    why="No bucket lies between them.",
    source="sd-scripts library/model_util.py, make_bucket_resolutions",
)
def bucket_limits(settings: Settings) -> Iterator[Finding]:
    """min_bucket_reso lies above max_bucket_reso."""
    dataset = settings.dataset
    if dataset.enable_bucket and dataset.min_bucket_reso > dataset.max_bucket_reso:
        message = f"min_bucket_reso {dataset.min_bucket_reso} lies above max_bucket_reso {dataset.max_bucket_reso}"
        values = set_to(min_bucket_reso=dataset.max_bucket_reso, max_bucket_reso=dataset.min_bucket_reso)
        yield Finding(setting="min_bucket_reso", message=message, fix="swap them", values=values)


@rule(
    "clip-skip-v2",
    "warning",
    why="SD 2.x is trained on the penultimate layer already.",
    source="sd-scripts library/train_util.py, verify_training_args",
)
def clip_skip_v2(settings: Settings) -> Iterator[Finding]:
    """clip_skip is set for SD 2.x."""
    if settings.model.v2 and (settings.model.clip_skip or 1) > 1:
        message = "SD 2.x is trained on the penultimate layer already; clip_skip takes one further away"
        yield Finding(setting="clip_skip", message=message, fix="remove clip_skip", values=to_default("clip_skip"))


@rule(
    "deep-clip-skip",
    "warning",
    why="Models are trained on the last or the penultimate layer.",
    source="sd-scripts docs/fine_tune_README_ja.md, clip_skip",
)
def deep_clip_skip(settings: Settings) -> Iterator[Finding]:
    """clip_skip takes a layer that no usual model was trained on."""
    if not settings.model.v2 and (settings.model.clip_skip or 1) > 2:
        message = f"clip_skip = {settings.model.clip_skip} takes a layer that no usual model is trained on"
        yield Finding(setting="clip_skip", message=message, fix="set clip_skip=2", values=set_to(clip_skip=2))


@rule(
    "high-caption-dropout", "warning", why="0.05 to 0.1 is enough to teach unguided generation.",
    source="Ho and Salimans 2022, arXiv:2207.12598",
)  # fmt: skip
def high_caption_dropout(settings: Settings) -> Iterator[Finding]:
    """More than half of the captions are dropped."""
    rate = settings.dataset.caption_dropout_rate
    if rate > 0.5:
        message = f"caption_dropout_rate = {rate:g} hides most captions from the model"
        fix, values = "set caption_dropout_rate=0.1", set_to(caption_dropout_rate=0.1)
        yield Finding(setting="caption_dropout_rate", message=message, fix=fix, values=values)


@rule(
    "no-captions-shown",
    "warning",
    why="Every n-th epoch is without captions, and n is 1.",
    source="sd-scripts library/train_util.py, process_caption",
)
def no_captions_shown(settings: Settings) -> Iterator[Finding]:
    """caption_dropout_every_n_epochs hides every caption of every epoch."""
    name = "caption_dropout_every_n_epochs"
    if settings.dataset.caption_dropout_every_n_epochs == 1:
        message = f"{name} = 1 trains every epoch without captions"
        yield Finding(setting=name, message=message, fix=f"remove {name}", values=to_default(name))


RULES = (bucket_steps, bucket_limits, clip_skip_v2, deep_clip_skip, high_caption_dropout, no_captions_shown)

"""Rules for attention, precision and caches. Torch-free."""

from collections.abc import Iterator

from engine.rules.rule import Finding, rule, set_to, to_default
from engine.settings import Settings

_ATTENTIONS = ("sdpa", "xformers", "mem_eff_attn")


@rule(
    "two-attentions",
    "error",
    why="Attention is computed in one way.",
    source="sd-scripts fine_tune.py, set_diffusers_xformers_flag",
)
def two_attentions(settings: Settings) -> Iterator[Finding]:
    """More than one of sdpa, xformers and mem_eff_attn is set."""
    chosen = [name for name in _ATTENTIONS if getattr(settings.memory, name)]
    if len(chosen) > 1:
        message = f"{' and '.join(chosen)} exclude each other"
        fix = f"keep only {chosen[0]}"
        yield Finding(setting=chosen[1], message=message, fix=fix, values=to_default(*chosen[1:]))


@rule(
    "xformers-fp32", "warning", why="On some cards xformers has no operator for float32 heads of 80.",
    source="diffusers issue 4144; sd-scripts docs/fine_tune_README_ja.md",
)  # fmt: skip
def xformers_fp32(settings: Settings) -> Iterator[Finding]:
    """Attention by xformers is chosen without mixed precision."""
    if settings.memory.xformers and settings.memory.mixed_precision == "no":
        yield Finding(
            setting="xformers",
            message="xformers in float32 fails on some cards, and sdpa is as lean",
            fix="set sdpa=true instead of xformers",
            values=(*to_default("xformers"), *set_to(sdpa=True)),
        )


@rule(
    "cached-augmentation",
    "error",
    why="Latents are encoded once, so each picture would look the same for good.",
    source="sd-scripts fine_tune.py, is_latent_cacheable",
)
def cached_augmentation(settings: Settings) -> Iterator[Finding]:
    """Latents are cached although pictures change from epoch to epoch."""
    memory, dataset = settings.memory, settings.dataset
    if not (memory.cache_latents or memory.cache_latents_to_disk):
        return
    for name in ("color_aug", "random_crop", "face_crop_aug_range"):
        if getattr(dataset, name):
            message = f"{name} changes pictures, so their latents can't be cached"
            yield Finding(setting=name, message=message, fix=f"remove {name}", values=to_default(name))


@rule(
    "sliced-attention", "info", why="Slices run one after another.",
    source="engine/attention.py; diffusers, documentation of attention slicing",
)  # fmt: skip
def sliced_attention(settings: Settings) -> Iterator[Finding]:
    """mem_eff_attn is chosen, the slowest kind of attention."""
    if settings.memory.mem_eff_attn:
        yield Finding(
            setting="mem_eff_attn",
            message="mem_eff_attn is the slowest kind; torch's own attention is as lean where it has a kernel",
            fix="set sdpa=true instead of mem_eff_attn",
            values=(*to_default("mem_eff_attn"), *set_to(sdpa=True)),
        )


RULES = (two_attentions, xformers_fp32, cached_augmentation, sliced_attention)

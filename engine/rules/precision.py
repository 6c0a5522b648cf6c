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
    "half-weights", "error", why="Weights in one half precision can't be computed with in another.",
    source="sd-scripts fine_tune.py; library/train_util.py, verify_training_args",
)  # fmt: skip
def half_weights(settings: Settings) -> Iterator[Finding]:
    """full_fp16 or full_bf16 is set without the mixed precision that belongs to it."""
    memory = settings.memory
    for name, needed in (("full_fp16", "fp16"), ("full_bf16", "bf16")):
        if getattr(memory, name) and memory.mixed_precision != needed:
            message = f"{name} does not go with mixed_precision={memory.mixed_precision}"
            fix, values = f"set mixed_precision={needed}", set_to(mixed_precision=needed)
            yield Finding(setting=name, message=message, fix=fix, values=values)


@rule(
    "full-fp16", "warning", why="Small updates are rounded away, and the run may diverge.",
    source="sd-scripts docs/fine_tune_README_ja.md, full_fp16",
)  # fmt: skip
def full_fp16(settings: Settings) -> Iterator[Finding]:
    """Weights are trained in fp16."""
    memory = settings.memory
    if memory.full_fp16 and memory.mixed_precision == "fp16":
        yield Finding(
            setting="full_fp16",
            message="full_fp16 loses accuracy; full_bf16, whose weights are rounded at random, takes as little memory",
            fix="set full_bf16=true and mixed_precision=bf16 instead, where the card has bf16",
            values=(*to_default("full_fp16"), *set_to(full_bf16=True, mixed_precision="bf16")),
        )


@rule(
    "fused-accumulation", "error", why="Each gradient is used and freed as soon as it is there, so none add up.",
    source="sd-scripts library/train_util.py, get_optimizer",
)  # fmt: skip
def fused_accumulation(settings: Settings) -> Iterator[Finding]:
    """fused_backward_pass is set with more than one batch for each step."""
    batches = settings.training.gradient_accumulation_steps
    if settings.memory.fused_backward_pass and batches > 1:
        yield Finding(
            setting="fused_backward_pass",
            message=f"fused_backward_pass keeps no gradients to add up over {batches} batches",
            fix="set gradient_accumulation_steps=1",
            values=set_to(gradient_accumulation_steps=1),
        )


@rule(
    "fused-fp16", "error", why="Loss scaling skips an update once any gradient has overflowed; here it is too late.",
    source="torch.amp.GradScaler",
)  # fmt: skip
def fused_fp16(settings: Settings) -> Iterator[Finding]:
    """fused_backward_pass is set with fp16."""
    if settings.memory.fused_backward_pass and settings.memory.mixed_precision == "fp16":
        yield Finding(
            setting="fused_backward_pass",
            message="fused_backward_pass updates before it is known whether fp16's gradients overflowed",
            fix="set mixed_precision=bf16 without full_fp16",
            values=(*set_to(mixed_precision="bf16"), *to_default("full_fp16")),
        )


@rule(
    "fused-clip", "info", why="The norm of all gradients together is known only when they have been used.",
    source="sd-scripts sdxl_train.py",
)  # fmt: skip
def fused_clip(settings: Settings) -> Iterator[Finding]:
    """max_grad_norm limits each tensor by itself under fused_backward_pass."""
    if settings.memory.fused_backward_pass and settings.optimizer.max_grad_norm:
        yield Finding(
            setting="max_grad_norm",
            message="under fused_backward_pass max_grad_norm limits each tensor's gradient, not that of all together",
            fix="set max_grad_norm=0 to limit none",
            values=set_to(max_grad_norm=0.0),
        )


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


RULES = (
    two_attentions, half_weights, full_fp16, fused_accumulation, fused_fp16, fused_clip, xformers_fp32,
    cached_augmentation, sliced_attention,
)  # fmt: skip

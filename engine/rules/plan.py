"""Rules that look at the pictures, their captions and what the plan makes of them. Torch-free.

They read columns, so that 100,000 pictures take milliseconds; what needs every caption is in the facts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import Severity, Values, safe_text
from engine.rules.rule import Finding, rule, set_to, to_default

if TYPE_CHECKING:
    from engine.plan import Plan
    from engine.plan_facts import PlanFacts

ORDER = "sd-scripts library/train_util.py, BucketManager: a batch is of one bucket"
MUCH_CUT = 0.4
_SHOWN = 3  # Names in a message.


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSubject:
    """A plan, and what reading every caption and file has told; None while that is not known."""

    plan: "Plan"
    facts: "PlanFacts | None" = None

    @property
    def pictures_setting(self) -> str:
        """The setting that names the pictures."""
        dataset = self.plan.settings.dataset
        return next((name for name in ("dataset_config", "in_json") if getattr(dataset, name)), "train_data_dir")


@rule(
    "short-batches",
    "warning",
    why="A batch holds pictures of one bucket, so small buckets train in small batches.",
    source=ORDER,
)
def short_batches(subject: PlanSubject) -> Iterator[Finding]:
    """A fifth of the pictures lies in buckets that hold less than one batch."""
    buckets = subject.plan.buckets
    small = [bucket for bucket in buckets if bucket.items < bucket.batch_size]
    items, total = sum(bucket.items for bucket in small), sum(bucket.items for bucket in buckets)
    if items and 5 * items >= total:
        yield Finding(
            setting="train_batch_size",
            message=f"{items} of {total} pictures lie in {len(small)} buckets that hold less than one batch",
            fix="lower train_batch_size, raise bucket_reso_steps to merge buckets, or narrow min and max_bucket_reso",
        )


@rule(
    "small-epoch",
    "warning",
    why="A step never spans two epochs, so it gets what is left.",
    source="docs/architecture.md",
)
def small_epoch(subject: PlanSubject) -> Iterator[Finding]:
    """A step asks for more batches than an epoch has."""
    plan = subject.plan
    asked = plan.settings.training.gradient_accumulation_steps
    if asked > plan.batches_per_epoch:
        yield Finding(
            setting="gradient_accumulation_steps",
            message=f"gradient_accumulation_steps = {asked}, but an epoch has {plan.batches_per_epoch} batches",
            fix=f"set gradient_accumulation_steps={plan.batches_per_epoch}, or raise repeats",
            values=set_to(gradient_accumulation_steps=plan.batches_per_epoch),
        )


@rule("few-epochs", "warning", why="What is not shown is not learnt.", source="arithmetic")
def few_epochs(subject: PlanSubject) -> Iterator[Finding]:
    """The run ends before every picture was shown once."""
    plan = subject.plan
    if plan.steps < plan.steps_per_epoch:
        share = plan.steps / plan.steps_per_epoch
        yield Finding(
            setting="max_train_steps",
            message=f"{plan.steps} steps show {share:.0%} of the pictures: an epoch has {plan.steps_per_epoch} steps",
            fix=f"set max_train_steps={plan.steps_per_epoch} or more",
            values=set_to(max_train_steps=plan.steps_per_epoch),
        )


@rule(
    "many-epochs",
    "info",
    why="Pictures seen a hundred times are learnt by heart.",
    source="Carlini et al. 2023, arXiv:2301.13188",
)
def many_epochs(subject: PlanSubject) -> Iterator[Finding]:
    """Every picture is shown more than a hundred times."""
    plan = subject.plan
    showings = plan.steps / plan.steps_per_epoch * int(plan.catalog.repeats_N.max(initial=1))
    if showings > 100:
        yield Finding(
            setting="max_train_epochs" if plan.settings.training.max_train_epochs else "max_train_steps",
            message=f"every picture is shown about {showings:.0f} times ({plan.epochs} epochs)",
            fix="compare the models saved on the way, or take fewer steps or more pictures",
        )


@rule("beyond-the-run", "warning", why="It would come after the last step.", source="sd-scripts library/train_util.py")
def beyond_the_run(subject: PlanSubject) -> Iterator[Finding]:
    """A save or sample is asked for after more steps or epochs than the run has."""
    plan, settings = subject.plan, subject.plan.settings
    for section, name, last in (
        ("saving", "save_every_n_steps", plan.steps),
        ("saving", "save_every_n_epochs", plan.epochs),
        ("sampling", "sample_every_n_steps", plan.steps),
        ("sampling", "sample_every_n_epochs", plan.epochs),
    ):
        value = getattr(getattr(settings, section), name)
        if value and value > last:
            unit = "steps" if name.endswith("steps") else "epochs"
            message = f"{name} = {value} lies beyond the run's {last} {unit}"
            half = max(1, last // 2)
            yield Finding(setting=name, message=message, fix=f"set {name}={half}", values=set_to(**{name: half}))


@rule(
    "much-cut",
    "warning",
    why="What is cut away can't be learnt, though the caption names it.",
    source="sd-scripts issues 473 and 777",
)
def much_cut(subject: PlanSubject) -> Iterator[Finding]:
    """Pictures lose more than four tenths of their area to the crop; a remark where they are fewer than a fifth."""
    cut_N = subject.plan.cut_fractions()
    count = int((cut_N > MUCH_CUT).sum())
    if not count:
        return
    worst = safe_text(subject.plan.catalog.keys[int(cut_N.argmax())], limit=60)
    message = f"{count} pictures lose more than {MUCH_CUT:.0%} of their area, {worst} {cut_N.max():.0%}"
    severity: Severity = "warning" if 5 * count >= len(cut_N) else "info"
    setting, fix = "max_bucket_reso", "widen min_bucket_reso and max_bucket_reso"
    values: Values = ()
    if not all(part.enable_bucket for part in subject.plan.config.datasets):
        if subject.plan.settings.dataset.dataset_config:
            setting, fix = "dataset_config", "set enable_bucket = true in the data-set file"
        else:
            setting, fix, values = "enable_bucket", "set enable_bucket=true", set_to(enable_bucket=True)
    yield Finding(setting=setting, message=message, fix=fix, values=values, severity=severity)


@rule(
    "enlarged",
    "info",
    why="Enlarged pictures are blurred, and the model learns to draw them so.",
    source="sd-scripts docs/train_README-en.md, bucket_no_upscale",
)
def enlarged(subject: PlanSubject) -> Iterator[Finding]:
    """Pictures are smaller than they are trained."""
    plan = subject.plan
    factor_N2 = plan.resized_N2 / plan.catalog.sizes_N2
    factor_N = factor_N2[:, 0].clip(min=factor_N2[:, 1])
    count = int((factor_N > 1).sum())
    if not count:
        return
    message = f"{count} pictures are enlarged, at most {factor_N.max():.2f} times"
    fix = "keep small pictures small: bucket_no_upscale, with enable_bucket"
    yield Finding(setting="bucket_no_upscale", message=message, fix=fix)


@rule(
    "long-captions",
    "warning",
    why="The text encoder reads 75 tokens at a time; what is beyond is not seen.",
    source="sd-scripts issue 943; library/strategy_sd.py",
)
def long_captions(subject: PlanSubject) -> Iterator[Finding]:
    """Captions have more tokens than are read."""
    if subject.facts is None:
        return
    from engine.tokens import capacity  # The tokenizer's library takes a moment to load.

    limit = capacity(subject.plan.settings.model.max_token_length)
    lost_N = (subject.facts.tokens_N - limit).clip(min=0)
    count = int((lost_N > 0).sum())
    if not count:
        return
    wider = next((length for length in (150, 225) if length > limit), None)
    message = f"{count} captions are cut after {limit} tokens, {int(lost_N.sum())} tokens in all"
    fix = f"set max_token_length={wider}" if wider else "shorten them"
    values = set_to(max_token_length=wider) if wider else ()
    yield Finding(setting="max_token_length", message=message, fix=fix, values=values)


@rule(
    "one-caption",
    "info",
    why="Words that every caption has tell the model nothing about a picture.",
    source="Gal et al. 2022, arXiv:2208.01618, on tokens for one concept",
)
def one_caption(subject: PlanSubject) -> Iterator[Finding]:
    """All pictures have the same caption."""
    captions = subject.plan.catalog.captions
    if len(captions) > 4 and captions[0] and all(caption == captions[0] for caption in captions):
        message = f"all {len(captions)} pictures have the same caption, {safe_text(captions[0], limit=40)!r}"
        yield Finding(setting=subject.pictures_setting, message=message, fix="caption what differs between them")


@rule(
    "mirrored-words",
    "warning",
    why="Mirrored, left is right, and the caption says otherwise.",
    source="sd-scripts docs/train_README-en.md, flip_aug",
)
def mirrored_words(subject: PlanSubject) -> Iterator[Finding]:
    """Captions say left or right while pictures are mirrored at random."""
    if subject.facts is None or not subject.facts.num_sided:
        return
    name = "dataset_config" if subject.plan.settings.dataset.dataset_config else "flip_aug"
    message = f"{subject.facts.num_sided} captions say left or right, but flip_aug mirrors their pictures"
    values = to_default("flip_aug") if name == "flip_aug" else ()
    yield Finding(setting=name, message=message, fix="remove flip_aug", values=values)


@rule(
    "duplicates",
    "warning",
    why="A picture that is there twice is learnt twice as strongly, and by heart.",
    source="Somepalli et al. 2023, arXiv:2305.20086",
)
def duplicates(subject: PlanSubject) -> Iterator[Finding]:
    """Pictures have the same content under different names."""
    groups = subject.facts.duplicates if subject.facts else ()
    if not groups:
        return
    count = sum(len(group.rows) for group in groups)
    keys = subject.plan.catalog.keys
    first = " = ".join(safe_text(keys[row], limit=60) for row in groups[0].rows[:2])
    message = f"{count} files hold only {len(groups)} different pictures ({first})"
    yield Finding(setting=subject.pictures_setting, message=message, fix="keep one of each; the Data page lists them")


@rule(
    "old-npz",
    "warning",
    why="The picture has changed since its latents were made.",
    source="sd-scripts issues 931 and 1268",
)
def old_npz(subject: PlanSubject) -> Iterator[Finding]:
    """Latents that sd-scripts cached beside a picture are older than the picture."""
    old = subject.facts.old_npz if subject.facts else ()
    if old:
        message = (
            f"{len(old)} .npz files are older than their pictures and would be used: {safe_text(old[0], limit=80)}"
        )
        yield Finding(setting="cache_latents", message=message, fix="delete them; latents are made anew")


@rule(
    "masks",
    "error",
    why="Training stops at a picture whose mask is not there, or is of another size.",
    source="engine/masks.py",
)
def masks(subject: PlanSubject) -> Iterator[Finding]:
    """Masks weigh the loss, and pictures have none, or one of another size."""
    bad = subject.facts.bad_masks if subject.facts else ()
    if bad:
        more = f", and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        yield Finding(
            setting="conditioning_data_dir",
            message=f"masked_loss needs a mask for each picture: {', '.join(bad[:_SHOWN])}{more}",
            fix="add masks of the pictures' names and sizes, white where a picture counts in full",
        )


@rule(
    "no-alpha",
    "warning",
    why="A picture without an alpha channel counts in full; a remark where they are fewer than half.",
    source="engine/pixels.py; sd-scripts library/train_util.py, alpha_mask",
)
def no_alpha(subject: PlanSubject) -> Iterator[Finding]:
    """Pictures have no alpha channel although it is to weigh the loss."""
    bare = subject.facts.no_alpha if subject.facts else ()
    if bare:
        total = subject.plan.num_images
        more = f" and {len(bare) - _SHOWN} more" if len(bare) > _SHOWN else ""
        name = "dataset_config" if subject.plan.settings.dataset.dataset_config else "alpha_mask"
        shown = f"{', '.join(bare[:_SHOWN])}{more}"
        yield Finding(
            setting=name,
            message=f"alpha_mask: {len(bare)} of {total} pictures have no alpha channel: {shown}",
            fix="save them with one, or leave alpha_mask out",
            severity="warning" if 2 * len(bare) >= total else "info",
        )


RULES = (
    short_batches, small_epoch, few_epochs, many_epochs, beyond_the_run, much_cut, enlarged, long_captions, one_caption,
    mirrored_words, duplicates, old_npz, masks, no_alpha,
)  # fmt: skip

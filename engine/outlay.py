"""What a run takes on disk, by kind, and how often it saves and samples. Torch-free, from the headers of the model."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoint import epoch_interval
from engine.dataset.captions import is_static
from engine.errors import EngineError
from engine.events import METRIC_FIELDS
from engine.hypernetworks import num_parameters
from engine.memory.optimizers import cost_of
from engine.plan import Plan
from engine.prompts import SamplePrompt, read_prompts
from engine.rules.machine import Need
from engine.settings import TrainingSettings

if TYPE_CHECKING:
    from engine.models.inspect import ModelInfo
    from engine.models.source import ModelSource

ITEM_BYTES = {"float": 4, "fp16": 2, "bf16": 2}
LEAST_STATES = 2  # No rule removes the newest two.
EVENT_BYTES = 400  # Of a step's line in events.jsonl, with the losses of four pictures.
PNG_BYTES_PER_PIXEL = 2  # Of photographs; drawings take less.
PARTS = ("unet", "text_encoder", "vae")


def num_saves(plan: Plan) -> int:
    """Return how many models lie in the run folder at the end, the last one included."""
    saving = plan.settings.saving
    count = 1
    every = epoch_interval(saving, plan.epochs)
    if every:
        by_epochs = (plan.epochs - 1) // every
        count += min(by_epochs, saving.save_last_n_epochs) if saving.save_last_n_epochs else by_epochs
    if saving.save_every_n_steps:
        by_steps = plan.steps // saving.save_every_n_steps
        if saving.save_last_n_steps:
            by_steps = min(by_steps, -(-saving.save_last_n_steps // saving.save_every_n_steps) + 1)
        count += by_steps
    return count


def times_saved(plan: Plan) -> int:
    """Return how often a model is written, those that are removed again included."""
    saving = plan.settings.saving.model_copy(update={"save_last_n_epochs": None, "save_last_n_steps": None})
    return num_saves(replace(plan, settings=plan.settings.model_copy(update={"saving": saving})))


def times_sampled(plan: Plan) -> int:
    """Return how often the prompts are drawn."""
    sampling = plan.settings.sampling
    if not sampling.sample_prompts:
        return 0
    if sampling.sample_every_n_epochs:
        times = plan.epochs // sampling.sample_every_n_epochs
    else:
        times = plan.steps // sampling.sample_every_n_steps if sampling.sample_every_n_steps else 0
    return times + sampling.sample_at_first


def model_bytes(plan: Plan, info: "ModelInfo | None") -> int | None:
    """Return the size of one saved model: trained parts in fp32 and the others as they are, or all as chosen."""
    if info is None or info.obstacle:
        return None
    saving, training = plan.settings.saving, plan.settings.training
    if training.train_hypernetwork:
        numel = _hypernetwork_numel(training, info)
        return None if numel is None else numel * ITEM_BYTES[saving.save_precision or "float"]
    trained = {"unet", "text_encoder"} if training.train_text_encoder else {"unet"}
    total = 0
    for part in PARTS:
        numel = info.parameters.get(part, 0)
        if saving.save_precision is not None:
            total += numel * ITEM_BYTES[saving.save_precision]
        else:
            total += numel * 4 if part in trained else info.part_bytes.get(part, 0)
    is_folder = saving.save_model_as.startswith("diffusers")
    return total + (0 if is_folder else info.part_bytes.get("other", 0))


def _hypernetwork_numel(training: TrainingSettings, info: "ModelInfo") -> int | None:
    try:
        return num_parameters(training, info.attention_widths)
    except EngineError:  # Which looking at the files says.
        return None


def num_states(plan: Plan) -> int:
    """Return how many resumable states lie in the run folder at the end; a stop leaves one more."""
    saving = plan.settings.saving
    at_end = int(saving.save_state or saving.save_state_on_train_end)
    if not saving.save_state:
        return at_end
    own = {
        "save_last_n_epochs": saving.save_last_n_epochs_state or saving.save_last_n_epochs,
        "save_last_n_steps": saving.save_last_n_steps_state or saving.save_last_n_steps,
    }
    kept = plan.settings.model_copy(update={"saving": saving.model_copy(update=own)})
    written = times_saved(plan) - 1
    return min(written, max(num_saves(replace(plan, settings=kept)) - 1, LEAST_STATES)) + at_end


def state_bytes(plan: Plan, info: "ModelInfo | None") -> int | None:
    """Return about what one state takes: trained weights, their average, and the optimizer's values."""
    if info is None or info.obstacle:
        return None
    training, memory = plan.settings.training, plan.settings.memory
    parts = ("unet", "text_encoder") if training.train_text_encoder else ("unet",)
    numel = sum(info.parameters.get(part, 0) for part in parts)
    if training.train_hypernetwork:
        known = _hypernetwork_numel(training, info)
        if known is None:
            return None
        numel = known
    per_weight = 2 if memory.full_fp16 or memory.full_bf16 else 4
    cost = cost_of(plan.settings.optimizer.optimizer_type, {})
    return numel * per_weight + cost.state((numel,)) + numel * 4 * training.use_ema


def disk_bytes(
    plan: Plan, info: "ModelInfo | None" = None, source: "ModelSource | None" = None
) -> dict[str, int | None]:
    """Return what the run takes on disk by kind; None where it can't be known without the model.

    `peak` counts the model that is there twice for a moment, when a newer one replaces it.
    """
    one, state = model_bytes(plan, info), state_bytes(plan, info)
    count = num_saves(plan)
    saving = plan.settings.saving
    replaces = bool(saving.save_last_n_epochs or saving.save_last_n_steps)
    parts: dict[str, int | None] = {
        "models": None if one is None else one * count,
        "states": None if state is None else state * num_states(plan),
        "latents": latent_bytes(plan),
        "text": text_bytes(plan, source),
        "samples": sample_bytes(plan),
        "events": plan.steps * (EVENT_BYTES + sum(int(kind[2:]) for _, kind in METRIC_FIELDS)),
    }
    total = sum(size or 0 for size in parts.values())
    return {
        **parts,
        "total": total,
        "peak": total + (one or 0) * replaces + (state or 0) * bool(saving.save_state),
        "one_model": one,
        "num_models": count,
        "one_state": state,
        "num_states": num_states(plan),
    }


def latent_bytes(plan: Plan) -> int:
    """Return what latents kept on disk take: four channels of an eighth of each side, twice where mirrored too."""
    import numpy as np

    if not plan.settings.memory.cache_latents_to_disk:
        return 0
    area_K = np.array([bucket.size[0] * bucket.size[1] for bucket in plan.buckets], np.int64)
    copies_S = np.array([2 if subset.augment.flip_aug else 1 for subset in plan.config.subsets], np.int64)
    item_bytes = _state_item_bytes(plan)
    return int((area_K[plan.bucket_N] * copies_S[plan.catalog.subsets_N]).sum()) // 64 * 4 * item_bytes


def text_bytes(plan: Plan, source: "ModelSource | None") -> int | None:
    """Return what text states kept on disk take; None where the width of the text encoder is not known."""
    settings = plan.settings
    options = [
        replace(subset.caption, caption_dropout_rate=0.0, caption_dropout_every_n_epochs=0)
        for subset in plan.config.subsets
    ]
    is_kept = settings.memory.cache_latents_to_disk and not settings.training.train_text_encoder
    if not is_kept or not all(map(is_static, options)):
        return 0
    from engine.models.configs import context_width

    width = context_width(source.parts["unet"]) if source else 0
    if not width:
        return None
    positions = (settings.model.max_token_length or 75) + 2
    return (len(plan.static_captions(options)) + 1) * positions * width * _state_item_bytes(plan)


def _state_item_bytes(plan: Plan) -> int:
    return 4 if plan.settings.memory.mixed_precision == "no" else 2


def sample_bytes(plan: Plan) -> int:
    """Return what the sample pictures take, about."""
    pixels = sum(prompt.width * prompt.height for prompt in prompts_of(plan))
    return times_sampled(plan) * pixels * PNG_BYTES_PER_PIXEL


def prompts_of(plan: Plan) -> tuple[SamplePrompt, ...]:
    """Return the sample prompts, none where their file is missing or wrong, which a problem says."""
    path = plan.settings.sampling.sample_prompts
    try:
        return read_prompts(Path(path)) if path else ()
    except EngineError:
        return ()


def disk_needs(plan: Plan, disk: Mapping[str, int | None], *, cache_dir: Path) -> tuple[Need, ...]:
    """Return what will go to the disks of the run's folder and of the caches, with what is free there."""
    output = Path(plan.settings.saving.output_dir)
    caches = (disk["latents"] or 0) + (disk["text"] or 0)
    run = (disk["peak"] or 0) - caches
    # Which of the latents there are of this VAE is known only once it is loaded; this much is there at least.
    kept = sum(file.stat().st_size for kind in ("latents", "text") for file in cache_dir.glob(f"{kind}/*/*.bin"))
    places = (("output_dir", output, run), ("cache_dir", cache_dir, max(0, caches - kept)))
    return tuple(
        Need(setting=setting, place=setting, num_bytes=num_bytes, free_bytes=shutil.disk_usage(_existing(path)).free)
        for setting, path, num_bytes in places
        if num_bytes
    )


def _existing(path: Path) -> Path:
    absolute = path.absolute()
    return next(folder for folder in (absolute, *absolute.parents) if folder.exists())

"""Small experiments that answer what files do not: what a model predicts, whether fp16 holds, what a step takes.

Dimension key: B pictures, C channels, H x W latent size (or pixels), L text positions, D text width, K timesteps.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.control import Control
from engine.diffusion import add_noise, make_schedule, velocity
from engine.errors import EngineError
from engine.events import Event, Step
from engine.latents import encode_with_vae, vae_seed
from engine.models import FAMILIES
from engine.models.sd import StableDiffusion
from engine.parts import prepare
from engine.pixels import load_many
from engine.plan import Plan, plan_of
from engine.probe_results import ProbeResult
from engine.rng import seed_for
from engine.run import Request
from engine.settings import Settings
from engine.telling import Teller
from engine.text import encode, token_tensors
from engine.train import train

TIMESTEPS = (300, 500, 700, 900)
"""Low ones can't tell: there v is almost the noise itself."""
SKILL = 0.1
"""Share of the target's power that a model must explain, and by which the two must differ, to decide."""
AGREEMENT = 0.75
LARGEST_HALF = 65504.0
STEPS = 3
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


# ---- epsilon or v


def compare_targets(predict: Predict, latents_BCHW: Tensor, states_BLD: Tensor) -> ProbeResult:
    """Tell what a model predicts, from which target it explains better.

    A model that has learnt anything explains most of its own target's power where there is much noise, and none of the
    other's: there epsilon is what the input shows, and v is minus the picture.

    Args:
        predict: (noisy latents, timesteps (B,), states) to the model's output, all (B, C, H, W).
        latents_BCHW: Scaled latents of real pictures.
        states_BLD: What they are conditioned on.
    """
    schedule = make_schedule("epsilon", device=latents_BCHW.device)
    explained: dict[str, list[list[float]]] = {"epsilon": [], "v_prediction": []}
    for timestep in TIMESTEPS:
        generator = torch.Generator().manual_seed(seed_for("probe", timestep))
        noise_BCHW = torch.randn(latents_BCHW.shape, generator=generator).to(latents_BCHW)
        timesteps_B = torch.full((len(latents_BCHW),), timestep, device=latents_BCHW.device)
        noisy_BCHW = add_noise(latents_BCHW, noise_BCHW, timesteps_B, schedule)
        with torch.no_grad():
            prediction_BCHW = predict(noisy_BCHW, timesteps_B, states_BLD).float()
        v_BCHW = velocity(latents_BCHW, noise_BCHW, timesteps_B, schedule)
        for name, target_BCHW in (("epsilon", noise_BCHW), ("v_prediction", v_BCHW)):
            explained[name].append(_explained(prediction_BCHW, target_BCHW))
    return _judged(explained)


def _explained(prediction_BCHW: Tensor, target_BCHW: Tensor) -> list[float]:
    """Return for each picture the share of the target's power that the prediction explains; below 0 it does harm."""
    loss_B = (prediction_BCHW - target_BCHW).square().mean(dim=(1, 2, 3))
    power_B = target_BCHW.square().mean(dim=(1, 2, 3))
    shares: list[float] = (1 - loss_B / power_B).tolist()
    return shares


def _judged(explained: dict[str, list[list[float]]]) -> ProbeResult:
    means = {name: fmean(value for row in rows for value in row) for name, rows in explained.items()}
    best, other = sorted(means, key=lambda name: -means[name])
    pairs = [
        ours > theirs
        for our_row, their_row in zip(explained[best], explained[other], strict=True)
        for ours, theirs in zip(our_row, their_row, strict=True)
    ]
    agreeing = sum(pairs) / len(pairs)
    is_clear = means[best] > SKILL and means[best] - means[other] > SKILL and agreeing >= AGREEMENT
    shown = {"epsilon": "noise (epsilon)", "v_prediction": "v"}
    numbers = ", ".join(f"{means[name]:.0%} of {shown[name]}" for name in ("epsilon", "v_prediction"))
    return ProbeResult(
        name="prediction",
        verdict=best if is_clear else "undecided",
        message=f"the model predicts {shown[best]}: it explains {numbers}"
        if is_clear
        else f"not decided what the model predicts: it explains {numbers}",
        evidence={
            "explained": means,
            "by_timestep": {
                str(timestep): {name: fmean(rows[number]) for name, rows in explained.items()}
                for number, timestep in enumerate(TIMESTEPS)
            },
            "agreement": agreeing,
        },
    )


# ---- fp16 and the VAE


def measure_vae(vae: nn.Module, images_BHWC: Tensor) -> ProbeResult:
    """Tell whether the VAE's activations fit into fp16, by running it in float32 on pictures, uint8 (B, H, W, 3)."""
    worst, largest = "", 0.0

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def look(_module: nn.Module, _inputs: object, output: object) -> None:
            nonlocal worst, largest
            if isinstance(output, Tensor):
                value = float(output.detach().abs().max())
                if not value <= largest:  # NaN counts as largest too.
                    worst, largest = name, value

        return look

    hooks = [module.register_forward_hook(watch(name)) for name, module in vae.named_modules() if name]
    try:
        latents_BChw = encode_with_vae(vae, images_BHWC, range(len(images_BHWC)))
        with torch.no_grad():
            vae.decode(latents_BChw)  # type: ignore[operator]
    finally:
        for hook in hooks:
            hook.remove()
    share = largest / LARGEST_HALF
    verdict = "safe" if share < 0.5 else "close" if share < 1 else "overflows"
    shown = f"activations of the VAE reach {largest:,.0f} in {worst}, {share:.0%} of what fp16 holds"
    return ProbeResult(
        name="vae",
        verdict=verdict,
        message=f"{shown}: {'it overflows' if verdict == 'overflows' else f'it is {verdict}'}",
        evidence={"largest": largest, "module": worst, "limit": LARGEST_HALF, "pictures": len(images_BHWC)},
    )


# ---- one step


class _Short(Control):
    """Steers a run of a few steps that saves nothing, and keeps what they tell."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Step] = []

    def emit(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Step):
            self.seen.append(event)

    def take(self) -> list[Request | str]:
        """Ask for the end after enough steps."""
        return [Request(verb="stop", arguments={"save": False})] if len(self.seen) >= STEPS else []


def measure_step(settings: Settings, plan: Plan, *, cache_dir: Path) -> ProbeResult:
    """Train a few real steps with the largest bucket, in memory, and tell seconds, peak memory and loss."""
    small = largest_bucket(settings, plan)
    bucket, control = small.buckets[0], _Short()
    tell = Teller([control])
    try:
        with tempfile.TemporaryDirectory() as folder:
            parts = prepare(small.settings, small, folder=Path(folder), cache_dir=cache_dir, tell=tell)
            train(parts, tell=tell, control=control)
    except EngineError as error:
        if "finite" not in str(error):
            raise
        return ProbeResult(name="step", verdict="not-finite", message=str(error))
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        shown = f"{bucket.batch_size} pictures of {bucket.size[0]}x{bucket.size[1]}"
        message = f"a step of {shown} does not fit into the card's memory"
        return ProbeResult(name="step", verdict="out-of-memory", message=message, evidence={"bucket": [*bucket.size]})
    return _told(control.seen)


def largest_bucket(settings: Settings, plan: Plan) -> Plan:
    """Return a plan of the pictures of a few steps of the largest batch: latents in memory, no samples, no logs."""
    area_K = [bucket.size[0] * bucket.size[1] * min(bucket.items, bucket.batch_size) for bucket in plan.buckets]
    number = int(np.argmax(area_K))
    count = STEPS * plan.buckets[number].batch_size * settings.training.gradient_accumulation_steps
    rows = np.flatnonzero(plan.bucket_N == number)[:count]
    columns = {
        column.name: _taken(getattr(plan.catalog, column.name), rows)
        for column in fields(plan.catalog)
        if column.name != "problems"
    }
    catalog = replace(plan.catalog, problems=(), **columns)
    is_cached = settings.memory.cache_latents or settings.memory.cache_latents_to_disk
    chosen = settings.replace(
        cache_latents=is_cached, cache_latents_to_disk=False, sample_prompts=None, sample_at_first=False,
        sample_every_n_steps=None, sample_every_n_epochs=None, logging_dir=None, max_train_epochs=None,
    )  # fmt: skip
    return plan_of(chosen, plan.config, catalog)


def _taken(column: Any, rows: NDArray[np.int64]) -> Any:  # noqa: ANN401 - lists and arrays
    return column[rows] if isinstance(column, np.ndarray) else [column[row] for row in rows.tolist()]


def _told(steps: Sequence[Step]) -> ProbeResult:
    last = steps[-1]
    seconds = median(step.seconds for step in steps[1:] or steps)
    width, height = last.bucket
    message = (
        f"a step of {last.images} pictures of {width}x{height} takes {seconds:.2f} s and "
        f"{last.peak_memory_bytes / 1024**3:.2f} GiB, with a loss of {last.loss:.4f}"
    )
    return ProbeResult(
        name="step",
        verdict="works",
        message=message,
        evidence={
            "bucket": [width, height],
            "images": last.images,
            "seconds": seconds,
            "peak_memory_bytes": last.peak_memory_bytes,
            "loss": [step.loss for step in steps],
        },
    )


# ---- the model and pictures of a plan


def probe_model(settings: Settings, plan: Plan, names: Sequence[str], *, pictures: int = 4) -> Iterator[ProbeResult]:
    """Yield what "vae" and "prediction" find, on the first pictures of the bucket that holds most.

    Raises:
        EngineError: The model or a picture can't be read.
    """
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    model = _loaded(settings)
    images_BHWC, seeds, captions = _pictures(plan, pictures)
    model.vae.to(device)
    if "vae" in names:
        yield measure_vae(model.vae, images_BHWC[:1])
    if "prediction" in names:
        latents_BChw = encode_with_vae(model.vae, images_BHWC, seeds).float() * model.latent_scale
        model.vae.to("cpu")
        model.text_encoder.to(device)
        chosen = settings.model
        ids_BN77, weights_BN77 = token_tensors(
            captions, model.tokenizer, chosen.max_token_length, weighted=chosen.weighted_captions
        )
        with torch.no_grad():
            states_BLD = encode(model.text_encoder, ids_BN77, chosen.clip_skip, weights_BN77=weights_BN77)
        model.unet.to(device).eval()
        yield compare_targets(model.predict, latents_BChw, states_BLD)


def _loaded(settings: Settings) -> StableDiffusion:
    """Load the model; what nothing tells of its prediction is not needed here."""
    chosen = settings.model
    load = FAMILIES["sd2" if chosen.v2 else "sd1"]
    return load(
        chosen.pretrained_model_name_or_path,
        vae=chosen.vae,
        v2=chosen.v2,
        v_parameterization=bool(chosen.v_parameterization),
    )


def _pictures(plan: Plan, count: int) -> tuple[Tensor, list[int], list[str]]:
    """Return pictures of one bucket, uint8 (B, H, W, 3), the seeds of their latents, and their captions."""
    areas = [bucket.size[0] * bucket.size[1] for bucket in plan.buckets]
    # Of the usual size: small buckets hold odd pictures.
    number = max(range(len(areas)), key=lambda index: (plan.buckets[index].images, -areas[index]))
    rows = np.flatnonzero(plan.bucket_N == number)[:count].tolist()
    loaded = list(load_many([plan.pixel_job(row) for row in rows], workers=1, ahead=1))
    images_BHWC = torch.from_numpy(np.stack([picture.pixels_HWC for picture in loaded]))
    seeds = [vae_seed(picture.content) for picture in loaded]
    return images_BHWC, seeds, [plan.catalog.captions[row] for row in rows]

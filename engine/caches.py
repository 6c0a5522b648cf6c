"""What is encoded once before training, and how a step's batches are put together from it.

Dimension key: B images, C latent channels, h x w latent size.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from engine.dataset.captions import CaptionOptions, is_static
from engine.denoiser import Conditioning
from engine.events import Warned
from engine.fingerprint import fingerprint
from engine.hardware import available_cores
from engine.latent_cache import LatentCache, LatentJob
from engine.latents import Latents, encode_latents, encode_with_vae, vae_seed
from engine.loading import LoadedBatch, Window
from engine.masks import Masks
from engine.models.sd import StableDiffusion
from engine.npz import find_npz
from engine.pixels import PictureError, PixelJob, Pixels, read_patiently
from engine.plan import Batch, Plan, without
from engine.ranks import Ranks
from engine.settings import Settings
from engine.telling import Teller
from engine.text import encode, token_tensors
from engine.text_cache import TextStates
from engine.tokens import ClipTokenizer

TEXT_MEMORY_SHARE = 0.25  # Of the memory that is free: states of many different captions are encoded at each step.

MOST_NAMED = 50  # Of pictures that are left out, one warning each.


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowSource:
    """Puts together the batches of a step; everything random in them is a function of their place in the run."""

    settings: Settings
    plan: Plan
    tokenizer: ClipTokenizer
    latents: Latents | None
    texts: TextStates | None
    ranks: Ranks
    masks: Masks | None = None
    _seen: dict[int, str] = field(default_factory=dict)
    _refused: set[str] = field(default_factory=set)
    """Why pictures could not be read, so that each is told once."""

    def contents(self) -> dict[int, str]:
        """Return the content hashes that are known, by row of the catalog."""
        if self.latents is None:
            return dict(self._seen)
        known = enumerate(picture.content for picture in self.latents.pictures)
        return {row: content for row, content in known if content is not None}

    def load(self, step: int) -> Window:
        """Return this process's batches of a step, counted from 0; at least one, if only a spare one.

        Raises:
            EngineError: A picture can't be read.
        """
        batches = self.plan.window(step)
        own = self.ranks.share(batches)
        if not own:
            return (replace(self.load_batch(batches[0], step), is_spare=True),)
        return tuple(self.load_batch(batch, step) for batch in own)

    def load_batch(self, batch: Batch, step: int = 0) -> LoadedBatch:
        """Return a batch as a step, counted from 0, shows it.

        Raises:
            EngineError: A picture can't be read.
        """
        showings = list(zip(batch.rows, batch.repeats, strict=True))
        captions = [self.plan.caption(row, repeat, epoch=batch.epoch, step=step) for row, repeat in showings]
        drawn = [self.plan.augmentation(row, repeat, epoch=batch.epoch) for row, repeat in showings]
        conditioning = self._conditioning(captions)
        masks_B1hw = self.masks.read(batch.rows, drawn, batch.bucket) if self.masks is not None else None
        if self.latents is not None:
            latents_BChw = self.latents.read(batch.rows, [augmentation.flip for augmentation in drawn])
            return LoadedBatch(batch=batch, conditioning=conditioning, latents_BChw=latents_BChw, masks_B1hw=masks_B1hw)
        jobs = [self.plan.pixel_job(row, augmentation) for row, augmentation in zip(batch.rows, drawn, strict=True)]
        return self._decoded(batch, conditioning, jobs, masks_B1hw)

    def load_still(self, rows: Sequence[int]) -> LoadedBatch:
        """Return pictures of one bucket as a batch, with nothing random: neither augmentation nor changed captions.

        Raises:
            EngineError: A picture can't be read.
        """
        rows = tuple(rows)
        bucket = self.plan.placement(rows[0]).bucket
        batch = Batch(bucket=bucket, epoch=0, first_position=0, rows=rows, repeats=(0,) * len(rows))
        conditioning = self._conditioning([self.plan.still_caption(row) for row in rows])
        masks_B1hw = self.masks.read(rows, [None] * len(rows), bucket) if self.masks is not None else None
        if self.latents is not None:
            latents_BChw = self.latents.read(rows)
            return LoadedBatch(batch=batch, conditioning=conditioning, latents_BChw=latents_BChw, masks_B1hw=masks_B1hw)
        jobs = [self.plan.pixel_job(row) for row in rows]
        return self._decoded(batch, conditioning, jobs, masks_B1hw)

    def _decoded(
        self, batch: Batch, conditioning: Conditioning, jobs: Sequence[PixelJob], masks_B1hw: Tensor | None
    ) -> LoadedBatch:
        loaded = read_patiently(jobs, workers=loading_threads(self.settings))
        good = [pixels if isinstance(pixels, Pixels) else None for pixels in loaded]
        bad = [pixels for pixels in loaded if isinstance(pixels, PictureError)]
        if bad and (not self.plan.config.skip_bad_images or len(bad) == len(jobs)):
            raise bad[0]
        read = zip(batch.rows, good, strict=True)
        self._seen.update((row, one.content) for row, one in read if one is not None)
        new = [str(error) for error in bad if str(error) not in self._refused]
        self._refused.update(new)
        width, height = batch.bucket
        blank_HWC = np.zeros((height, width, 3), np.uint8)
        return LoadedBatch(
            batch=batch,
            conditioning=conditioning,
            pixels_BHWC=torch.from_numpy(np.stack([blank_HWC if one is None else one.pixels_HWC for one in good])),
            masks_B1hw=masks_B1hw,
            vae_seeds=tuple(0 if one is None else vae_seed(one.content) for one in good),
            weights_B=torch.tensor([float(one is not None) for one in good]) if bad else None,
            refusals=tuple(f"{error}; it is left out ({len(self._refused)} pictures so far)" for error in new),
        )

    def _conditioning(self, captions: Sequence[str]) -> Conditioning:
        if self.texts is not None:
            return Conditioning(states_BLD=self.texts.read(captions))
        ids_BN77, weights_BN77 = token_tensors(
            captions,
            self.tokenizer,
            self.settings.model.max_token_length,
            weighted=self.settings.model.weighted_captions,
        )
        return Conditioning(ids_BN77=ids_BN77, weights_BN77=weights_BN77)


def loading_threads(settings: Settings) -> int:
    """Return how many threads decode pictures: at least one, at most one for each core."""
    return max(1, min(settings.memory.max_data_loader_n_workers, available_cores()))


def prepare_latents(
    settings: Settings, plan: Plan, model: StableDiffusion, *, cache_dir: Path, tell: Teller, ranks: Ranks
) -> tuple[Plan, Latents | None]:
    """Encode all pictures where that is asked for, in memory or on disk, and tell what came from sd-scripts' caches.

    With skip_bad_images the plan comes back without the pictures that turned out not to be readable.
    Several processes share the work where they share a cache on disk; in memory each has all latents of its own.

    Raises:
        EngineError: A picture can't be read, or its latents are not finite.
    """
    memory = settings.memory
    if not (memory.cache_latents or memory.cache_latents_to_disk):
        return plan, None
    cache = LatentCache(
        cache_dir if memory.cache_latents_to_disk else None,
        vae_fingerprint=fingerprint(model.vae),
        dtype="float32" if memory.mixed_precision == "no" else "float16",
    )
    encode_jobs = partial(
        encode_latents,
        cache=cache,
        encode=partial(encode_with_vae, model.vae),
        batch_size=memory.vae_batch_size,
        workers=loading_threads(settings),
        progress=tell.progress("latents"),
    )
    jobs = [_latent_job(plan, row) for row in range(plan.num_images)]
    if memory.cache_latents_to_disk and ranks.world > 1:
        encode_jobs(ranks.share(jobs))
        ranks.wait()
    latents = encode_jobs(jobs)
    _warn_of_refusal(cache.refusal, tell)
    if latents.from_npz:
        message = f"{latents.from_npz} latents were taken from .npz files, whose VAE can't be checked"
        tell(Warned(code="npz", message=message))
    if latents.refused_npz:
        message = f"{len(latents.refused_npz)} .npz files did not fit and were passed over: {latents.refused_npz[0]}"
        tell(Warned(code="npz-refused", message=message))
    if latents.bad:
        plan = without(plan, latents.bad)
        _tell_left_out(latents.bad, tell)
        latents = encode_jobs([_latent_job(plan, row) for row in range(plan.num_images)])
    return plan, latents


def _tell_left_out(bad: Mapping[Path, PictureError], tell: Teller) -> None:
    """Name each picture that is left out; of very many the first."""
    for error in list(bad.values())[:MOST_NAMED]:
        tell.warn("bad-image", f"{error}; it is left out")
    if len(bad) > MOST_NAMED:
        tell.warn("bad-image", f"{len(bad)} pictures are left out in all, because they can't be read")


def _latent_job(plan: Plan, row: int) -> LatentJob:
    job = plan.pixel_job(row)
    assert job.size is not None
    return LatentJob(
        pixels=job,
        flip=plan.subset_of(row).augment.flip_aug,
        npz=find_npz(job.path, job.size),
        is_optional=plan.config.skip_bad_images,
    )


def prepare_text(
    settings: Settings, plan: Plan, model: StableDiffusion, *, cache_dir: Path, tell: Teller, ranks: Ranks
) -> TextStates | None:
    """Encode each different caption once, where the text encoder is frozen and captions stand still.

    Returns None where that can't be, or where the states would take too much of the memory that is free.
    """
    chosen = settings.model
    options = [_without_dropout(subset.caption) for subset in plan.config.subsets]
    if settings.training.train_text_encoder or not all(map(is_static, options)):
        return None

    def encode_captions(captions: Sequence[str]) -> Tensor:
        ids_BN77, weights_BN77 = token_tensors(
            captions, model.tokenizer, chosen.max_token_length, weighted=chosen.weighted_captions
        )
        with torch.no_grad():
            return encode(model.text_encoder, ids_BN77, chosen.clip_skip, weights_BN77=weights_BN77)

    to_disk = settings.memory.cache_latents_to_disk
    states = TextStates(
        encode_captions,
        identity=fingerprint(
            model.text_encoder, chosen.clip_skip, chosen.max_token_length, chosen.weighted_captions, model.family
        ),
        folder=cache_dir if to_disk else None,
        dtype="float32" if settings.memory.mixed_precision == "no" else "float16",
    )
    captions = plan.static_captions(options)
    if not to_disk and len(captions) * states.bytes_per_caption > TEXT_MEMORY_SHARE * psutil.virtual_memory().available:
        tell(Warned(code="text-cache", message=f"{len(captions)} different captions are encoded at each step anew"))
        return None
    with ranks.main_first() if to_disk else nullcontext():
        states.add(captions, progress=tell.progress("text"))
    _warn_of_refusal(states.refusal, tell)
    return states


def _warn_of_refusal(refusal: str, tell: Teller) -> None:
    if refusal:
        tell.warn("cache", f"{refusal}; what it refused is kept in memory and made anew by the next run")


def _without_dropout(options: CaptionOptions) -> CaptionOptions:
    """A dropped caption is the unconditional one, which is always stored."""
    return replace(options, caption_dropout_rate=0.0, caption_dropout_every_n_epochs=0)

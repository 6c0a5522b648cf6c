"""Pictures to latents, encoded once and read by every later step and run.

What is kept is one draw from the VAE's posterior, unscaled: a function of the picture's content alone, so that cached
and freshly encoded latents are the same numbers.

Dimension key: B pictures, C latent channels, H and W pixels, h and w latent positions (an eighth of the pixels).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.latent_cache import LatentCache, LatentJob, Picture, take_npz
from engine.pixels import PictureError, Pixels, try_many
from engine.rng import seed_for
from engine.shards import ABSENT, DamagedRecordsError

__all__ = ["LatentCache", "LatentJob", "Latents", "encode_latents", "encode_with_vae", "missing_latents", "vae_seed"]

Encode = Callable[[Tensor, Sequence[int]], Tensor]  # images (B, H, W, 3) uint8, a seed each -> latents (B, C, h, w).
Progress = Callable[[int, int], None]  # Pictures done, pictures to do.
Loaded = tuple[Picture, Pixels]
Bad = dict[Path, PictureError]  # Pictures that are left out, and why.

_WRITES_BEHIND = 4


class Latents:
    """The encoded latents of a list of jobs, read by position.

    `from_npz` counts those taken from sd-scripts' caches, `refused_npz` says which of these didn't fit and why,
    `bad` which optional pictures have no latents and why.
    """

    def __init__(
        self, pictures: list[Picture], cache: LatentCache, encode: Encode, *, refused_npz: Iterable[str], bad: Bad
    ) -> None:
        self.from_npz = sum(picture.job.npz is not None for picture in pictures)
        self.refused_npz = tuple(refused_npz)
        self.bad = bad
        self.pictures = pictures
        self.rows = cache.rows(pictures)
        self._cache = cache
        self._encode = encode

    def __len__(self) -> int:
        """Return the number of jobs."""
        return len(self.pictures)

    def read(self, positions: Sequence[int], flipped: Sequence[bool] | None = None) -> Tensor:
        """Return the unscaled latents, (B, C, h, w) in the cache's dtype, of jobs of one bucket.

        Records that were damaged on disk are encoded again.
        """
        flips = flipped or [False] * len(positions)
        shards = self._cache.shards(self.pictures[positions[0]].job.bucket)
        rows = self._rows_at(positions, flips)
        try:
            return torch.from_numpy(shards.read(rows))
        except DamagedRecordsError as error:
            damaged = {place for place, row in zip(positions, rows, strict=True) if row in error.rows}
        self._repair(sorted(damaged))
        return torch.from_numpy(shards.read(self._rows_at(positions, flips)))

    def _rows_at(self, positions: Sequence[int], flips: Sequence[bool]) -> list[int]:
        rows: list[int] = self.rows[np.asarray(flips, np.intp), positions].tolist()
        assert ABSENT not in rows, (positions, flips)
        return rows

    def _repair(self, positions: Sequence[int]) -> None:
        jobs = [self.pictures[position].job for position in positions]
        anew = encode_latents(jobs, self._cache, self._encode)
        for place, position in enumerate(positions):
            self.pictures[position] = anew.pictures[place]
            self.rows[:, position] = anew.rows[:, place]


def missing_latents(jobs: Sequence[LatentJob], cache: LatentCache) -> list[LatentJob]:
    """Return the jobs that `encode_latents` would have to encode."""
    return [picture.job for picture in cache.missing(cache.look_up(jobs))]


def encode_latents(
    jobs: Sequence[LatentJob],
    cache: LatentCache,
    encode: Encode,
    *,
    batch_size: int = 1,
    workers: int = 2,
    progress: Progress | None = None,
) -> Latents:
    """Encode what the cache doesn't hold, batch by batch and bucket by bucket, and return the latents of all jobs.

    Threads decode ahead and one writes behind, while `encode` keeps the device busy. Several processes may share the
    work: each calls this with its part of the jobs, and then all with all jobs. Optional pictures that can't be
    read have no latents and are in `bad` of what is returned.

    Raises:
        PictureError: A picture that is not optional can't be read.
        EngineError: The VAE fails on it, or the cache can't be written.
    """
    checked, refused_npz = take_npz(jobs, cache)
    pictures = cache.look_up(checked)
    todo, bad = cache.missing(pictures), {}
    if todo:
        bad = _encode_all(todo, cache, encode, batch_size=batch_size, workers=workers, progress=progress)
        pictures = cache.look_up(checked)
    return Latents(pictures, cache, encode, refused_npz=refused_npz, bad=bad)


def _encode_all(
    pictures: Sequence[Picture],
    cache: LatentCache,
    encode: Encode,
    *,
    batch_size: int,
    workers: int,
    progress: Progress | None,
) -> Bad:
    bad: Bad = {}
    todo = sorted(pictures, key=lambda picture: picture.job.bucket)  # Stable: within a bucket the order stays.
    cache.check_space(todo)
    loads = try_many((picture.job.pixels for picture in todo), workers=workers, ahead=2 * batch_size + workers)
    try:
        with closing(loads), closing(_WriteBehind(cache)) as writer:
            for done, batch in _batches(_readable(zip(todo, loads, strict=True), bad), batch_size):
                _encode_batch(batch, cache, encode, writer)
                if progress is not None:
                    progress(done, len(todo))
    finally:
        cache.sync()
    return bad


def _readable(loaded: Iterable[tuple[Picture, Pixels | PictureError]], bad: Bad) -> Iterator[Loaded]:
    """Yield the pictures that could be read; optional ones that could not are added to `bad`."""
    for picture, pixels in loaded:
        if isinstance(pixels, Pixels):
            yield picture, pixels
        elif picture.job.is_optional:
            bad[picture.job.pixels.path] = pixels
        else:
            raise pixels


def encode_with_vae(vae: nn.Module, images_BHWC: Tensor, seeds: Sequence[int]) -> Tensor:
    """Return one posterior draw for each image, (B, C, h, w), unscaled, on the VAE's device in its dtype.

    Args:
        vae: An AutoencoderKL.
        images_BHWC: uint8 RGB; sent as bytes and cast on the device, a quarter of the traffic.
        seeds: Of each image's noise, drawn on the CPU so that every device gives the same.
    """
    weight = next(vae.parameters())
    images_BCHW = images_BHWC.to(weight.device).permute(0, 3, 1, 2).to(weight.dtype) / 127.5 - 1
    with torch.no_grad():
        posterior: Any = vae.encode(images_BCHW).latent_dist  # type: ignore[operator]
    shape = posterior.mean.shape[1:]
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    drawn: Tensor = posterior.mean + posterior.std * noise.to(posterior.mean)
    return drawn


def vae_seed(content: str) -> int:
    """Return the seed of the posterior draw of a picture with this content hash."""
    return seed_for("vae", content)


def _batches(loaded: Iterable[Loaded], batch_size: int) -> Iterator[tuple[int, list[Loaded]]]:
    """Yield batches of one bucket, each with the number of pictures up to its end."""
    batch: list[Loaded] = []
    done = 0
    for picture, pixels in loaded:
        if batch and batch[0][0].job.bucket != picture.job.bucket:
            yield done, batch
            batch = []
        batch.append((replace(picture, content=pixels.content), pixels))
        done += 1
        if len(batch) == batch_size:  # At once, so that a later picture's error doesn't cost this batch.
            yield done, batch
            batch = []
    if batch:
        yield done, batch


def _encode_batch(batch: Sequence[Loaded], cache: LatentCache, encode: Encode, writer: "_WriteBehind") -> None:
    """Encode what isn't there under the content that was just read: moved and touched files are."""
    absent = {id(picture) for picture in cache.missing([picture for picture, _ in batch])}
    fresh = [(picture, pixels) for picture, pixels in batch if id(picture) in absent]
    for flipped in (False, True):
        wanted = [(picture, pixels) for picture, pixels in fresh if picture.job.flip or not flipped]
        if wanted:
            images_BHWC = torch.from_numpy(np.stack([pixels.pixels_HWC for _, pixels in wanted]))
            images_BHWC = images_BHWC.flip(2) if flipped else images_BHWC
            latents = encode(images_BHWC, [vae_seed(pixels.content) for _, pixels in wanted])
            writer.append([picture for picture, _ in wanted], latents, flipped=flipped)
    cache.contents.remember([(picture.job.file, picture.signature, pixels.content) for picture, pixels in batch])


class _WriteBehind:
    """One thread that writes to the cache, a few batches behind the device; its errors come with a later batch."""

    def __init__(self, cache: LatentCache) -> None:
        self._cache = cache
        self._dtype = getattr(torch, cache.dtype)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="latents")
        self._waiting: deque[Future[None]] = deque()

    def append(self, pictures: Sequence[Picture], latents_BChw: Tensor, *, flipped: bool) -> None:
        latents = latents_BChw.detach().to(dtype=self._dtype).cpu().numpy()
        self._waiting.append(self._pool.submit(self._cache.append, pictures, latents, flipped=flipped))
        while len(self._waiting) > _WRITES_BEHIND:
            self._waiting.popleft().result()

    def close(self) -> None:
        try:
            while self._waiting:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown()

"""The store of encoded latents: its keys, its records, and sd-scripts' own caches taken in. Torch-free.

The key holds all that decides the numbers: the content of the picture's file, resize, crop, mirroring and background;
the folder's name holds the VAE and the precision. So nothing stale can be found, and a picture that was changed,
moved or re-cropped is encoded again by itself.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.contents import Contents, Signature
from engine.errors import EngineError, safe_text
from engine.npz import read_npz
from engine.pixels import PIXELS_VERSION, PixelJob
from engine.shards import ABSENT, KEY_BYTES, Shards
from engine.space import free_bytes

LATENT_CHANNELS = 4
PIXELS_PER_LATENT = 8
LARGEST_LATENT = 60_000.0  # float16 ends at 65504.
SPARE_BYTES = 64 << 20

Size = tuple[int, int]
Array = NDArray[np.floating]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentJob:
    """A picture to encode: how to cut it, whether mirrored too, and sd-scripts' cache of it where that is wanted."""

    pixels: PixelJob
    flip: bool = False
    npz: Path | None = None
    is_optional: bool = False
    """Leave the picture out if it can't be read, instead of stopping."""

    @property
    def bucket(self) -> Size:
        """The (width, height) in pixels that is encoded."""
        left, top, right, bottom = self.pixels.crop
        return right - left, bottom - top

    @property
    def file(self) -> Path:
        """The file whose content the latents come from."""
        return self.npz or self.pixels.path


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A job with the content of its file; None while it has not been read since it last changed."""

    job: LatentJob
    signature: Signature | None
    content: str | None

    def key(self, *, flipped: bool) -> bytes:
        """Return the key of its latents."""
        assert self.content is not None
        pixels = self.job.pixels
        cut = (pixels.resized, pixels.crop, pixels.orientation, pixels.interpolation, pixels.background)
        parts: tuple[object, ...] = (PIXELS_VERSION, self.content, self.job.npz is not None, cut, flipped)
        parts += ("alpha",) if pixels.shows_alpha else ()
        return hashlib.blake2b(repr(parts).encode(), digest_size=KEY_BYTES).digest()


class LatentCache:
    """All latents of one VAE in one precision, in `folder` or, where that is None, in memory."""

    def __init__(
        self, folder: Path | None, *, vae_fingerprint: str, dtype: str = "float16", channels: int = LATENT_CHANNELS
    ) -> None:
        self.folder = None if folder is None else folder / "latents" / f"{vae_fingerprint[:16]}-{dtype}"
        self.contents = Contents(None if folder is None else folder / "contents.sqlite")
        self.dtype = dtype
        self._channels = channels
        self._shards: dict[Size, Shards] = {}

    @property
    def refusal(self) -> str:
        """Why the disk takes no more and latents are kept in memory, "" while it takes them."""
        return next((shards.refusal for shards in self._shards.values() if shards.refusal), self.contents.refusal)

    def shape(self, bucket: Size) -> tuple[int, int, int]:
        """Return the (channels, height, width) of a bucket's latents."""
        return self._channels, bucket[1] // PIXELS_PER_LATENT, bucket[0] // PIXELS_PER_LATENT

    def shards(self, bucket: Size) -> Shards:
        """Return the records of a bucket."""
        if bucket not in self._shards:
            name = f"{bucket[0]}x{bucket[1]}"
            self._shards[bucket] = Shards(self.folder, name, shape=self.shape(bucket), dtype=self.dtype)
        return self._shards[bucket]

    def look_up(self, jobs: Sequence[LatentJob]) -> list[Picture]:
        """Return the jobs with what is known of their files."""
        known = self.contents.known([job.file for job in jobs])
        return [
            Picture(job=job, signature=signature, content=content)
            for job, (signature, content) in zip(jobs, known, strict=True)
        ]

    def rows(self, pictures: Sequence[Picture]) -> NDArray[np.int64]:
        """Return where the latents are, (2, n): plain and mirrored, ABSENT where they aren't or aren't needed."""
        rows = np.full((2, len(pictures)), ABSENT, np.int64)
        groups: dict[tuple[Size, bool], list[int]] = {}
        for place, picture in enumerate(pictures):
            if picture.content is not None:
                for flipped in (False, True)[: 1 + picture.job.flip]:
                    groups.setdefault((picture.job.bucket, flipped), []).append(place)
        for (bucket, flipped), places in groups.items():
            rows[int(flipped), places] = self.shards(bucket).find([pictures[i].key(flipped=flipped) for i in places])
        return rows

    def missing(self, pictures: Sequence[Picture]) -> list[Picture]:
        """Return the pictures that lack latents."""
        rows = self.rows(pictures)
        return [
            picture
            for place, picture in enumerate(pictures)
            if rows[0, place] == ABSENT or (picture.job.flip and rows[1, place] == ABSENT)
        ]

    def append(self, pictures: Sequence[Picture], latents: Array, *, flipped: bool) -> None:
        """Keep the latents, (B, C, h, w), of pictures of one bucket; `sync` makes them found.

        They come best in the cache's dtype: torch casts to float16 many times as fast as numpy.

        Raises:
            EngineError: Some are not numbers to train on, or the cache can't be written.
        """
        _check(pictures, np.ascontiguousarray(latents))  # Before the cast: numpy warns where float16 overflows.
        keys = [picture.key(flipped=flipped) for picture in pictures]
        self.shards(pictures[0].job.bucket).append(keys, latents)

    def check_space(self, pictures: Sequence[Picture]) -> None:
        """Refuse to start what the disk can't hold.

        Raises:
            EngineError: It is too full.
        """
        if self.folder is None or not pictures:
            return
        needed = sum(self.shards(picture.job.bucket).record_bytes * (1 + picture.job.flip) for picture in pictures)
        free = free_bytes(self.folder)
        if free is not None and free < needed + SPARE_BYTES:
            raise EngineError(
                f"{safe_text(str(self.folder))}: the latents need {needed / 1e6:,.0f} MB but the disk has "
                f"{free / 1e6:,.0f} MB free; free space, choose another cache folder, or keep latents in memory"
            )

    def sync(self) -> None:
        """Bring what was appended to the disk, and find it and what other processes appended."""
        for shards in self._shards.values():
            shards.close()
            shards.refresh()

    def close(self) -> None:
        """Bring everything to the disk and let go of the files."""
        self.sync()
        self.contents.close()


def _check(pictures: Sequence[Picture], latents: Array) -> None:
    """Refuse NaN, infinity and what is near float16's end.

    Without their sign, the bits of floats order as the numbers do, with infinity and NaN last; compared as integers
    they cost a tenth of numpy's float16 arithmetic.
    """
    kind = np.dtype(f"u{latents.dtype.itemsize}")
    limit = np.array(LARGEST_LATENT, latents.dtype).view(kind)
    unsigned = latents.view(kind) & kind.type(np.iinfo(kind).max >> 1)
    for picture, largest in zip(pictures, unsigned.reshape(len(pictures), -1).max(axis=1), strict=True):
        if largest > limit:
            raise EngineError(
                f"{safe_text(str(picture.job.file))}: its latents reach {largest.view(latents.dtype)}, which can't be "
                "trained on; run the VAE in float32 (no_half_vae), or take the picture out of the data set"
            )


def take_npz(jobs: Sequence[LatentJob], cache: LatentCache) -> tuple[list[LatentJob], list[str]]:
    """Copy sd-scripts' caches that fit into ours; return the jobs, without `npz` where it didn't fit, and why not."""
    taken = list(jobs)
    refused: list[str] = []
    places = [place for place, job in enumerate(jobs) if job.npz is not None]
    if not places:
        return taken, refused
    pictures = cache.look_up([jobs[place] for place in places])
    absent = {id(picture) for picture in cache.missing(pictures)}
    for place, picture in zip(places, pictures, strict=True):
        if id(picture) in absent:
            try:
                _copy_npz(picture, cache)
            except EngineError as error:
                refused.append(str(error))
                taken[place] = replace(picture.job, npz=None)
    cache.sync()
    return taken, refused


def _copy_npz(picture: Picture, cache: LatentCache) -> None:
    job = picture.job
    assert job.npz is not None
    if job.pixels.orientation not in {None, 1}:
        raise EngineError(f"{safe_text(str(job.npz))}: made without regard to the picture's EXIF orientation")
    found = read_npz(job.npz, shape=cache.shape(job.bucket), size=job.pixels.size, flip=job.flip)
    picture = replace(picture, content=found.content)
    cache.append([picture], found.latents[None], flipped=False)
    if found.flipped is not None:
        cache.append([picture], found.flipped[None], flipped=True)
    cache.contents.remember([(job.npz, picture.signature, found.content)])

"""What the tests of latents share: drawn pictures, and an encoder whose result is known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.latents import LatentCache, LatentJob, vae_seed
from engine.pixels import PixelJob, load_pixels


class Encoder:
    """An encoder that is a function of picture and seed, and counts what it is given."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images_BHWC: Tensor, seeds: Sequence[int]) -> Tensor:
        self.batches.append(len(images_BHWC))
        small_BCHW = images_BHWC.permute(0, 3, 1, 2).float()[:, :, ::8, ::8]
        noise_B = torch.tensor([seed % 97 for seed in seeds])
        return torch.cat([small_BCHW, noise_B[:, None, None, None].expand_as(small_BCHW[:, :1])], 1)


def draw_picture(path: Path, value: int, size: tuple[int, int] = (64, 64)) -> Path:
    ramp = np.add.outer(np.arange(size[1]) * 2, np.arange(size[0]) + value) % 256
    Image.fromarray(ramp.astype(np.uint8)).convert("RGB").save(path)
    return path


def job_for(path: Path, size: tuple[int, int] = (64, 64), **options: object) -> LatentJob:
    return LatentJob(pixels=PixelJob(path=path, resized=size, crop=(0, 0, *size), size=size), **options)


def jobs_in(folder: Path, count: int, **options: object) -> list[LatentJob]:
    return [job_for(draw_picture(folder / f"{number}.png", 3 * number), **options) for number in range(count)]


def open_cache(folder: Path | None, **options: str) -> LatentCache:
    return LatentCache(folder, **{"vae_fingerprint": "f" * 64, "dtype": "float32"} | options)


def expected(job: LatentJob, *, flip: bool = False) -> Tensor:
    pixels = load_pixels(job.pixels)
    images_BHWC = torch.from_numpy(pixels.pixels_HWC.copy())[None]
    return Encoder()(images_BHWC.flip(2) if flip else images_BHWC, [vae_seed(pixels.content)])[0]

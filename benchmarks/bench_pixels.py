"""A 12-megapixel photo to a 512x512 bucket: the established full decode against engine.pixels, in one run.

Established: Pillow decodes the whole file, numpy copies it, OpenCV's area filter resizes, the centre is cut out.
Truth for the PSNR: the picture before it was compressed, through the same filter.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from engine.pixels import PixelJob, load_pixels

SOURCES = {"12 MP": (4000, 3000), "2 MP": (1600, 1200), "1 MP": (1024, 1024)}
TARGET = 512


def photo(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Return a picture with a photo's spectrum: amplitude falls with frequency, plus sensor noise."""
    rng = np.random.default_rng(seed)
    width, height = size
    picture = np.zeros((height, width, 3), np.float32)
    cells = 4
    while cells < width:
        grid = rng.normal(size=(cells * height // width + 1, cells, 3)).astype(np.float32)
        picture += cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC) * (160 / cells**0.75)
        cells *= 2
    picture += rng.normal(scale=2.0, size=picture.shape)
    return np.clip(picture + 118, 0, 255).astype(np.uint8)


def plan(size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Return the resized size and the crop that fill the target square."""
    scale = TARGET / min(size)
    resized = (int(size[0] * scale + 0.5), int(size[1] * scale + 0.5))
    left, top = (resized[0] - TARGET) // 2, (resized[1] - TARGET) // 2
    return resized, (left, top, left + TARGET, top + TARGET)


def established(path: Path, resized: tuple[int, int], crop: tuple[int, int, int, int]) -> np.ndarray:
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"), np.uint8)
    return cut(cv2.resize(pixels, resized, interpolation=cv2.INTER_AREA), crop)


def cut(pixels: np.ndarray, crop: tuple[int, int, int, int]) -> np.ndarray:
    left, top, right, bottom = crop
    return pixels[top:bottom, left:right]


def psnr(pixels: np.ndarray, truth: np.ndarray) -> float:
    error = np.mean((pixels.astype(np.float64) - truth) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def timed(contenders: dict[str, Callable[[], np.ndarray]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each contender; they take turns, so that a busy machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    cv2.setNumThreads(1)
    print(f"{'JPEG, to 512x512':18} {'established':>12} {'ours':>9} {'ratio':>6}   PSNR to truth: established, ours")
    with tempfile.TemporaryDirectory() as folder:
        for name, size in SOURCES.items():
            path = Path(folder) / f"{size[0]}.jpg"
            original = photo(size)
            Image.fromarray(original).save(path, quality=92)
            resized, crop = plan(size)
            truth = cut(cv2.resize(original, resized, interpolation=cv2.INTER_AREA), crop)
            job = PixelJob(path=path, resized=resized, crop=crop)
            contenders = {
                "established": lambda path=path, resized=resized, crop=crop: established(path, resized, crop),
                "ours": lambda job=job: load_pixels(job).pixels_HWC,
            }
            seconds = timed(contenders, rounds)
            quality = [psnr(contender(), truth) for contender in contenders.values()]
            ratio = seconds["established"] / seconds["ours"]
            print(
                f"{name:18} {seconds['established'] * 1e3:9.1f} ms {seconds['ours'] * 1e3:6.1f} ms {ratio:5.2f}x"
                f"   {quality[0]:.1f} dB, {quality[1]:.1f} dB"
            )


if __name__ == "__main__":
    main()

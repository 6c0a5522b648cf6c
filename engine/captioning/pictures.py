"""Pictures to what each captioner takes, by its own tool's rule, bit for bit. Torch-free.

All functions take whole pictures, (height, width, RGB) uint8 with alpha laid on white.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.errors import EngineError
from engine.pixels import Array, load_whole, resize

Floats = NDArray[np.float32]
Prepare = Callable[[Array], Any]

WD14_SIZE = 448
DEEPDANBOORU_SIZE = 512


def wd14_pixels(pixels_HWC: Array, size: int = WD14_SIZE) -> Floats:
    """Return (size, size, BGR) float32 of 0 to 255: padded to a white square, then resized.

    The area filter shrinks, Lanczos enlarges, as sd-scripts' tag_images_by_wd14_tagger.py does.
    """
    return resize(_white_square(pixels_HWC), (size, size))[:, :, ::-1].astype(np.float32)


def mapping_pixels(pixels_HWC: Array, size: int = WD14_SIZE) -> Floats:
    """Return (BGR, size, size) float32 of -1 to 1, for models that come with a tag_mapping.json."""
    return np.ascontiguousarray(wd14_pixels(pixels_HWC, size).transpose(2, 0, 1) / np.float32(127.5) - np.float32(1))


def _white_square(pixels_HWC: Array) -> Array:
    height, width = pixels_HWC.shape[:2]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    square = np.full((side, side, 3), 255, np.uint8)
    square[top : top + height, left : left + width] = pixels_HWC
    return square


def deepdanbooru_pixels(pixels_HWC: Array, size: int = DEEPDANBOORU_SIZE) -> Floats:
    """Return (size, size, RGB) float32 of 0 to 1: area-resized with the shape kept, edges repeated to a square."""
    height, width = pixels_HWC.shape[:2]
    scale = min(size / height, size / width)
    inner = max(1, min(size, round(width * scale))), max(1, min(size, round(height * scale)))
    resized = area_resize(pixels_HWC, inner)
    left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
    sides = (top, size - inner[1] - top), (left, size - inner[0] - left), (0, 0)
    return np.asarray(np.pad(resized, sides, mode="edge") / np.float32(255), np.float32)


def area_resize(pixels_HWC: Array, size: tuple[int, int]) -> Floats:
    """Return the mean of the area under each new pixel, (height, width, RGB) float32; `size` is (width, height).

    OpenCV's area filter is that mean where a picture shrinks; where it grows OpenCV interpolates instead, so the mean
    is taken by a product with the shares of each old pixel.
    """
    height, width = pixels_HWC.shape[:2]
    floats = pixels_HWC.astype(np.float32)
    if (width, height) == size:
        return floats
    if size[0] <= width and size[1] <= height:
        return np.asarray(cv2.resize(floats, size, interpolation=cv2.INTER_AREA), np.float32)
    rows, columns = _shares(height, size[1]), _shares(width, size[0])
    grown: Floats = np.einsum("yh,hwc,xw->yxc", rows, floats, columns, optimize=True).astype(np.float32)
    return grown


def _shares(old: int, new: int) -> Floats:
    """Return how much of each old pixel lies under each new one, (new, old); every row adds up to 1."""
    edges = np.arange(new + 1) * (old / new)
    starts = np.arange(old)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return np.asarray(np.clip(overlap, 0, None) * (new / old), np.float32)


def blip_pixels(pixels_HWC: Array, size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]) -> Floats:
    """Return (RGB, height, width) float32, resized to (width, height) by Pillow's bicubic filter and normalised."""
    resized = np.asarray(Image.fromarray(pixels_HWC).resize(size, Image.Resampling.BICUBIC), np.float32)
    normal = (resized / np.float32(255) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))


def load_prepared(
    pictures: Iterable[tuple[str, Path]], prepare: Prepare, *, workers: int, ahead: int
) -> Generator[tuple[str, Any], None, None]:
    """Yield each key with its prepared picture, in order, or with the EngineError that says why there is none.

    Threads decode and prepare up to `ahead` pictures beyond the present one, which is all the memory it takes.
    """

    def work(key: str, path: Path) -> tuple[str, Any]:
        try:
            return key, prepare(load_whole(path))
        except EngineError as error:
            return key, error

    waiting: deque[Future[tuple[str, Any]]] = deque()
    pool = ThreadPoolExecutor(
        max(1, workers), thread_name_prefix="pictures", initializer=cv2.setNumThreads, initargs=(1,)
    )
    try:
        for key, path in pictures:
            waiting.append(pool.submit(work, key, path))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

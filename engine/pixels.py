"""A picture file to the pixels that are trained on: read, decoded, set upright, resized, cropped, augmented.

Where a picture has neither orientation nor alpha, the pixels are bit for bit those of sd-scripts: Pillow's decoding,
OpenCV's area filter when shrinking, Pillow's Lanczos when growing. Torch-free.
"""

import hashlib
import struct
import time
import zlib
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from engine.dataset.augment import Augmentation
from engine.dataset.buckets import Box, Size
from engine.errors import EngineError, safe_text

Interpolation = Literal["lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box"]
Array = NDArray[np.uint8]

PIXELS_VERSION = 1  # Part of every cache key: count up whenever a rule of this file changes what comes out.
MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 1 << 30
RETRY_SECONDS = (0.1, 0.4)  # Two further attempts at a picture that a step needs.
WHITE = (255, 255, 255)

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "AVIF", "JXL")  # Never EPS: Pillow hands it to Ghostscript.
_ORIENTATION_TAG = 0x0112
_JPEG_SCALES = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
# EXIF orientation to OpenCV's flip, after transposing from 5 on: 1 left and right, 0 up and down, -1 both.
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
_OPENCV_FILTERS = {
    "nearest": cv2.INTER_NEAREST_EXACT,
    "bilinear": cv2.INTER_LINEAR,
    "linear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
}
_PILLOW_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "box": Image.Resampling.BOX}

# Whatever a decoder throws at a damaged file; Pillow's plugins raise nearly every built-in exception.
_DECODER_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    cv2.error,
)


class PictureError(EngineError):
    """A picture that can't be trained on: missing, damaged, too large, or replaced by another since the scan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelJob:
    """What to make of a picture; sizes are (width, height), the crop (left, top, right, bottom) of the resized one.

    `size` is the upright size that the plan was made with: another one means that the file was replaced.
    `orientation` is the EXIF value 1 to 8; None reads it from the file. Of `augmentation` only the mirroring and the
    colours are applied; `shown_as` takes over its cut.
    """

    path: Path
    resized: Size
    crop: Box
    size: Size | None = None
    orientation: int | None = None
    interpolation: Interpolation | None = None
    background: tuple[int, int, int] = WHITE
    augmentation: Augmentation | None = None
    max_pixels: int = MAX_PIXELS
    shows_alpha: bool = False
    """Show the alpha channel as grey, white where there is none, instead of the colours."""

    def shown_as(self, augmentation: Augmentation) -> "PixelJob":
        """Return the job for one showing of the picture: cut, mirrored and coloured as was drawn."""
        return replace(self, resized=augmentation.resized, crop=augmentation.crop, augmentation=augmentation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """The pixels of a picture, (height, width, RGB) uint8, and the BLAKE2b hash (hex) of the file they came from."""

    pixels_HWC: Array
    content: str


def load_pixels(job: PixelJob) -> Pixels:
    """Read and decode a picture once.

    Raises:
        PictureError: It is missing, damaged, too large, of another format, or not the picture that was planned with.
    """
    data = _read(job.path)
    try:
        pixels = _decode(data, job)
    except _DECODER_ERRORS as error:
        raise PictureError(f"{_shown(job)}: {_reason(error)}; replace it or take it out of the data set") from error
    return Pixels(pixels_HWC=_finish(pixels, job), content=content_hash(data))


def load_whole(path: Path, *, max_pixels: int = MAX_PIXELS) -> Array:
    """Return all pixels of a picture, upright, (height, width, RGB), alpha laid on white; no decoder shrinks it.

    Raises:
        EngineError: It is missing, damaged, too large, or of another format.
    """
    job = PixelJob(path=path, resized=(1, 1), crop=(0, 0, 1, 1), interpolation="lanczos", max_pixels=max_pixels)
    try:
        return _decode(_read(path), job)
    except _DECODER_ERRORS as error:
        raise EngineError(f"{_shown(job)}: {_reason(error)}; replace it or take it out of the data set") from error


def load_many(jobs: Iterable[PixelJob], *, workers: int, ahead: int) -> Generator[Pixels, None, None]:
    """Yield the pixels of each job, in order, while threads decode up to `ahead` further ones.

    Threads rather than processes: the decoders release the interpreter lock, and nothing needs to be copied across.

    Raises:
        PictureError: One can't be trained on.
    """
    for pixels in try_many(jobs, workers=workers, ahead=ahead):
        if isinstance(pixels, PictureError):
            raise pixels
        yield pixels


def try_many(jobs: Iterable[PixelJob], *, workers: int, ahead: int) -> Generator[Pixels | PictureError, None, None]:
    """Yield the pixels of each job, in order, or why there are none."""
    waiting: deque[Future[Pixels | PictureError]] = deque()
    pool = ThreadPoolExecutor(max_workers=max(1, workers), thread_name_prefix="pixels", initializer=_one_thread)
    try:
        for job in jobs:
            waiting.append(pool.submit(_try_pixels, job))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_patiently(jobs: Sequence[PixelJob], *, workers: int) -> list[Pixels | PictureError]:
    """Return the pixels of each job or why there are none, after further attempts: a file may be being replaced."""
    found = list(try_many(jobs, workers=workers, ahead=len(jobs)))
    for seconds in RETRY_SECONDS:
        bad = [place for place, pixels in enumerate(found) if isinstance(pixels, PictureError)]
        if not bad:
            break
        time.sleep(seconds)
        for place in bad:
            found[place] = _try_pixels(jobs[place])
    return found


def _try_pixels(job: PixelJob) -> Pixels | PictureError:
    try:
        return load_pixels(job)
    except PictureError as error:
        return error


def content_hash(data: bytes) -> str:
    """Return the hash that names a picture by the bytes of its file: 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def content_of_file(path: Path) -> str:
    """Return the hash of a file's bytes; "" where it can't be read."""
    try:
        return content_hash(path.read_bytes())
    except OSError:
        return ""


def resize(pixels_HWC: Array, size: Size, interpolation: Interpolation | None = None) -> Array:
    """Resize to (width, height); by default area when both sides shrink or stay, else Lanczos."""
    height, width = pixels_HWC.shape[:2]
    if (width, height) == size:
        return pixels_HWC
    name = interpolation or ("area" if width >= size[0] and height >= size[1] else "lanczos")
    if name in _PILLOW_FILTERS:
        return np.asarray(Image.fromarray(pixels_HWC).resize(size, _PILLOW_FILTERS[name]))
    return np.asarray(cv2.resize(pixels_HWC, size, interpolation=_OPENCV_FILTERS[name]), np.uint8)


def _one_thread() -> None:
    cv2.setNumThreads(1)  # The pool is the parallelism; OpenCV's own threads would fight it for the cores.


def _shown(job: PixelJob) -> str:
    return safe_text(str(job.path))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a whole picture in a format that is read (PNG, JPEG, WebP, BMP, GIF, AVIF)"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "has far too many pixels"
    if isinstance(error, MemoryError):
        return "too large to decode in the memory that is free"
    return f"damaged, it can't be decoded ({safe_text(str(error)) or type(error).__name__})"


def _read(path: Path) -> bytes:
    shown = safe_text(str(path))
    try:
        if not path.is_file():  # A named pipe would block for ever.
            raise PictureError(f"{shown}: {'not a regular file' if path.exists() else 'no such file'}")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise PictureError(f"{shown}: larger than 1 GiB, so it is left unread; save it smaller")
        data = path.read_bytes()
    except OSError as error:
        raise PictureError(f"{shown}: can't be read ({error.strerror or error})") from error
    if not data:
        raise PictureError(f"{shown}: the file is empty; replace it or take it out of the data set")
    return data


def _decode(data: bytes, job: PixelJob) -> Array:
    """Return the whole picture upright; a JPEG that shrinks to a quarter or less may come at a fraction of its size."""
    with Image.open(BytesIO(data), formats=_formats()) as image:
        if image.width * image.height > job.max_pixels:
            limit = f"{job.max_pixels / 1e6:g} megapixels"
            raise PictureError(
                f"{_shown(job)}: {image.width}x{image.height} is over the limit of {limit}; save it smaller"
            )
        is_plain = _is_plain(image) and not job.shows_alpha
        if not is_plain:
            image.load()
        orientation = job.orientation or _orientation(image)
        is_turned = orientation >= 5
        _check_size(job, image.size[::-1] if is_turned else image.size)
        if is_plain:
            pixels = _decode_plain(data, image, _least_size(job, is_turned=is_turned))
        else:
            pixels = _alpha(image) if job.shows_alpha else _to_rgb(image, job.background)
    return _upright(pixels, orientation)


def _upright(pixels_HWC: Array, orientation: int) -> Array:
    if orientation >= 5:
        pixels_HWC = np.asarray(cv2.transpose(pixels_HWC), np.uint8)
    if orientation in _FLIPS:
        pixels_HWC = np.asarray(cv2.flip(pixels_HWC, _FLIPS[orientation]), np.uint8)
    return pixels_HWC


def _check_size(job: PixelJob, size: Size) -> None:
    if job.size is not None and size != job.size:
        found, planned = f"{size[0]}x{size[1]}", f"{job.size[0]}x{job.size[1]}"
        raise PictureError(f"{_shown(job)}: is {found} but was {planned} when the data set was scanned; scan it again")


def _least_size(job: PixelJob, *, is_turned: bool) -> Size | None:
    """Return the size, as stored, below which the decoder must not scale; None where it must not scale at all."""
    if job.interpolation not in {None, "area"}:
        return None
    width, height = (2 * side for side in job.resized)  # Below twice the target the scaling costs visible detail.
    return (height, width) if is_turned else (width, height)


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; asked after decoding, since Pillow decodes a whole PNG to find it."""
    try:
        value = int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DECODER_ERRORS:  # Damaged EXIF in a sound picture: viewers show it as it is stored.
        return 1
    return value if 1 <= value <= 8 else 1


def _is_plain(image: Image.Image) -> bool:
    """Whether OpenCV makes of the file what Pillow would: one frame of 8 bits without alpha, palette or CMYK."""
    if image.mode not in {"L", "RGB"}:
        return False
    return image.format in {"JPEG", "MPO"} or (image.format == "WEBP" and not getattr(image, "is_animated", False))


def _decode_plain(data: bytes, image: Image.Image, least_size: Size | None) -> Array:
    """Return the pixels that Pillow would (full size or by `draft`), in half to two thirds of its time."""
    is_jpeg = image.format != "WEBP"
    if not is_jpeg or _has_jpeg_end(data):  # OpenCV fills up a truncated JPEG with grey; Pillow refuses it.
        scale = _jpeg_scale(image.size, least_size) if is_jpeg else 1
        flags = _JPEG_SCALES[scale] | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if pixels is not None and pixels.shape[:2] == (-(-image.height // scale), -(-image.width // scale)):
            return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels), np.uint8)
    return np.asarray(image.convert("RGB"))


def _jpeg_scale(size: Size, least_size: Size | None) -> int:
    """Return by which divisor to shrink in the decoder, leaving at least `least_size`."""
    if least_size is None:
        return 1
    most = min(size[0] // least_size[0], size[1] // least_size[1])
    return max(scale for scale in _JPEG_SCALES if scale == 1 or scale <= most)


def _has_jpeg_end(data: bytes) -> bool:
    """Whether the end mark stands behind the first scan; one before it belongs to a thumbnail."""
    position = 2
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        if data[position + 1] == 0xDA:
            return data.rfind(b"\xff\xd9", position) >= 0
        is_padding = data[position + 1] == 0xFF
        position += 1 if is_padding else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Array:
    """Return 8-bit RGB: 16-bit scaled rather than clipped, alpha laid on the background, the first frame alone."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float32)
        grey = np.clip(values / 257 + 0.5, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        canvas = Image.new("RGB", picture.size, background)
        canvas.paste(picture, mask=picture.getchannel("A"))
        return np.asarray(canvas)
    return np.asarray(image.convert("RGB"))


def _alpha(image: Image.Image) -> Array:
    if not image.has_transparency_data:
        return np.full((image.height, image.width, 3), 255, np.uint8)
    return np.repeat(np.asarray(image.convert("RGBA").getchannel("A"))[:, :, None], 3, axis=2)


def _finish(pixels_HWC: Array, job: PixelJob) -> Array:
    left, top, right, bottom = job.crop
    resized = resize(pixels_HWC, job.resized, job.interpolation)
    assert 0 <= left < right <= resized.shape[1], (job.crop, job.resized)
    assert 0 <= top < bottom <= resized.shape[0], (job.crop, job.resized)
    cropped = resized[top:bottom, left:right]
    if job.augmentation is not None:
        cropped = _augment(cropped, job.augmentation)
    return np.ascontiguousarray(cropped)


def _augment(pixels_HWC: Array, augmentation: Augmentation) -> Array:
    if augmentation.hue is not None:
        hsv = cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2HSV)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(np.int16) + augmentation.hue) % 180
        pixels_HWC = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)
    if augmentation.gamma is not None:
        # On the range of 0 to 1: sd-scripts raises 0..255 itself, which brightens by a quarter instead of a hundredth.
        table = np.rint(255 * (np.arange(256) / 255) ** augmentation.gamma).astype(np.uint8)
        pixels_HWC = table[pixels_HWC]
    return pixels_HWC[:, ::-1] if augmentation.flip else pixels_HWC

"""Latents that sd-scripts cached beside the pictures, one .npz each: found, and read where they fit. Torch-free."""

import struct
import zipfile
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import EngineError, safe_text
from engine.pixels import content_hash

Size = tuple[int, int]
Array = NDArray[Any]

MAX_NPZ_BYTES = 64_000_000  # Four float32 arrays of the largest bucket are a few megabytes.
_DAMAGE = (
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NpzLatents:
    """Unscaled latents of one picture, (channels, height / 8, width / 8) float32, and those of its mirror image.

    `content` is the hash of the file.
    """

    latents: NDArray[np.float32]
    flipped: NDArray[np.float32] | None
    content: str


def find_npz(picture: Path, size: Size) -> Path | None:
    """Return the cache file beside a picture of this (width, height), by the names that sd-scripts looks for."""
    sized = f"{picture.stem}_{size[0]:04d}x{size[1]:04d}"
    # SD 1.x and 2.x caches of fine_tune.py are called "_sdxl" by mistake.
    for name in (f"{picture.stem}.npz", f"{sized}_sd.npz", f"{sized}_sdxl.npz"):
        file = picture.with_name(name)
        if file.is_file():
            return file
    return None


def read_npz(file: Path, *, shape: tuple[int, int, int], size: Size | None, flip: bool) -> NpzLatents:
    """Read a cache file.

    Args:
        file: From `find_npz`.
        shape: (channels, height, width) that the bucket's latents have.
        size: (width, height) of the picture, which the file must have been made from; None where it isn't known.
        flip: Whether the mirror image is needed too.

    Raises:
        EngineError: It does not fit or is damaged; the message says why.
    """
    data = _read(file)
    arrays = _load(file, data)
    if size is not None and "original_size" in arrays:
        original = tuple(int(side) for side in arrays["original_size"].reshape(-1))
        if original != size:
            raise EngineError(f"{_shown(file)}: made from a picture of another size, {original} instead of {size}")
    return NpzLatents(
        latents=_fitting(file, arrays, "latents", shape),
        flipped=_fitting(file, arrays, "latents_flipped", shape) if flip else None,
        content=content_hash(data),
    )


def _shown(file: Path) -> str:
    return safe_text(str(file))


def _read(file: Path) -> bytes:
    try:
        if file.stat().st_size > MAX_NPZ_BYTES:
            raise EngineError(f"{_shown(file)}: too large for a latent cache")
        return file.read_bytes()
    except OSError as error:
        raise EngineError(f"{_shown(file)}: can't be read ({error.strerror or error})") from error


def _load(file: Path, data: bytes) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_NPZ_BYTES:
                raise EngineError(f"{_shown(file)}: too large for a latent cache")
        with np.load(BytesIO(data), allow_pickle=False) as archive:
            wanted = {"latents", "latents_flipped", "original_size"}
            return {name: archive[name] for name in archive.files if name in wanted}
    except _DAMAGE as error:
        raise EngineError(f"{_shown(file)}: not a latent cache that can be read ({safe_text(str(error))})") from error


def _fitting(file: Path, arrays: dict[str, Array], name: str, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    if name not in arrays:
        raise EngineError(f"{_shown(file)}: has no {name}")
    latents = arrays[name]
    if latents.shape != shape:
        raise EngineError(f"{_shown(file)}: {name} are {latents.shape}, which the bucket needs as {shape}")
    if latents.dtype.kind != "f" or not np.isfinite(latents).all():
        raise EngineError(f"{_shown(file)}: {name} are not all finite numbers")
    return latents.astype(np.float32)

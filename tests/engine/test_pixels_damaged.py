"""Picture files that are damaged, hostile or not what was planned: one sentence each, and nothing else."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import EngineError
from engine.pixels import PixelJob, load_pixels

RNG = np.random.default_rng(0)


def _load(path: Path, width: int, height: int, **options: object) -> np.ndarray:
    job = PixelJob(path=path, resized=(width, height), crop=(0, 0, width, height), **options)
    return load_pixels(job).pixels_HWC


def _save(path: Path, picture: Image.Image) -> Path:
    picture.save(path)
    return path


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*each) for each in chunks) + chunk(b"IEND", b"")


def _encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (90, 120, 3)).astype(np.uint8)).save(file, kind, **options)
    return file.getvalue()


DAMAGED = {
    "empty.png": b"",
    "page.jpg": b"<!DOCTYPE html><html></html>",
    "cut.jpg": _encoded("JPEG")[:3000],
    "cut_progressive.jpg": _encoded("JPEG", progressive=True)[:3000],
    "cut.png": _encoded("PNG")[:3000],
    "cut.webp": _encoded("WEBP")[:1500],
    "cut.bmp": _encoded("BMP")[:3000],
    "cut.gif": _encoded("GIF")[:500],
    "header_only.jpg": _encoded("JPEG")[:4],
    "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
    "photoshop.png": b"8BPS\x00\x01" + bytes(100),
    "tiff.png": _encoded("TIFF"),
    "bomb_text.png": _png(8, 8, (b"zTXt", b"a\x00\x00" + zlib.compress(bytes(100_000_000)))),
    "huge.png": _png(50_000, 50_000),
    "large.png": _png(12_000, 12_000),
    "no_pixels.png": _png(8, 8),
    "noise.png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_file_is_named_in_one_sentence(name: str, tmp_path: Path):
    """Truncated, bombs, other formats under a picture's name: no traceback, no grey filling, no Ghostscript."""
    path = tmp_path / name
    path.write_bytes(DAMAGED[name])

    with pytest.raises(EngineError) as caught:
        _load(path, 64, 64)

    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(60))
def test_any_byte_may_be_wrong(seed: int, tmp_path: Path):
    """Flipped bytes give pixels or an EngineError, nothing else."""
    rng = np.random.default_rng(seed)
    kind = ("PNG", "JPEG", "WEBP", "GIF", "BMP")[seed % 5]
    data = bytearray(_encoded(kind))
    for place in rng.integers(0, min(len(data), 700), 4):
        data[place] ^= 1 << rng.integers(8)
    path = tmp_path / "a.png"
    path.write_bytes(data)

    try:
        assert _load(path, 8, 8).shape == (8, 8, 3)
    except EngineError as error:
        assert "a.png" in str(error)  # noqa: PT017 - both outcomes are right


def test_pixel_limit_is_adjustable(tmp_path: Path):
    path = _save(tmp_path / "a.png", Image.new("RGB", (100, 100)))

    with pytest.raises(EngineError, match=r"a\.png: 100x100 is over the limit of 0\.005 megapixels"):
        _load(path, 8, 8, max_pixels=5000)


def test_missing_file_and_named_pipe_are_refused(tmp_path: Path):
    with pytest.raises(EngineError, match="no such file"):
        _load(tmp_path / "gone.png", 8, 8)
    with pytest.raises(EngineError, match="not a regular file"):
        _load(tmp_path, 8, 8)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(EngineError, match="not a regular file"):
            _load(tmp_path / "pipe.png", 8, 8)


def test_picture_replaced_since_the_scan_is_refused(tmp_path: Path):
    """The planned cut would distort it."""
    path = _save(tmp_path / "a.png", Image.new("RGB", (50, 40)))

    with pytest.raises(EngineError, match="is 50x40 but was 40x50 when the data set was scanned"):
        _load(path, 8, 8, size=(40, 50))


def test_escape_codes_in_a_name_are_shown_not_sent(tmp_path: Path):
    path = tmp_path / "a\x1b[2J.png"
    path.write_bytes(b"no picture")

    with pytest.raises(EngineError) as caught:
        _load(path, 8, 8)

    assert "\x1b" not in str(caught.value)

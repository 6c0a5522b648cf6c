"""The size, EXIF orientation and true format of a picture from the first bytes of its file. Torch-free.

Pillow decodes a whole PNG to find its orientation and reads a whole WebP for its size: up to a hundred times slower.
It is asked only for formats that are not read here.
"""

import os
import struct
import zlib
from functools import cache
from typing import Literal

HEAD_BYTES = 4096
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_ENDS = frozenset({0xD9, 0xDA})
_NEXT_BYTES = 64  # Behind the head only the next chunk's header is looked at.
_PIXEL_CHUNKS = 8  # How many are jumped over one by one before the end of the file is searched instead,
_TAIL_BYTES = 4096  # and how much of it.
_CUT_OFF = "the file ends before the picture does"
_MAX_SEGMENTS = 1000  # A sound file has a few dozen; a crafted one could keep us busy for ever.

# O_NONBLOCK: opening a named pipe that took the place of a picture must not wait for its writer.
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

BadKind = Literal["empty", "not-a-picture", "refused-format", "damaged"]

_REFUSED = (
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"8BPS", "PSD"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"%PDF", "PDF"),
    (b"\0\0\1\0", "ICO"),
)
_JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
_HTML = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<svg")
_FALLBACK_FORMATS = ("AVIF", "JXL", "GIF", "PNG", "JPEG", "WEBP", "BMP")  # Never EPS: Pillow starts Ghostscript.

# What Pillow's plugins raise at a damaged header; a fault of the disk comes as OSError from our own reading.
_PILLOW_ERRORS = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, SyntaxError, TypeError,
    ValueError, struct.error, zlib.error,
)  # fmt: skip


# Width, height, EXIF orientation (1 to 8), format, whether it is animated; the size is upright, after the orientation.
# A plain tuple: a named one takes as long to make as the rest of the parsing.
Header = tuple[int, int, int, str, bool]


class BadPictureError(Exception):
    """A file that is no picture to train on."""

    def __init__(self, kind: BadKind, detail: str) -> None:
        super().__init__(detail)
        self.kind: BadKind = kind
        self.detail = detail


def read_header(fd: int, size: int) -> Header:
    """Read the header of an open file of `size` bytes.

    Raises:
        BadPictureError: It is empty, no picture, damaged, or of a format that is not trained on.
        OSError: It can't be read.
    """
    head = os.read(fd, HEAD_BYTES)
    try:
        if head[:3] == b"\xff\xd8\xff":
            found = _parse_jpeg(head, fd)
        elif head[:8] == b"\x89PNG\r\n\x1a\n":
            found = _parse_png(head, fd, size)
        elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            if int.from_bytes(head[4:8], "little") + 8 > size:
                raise BadPictureError("damaged", _CUT_OFF)
            found = _parse_webp(head, fd)
        else:
            found = _parse_bmp(head) if head[:2] == b"BM" else None
    except (IndexError, struct.error) as error:
        raise BadPictureError("damaged", "its header ends early") from error
    if found is None:
        found = _ask_pillow(fd, head)
    if found[0] <= 0 or found[1] <= 0:
        raise BadPictureError("damaged", f"its header says {found[0]}x{found[1]} pixels")
    return found


def _upright(width: int, height: int, orientation: int, name: str, is_animated: bool = False) -> Header:
    if orientation >= 5:
        width, height = height, width
    return width, height, orientation, name, is_animated


def _read_at(fd: int, offset: int, count: int) -> bytes:
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, count)


def _parse_jpeg(head: bytes, fd: int) -> Header | None:
    """Walk the segments up to the frame header; large ones (thumbnails, colour profiles) are jumped over."""
    start, position, orientation = 0, 2, 0  # `start` is where in the file `head` begins; 0 is no EXIF yet.
    for _ in range(_MAX_SEGMENTS):
        if position + 10 > len(head):
            start, position = start + position, 0
            head = _read_at(fd, start, HEAD_BYTES)
        if head[position] != 0xFF:
            return None
        marker = head[position + 1]
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", head, position + 5)
            return _upright(width, height, orientation or 1, "JPEG") if height else None
        if marker in _JPEG_ENDS:
            return None
        length = head[position + 2] << 8 | head[position + 3]
        if marker == 0xE1 and not orientation and head[position + 4 : position + 10] == b"Exif\0\0":
            orientation = _orientation(_piece(head, start, fd, position + 10, length - 8))
        position += 2 + length if marker != 0xFF else 1  # 0xFF: padding before a marker.
    return None


def _piece(head: bytes, start: int, fd: int, position: int, length: int) -> bytes:
    """Return `length` bytes at a position of `head`, from the file where they go beyond it."""
    piece = head[position : position + length]
    return piece if len(piece) == length else _read_at(fd, start + position, length)


def _parse_png(head: bytes, fd: int, size: int) -> Header:
    """Walk the chunks; EXIF may stand before or behind the pixels, of which there may be hundreds of chunks."""
    width, height = struct.unpack_from(">II", head, 16)
    if head[12:16] != b"IHDR":
        raise BadPictureError("damaged", "its first PNG chunk is not IHDR")
    start, position, is_animated, num_pixel_chunks = 0, 33, False, 0
    for _ in range(_MAX_SEGMENTS):
        if position + 8 > len(head):
            start, position = start + position, 0
            head = _read_at(fd, start, _NEXT_BYTES)
            if len(head) < 8:
                break
        length, kind = struct.unpack_from(">I4s", head, position)
        if kind == b"IDAT":
            if start + position + 8 + length > size:
                raise BadPictureError("damaged", _CUT_OFF)
            num_pixel_chunks += 1
            if num_pixel_chunks > _PIXEL_CHUNKS:
                tail = _read_at(fd, max(0, size - _TAIL_BYTES), _TAIL_BYTES)
                return _upright(width, height, _orientation_behind(tail), "PNG", is_animated)
        elif kind == b"eXIf":
            orientation = _orientation(_piece(head, start, fd, position + 8, min(length, 1 << 16)))
            return _upright(width, height, orientation, "PNG", is_animated)
        elif kind == b"IEND":
            break
        else:
            is_animated = is_animated or kind == b"acTL"
        position += 12 + length
    return _upright(width, height, 1, "PNG", is_animated)


def _orientation_behind(tail: bytes) -> int:
    """Return the orientation of an eXIf chunk in the last bytes of a PNG; its checksum tells it from pixels."""
    found = tail.find(b"eXIf")
    while found >= 4:
        length = int.from_bytes(tail[found - 4 : found], "big")
        chunk, checksum = tail[found : found + 4 + length], tail[found + 4 + length : found + 8 + length]
        if len(checksum) == 4 and zlib.crc32(chunk) == int.from_bytes(checksum, "big"):
            return _orientation(chunk[4:])
        found = tail.find(b"eXIf", found + 4)
    return 1


def _parse_webp(head: bytes, fd: int) -> Header | None:
    kind = head[12:16]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(head[24:27], "little")
        height = 1 + int.from_bytes(head[27:30], "little")
        orientation = _webp_orientation(fd) if head[20] & 0x08 else 1
        return _upright(width, height, orientation, "WEBP", bool(head[20] & 0x02))
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF, 1, "WEBP", False
    if kind == b"VP8L" and head[20] == 0x2F:
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), 1, "WEBP", False
    return None


def _webp_orientation(fd: int) -> int:
    """Jump from chunk to chunk to the EXIF one, which stands behind the pixels."""
    position = 12
    for _ in range(_MAX_SEGMENTS):
        chunk = _read_at(fd, position, 8)
        if len(chunk) < 8:
            break
        length = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"EXIF":
            return _orientation(_read_at(fd, position + 8, min(length, 1 << 16)))
        position += 8 + length + length % 2
    return 1


def _parse_bmp(head: bytes) -> Header | None:
    info_bytes = int.from_bytes(head[14:18], "little")
    if info_bytes < 40:
        return None
    width, height = struct.unpack_from("<ii", head, 18)
    return width, abs(height), 1, "BMP", False  # A negative height: rows from top to bottom.


def _orientation(exif: bytes) -> int:
    """Return the orientation (1 to 8) of EXIF data, which is a little TIFF file; 1 where it says nothing sound."""
    if exif[:6] == b"Exif\0\0":
        exif = exif[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 10:
        return 1
    directory = struct.unpack_from(order + "I", exif, 4)[0]
    if directory + 2 > len(exif):
        return 1
    count = struct.unpack_from(order + "H", exif, directory)[0]
    for entry in range(directory + 2, min(directory + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, entry)
        if tag == 0x0112:
            return value if kind == 3 and 1 <= value <= 8 else 1
    return 1


@cache
def _pillow_formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in _FALLBACK_FORMATS if name in Image.OPEN)


def _ask_pillow(fd: int, head: bytes) -> Header:
    """Let Pillow read a header, from formats that are safe to open.

    Raises:
        BadPictureError: It is no picture, or damaged.
    """
    _refuse(head)
    from PIL import Image, UnidentifiedImageError

    os.lseek(fd, 0, os.SEEK_SET)
    try:
        with os.fdopen(os.dup(fd), "rb") as file, Image.open(file, formats=_pillow_formats()) as image:
            # Not asked for a PNG: Pillow would decode all of it.
            orientation = int(image.getexif().get(0x0112, 1)) if image.format != "PNG" else 1
            orientation = orientation if 1 <= orientation <= 8 else 1
            is_animated = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
            return _upright(*image.size, orientation, str(image.format), is_animated)
    except UnidentifiedImageError as error:
        raise BadPictureError("not-a-picture", "not a picture in a format that is read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadPictureError("damaged", "its header says more pixels than a picture can have") from error
    except _PILLOW_ERRORS as error:
        raise BadPictureError("damaged", f"its header can't be read ({type(error).__name__})") from error


def _refuse(head: bytes) -> None:
    """Name what is plainly no picture to train on."""
    if not head:
        raise BadPictureError("empty", "the file is empty")
    for magic, name in _REFUSED:
        if head.startswith(magic):
            raise BadPictureError("refused-format", f"it is a {name} file")
    if head.startswith(_JXL) and "JXL" not in _pillow_formats():
        raise BadPictureError("refused-format", "it is JPEG XL, which Pillow reads only with the pillow-jxl-plugin")
    if head.lstrip()[:9].lower().startswith(_HTML):
        raise BadPictureError("not-a-picture", "it is a web page or text, not a picture")

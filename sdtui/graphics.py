"""Turns pictures into what terminals draw: half blocks, characters, kitty's graphics commands, sixels.

Dimension key: H rows, W columns, K channels.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from rich.color import Color
from rich.segment import Segment
from rich.style import Style

from engine.errors import EngineError, safe_text

Mode = Literal["blocks", "ascii", "kitty", "sixel"]
PIXEL_LIMIT = 64_000_000
CELL = (10, 20)  # Pixels of a cell where the terminal does not tell; only its shape matters for kitty.
SIXEL_COLORS = 128
_RAMP = " .:-=+*#%@"
_PLACEHOLDER = "\U0010eeee"
# Kitty numbers the rows of a picture by combining marks (rowcolumn-diacritics in its protocol's specification).
_ROW_MARKS = (
    0x0305, 0x030D, 0x030E, 0x0310, 0x0312, 0x033D, 0x033E, 0x033F, 0x0346, 0x034A, 0x034B, 0x034C, 0x0350, 0x0351,
    0x0352, 0x0357, 0x035B, 0x0363, 0x0364, 0x0365, 0x0366, 0x0367, 0x0368, 0x0369, 0x036A, 0x036B, 0x036C, 0x036D,
    0x036E, 0x036F, 0x0483, 0x0484, 0x0485, 0x0486, 0x0487, 0x0592, 0x0593, 0x0594, 0x0595, 0x0597, 0x0598, 0x0599,
    0x059C, 0x059D, 0x059E, 0x059F, 0x05A0, 0x05A1, 0x05A8, 0x05A9, 0x05AB, 0x05AC, 0x05AF, 0x05C4,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A picture ready for the terminal: its lines, and the bytes to write apart from them ("" for none)."""

    width: int
    lines: list[list[Segment]]
    commands: str = ""
    image_id: int = 0


def open_picture(path: Path) -> Image.Image:
    """Return a picture as RGB.

    Raises:
        EngineError: It can't be read, or it is too large to be a sample.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > PIXEL_LIMIT:
                raise EngineError(f"{safe_text(path.name)} has {image.width}x{image.height} pixels, too many to show")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise EngineError(f"{safe_text(path.name)} can't be shown ({safe_text(str(error), limit=80)})") from error


def fit_cells(size: tuple[int, int], width: int, height: int, cell: tuple[int, int] = CELL) -> tuple[int, int]:
    """Return the largest (columns, rows) within `width` by `height` cells that keep the shape of a picture."""
    scale = min(width * cell[0] / size[0], height * cell[1] / size[1])
    columns, rows = round(size[0] * scale / cell[0]), round(size[1] * scale / cell[1])
    return max(1, min(width, columns)), max(1, min(height, rows))


def render(image: Image.Image, mode: Mode, width: int, height: int, *, image_id: int = 1) -> Drawing:
    """Return a picture drawn within `width` by `height` cells."""
    columns, rows = fit_cells(image.size, width, height)
    if mode == "kitty" and rows <= len(_ROW_MARKS):
        lines = kitty_lines(image_id, columns, rows)
        commands = kitty_commands(image, image_id, columns, rows)
        return Drawing(width=columns, lines=lines, commands=commands, image_id=image_id)
    if mode == "sixel":
        blank = [[Segment(" " * columns)] for _ in range(rows)]
        scaled = image.resize((columns * CELL[0], rows * CELL[1]), Image.Resampling.LANCZOS)
        return Drawing(width=columns, lines=blank, commands=sixel(scaled))
    lines = ascii_lines(image, columns, rows) if mode == "ascii" else block_lines(image, columns, rows)
    return Drawing(width=columns, lines=lines)


def block_lines(image: Image.Image, columns: int, rows: int) -> list[list[Segment]]:
    """Return half blocks: each cell shows two pixels, the upper as text and the lower as background."""
    pixels_HWK = np.asarray(image.resize((columns, rows * 2), Image.Resampling.LANCZOS))
    lines = []
    for row in range(rows):
        pairs = np.concatenate((pixels_HWK[row * 2], pixels_HWK[row * 2 + 1]), axis=1).tolist()
        lines.append(
            [
                Segment("\u2580", Style(color=Color.from_rgb(*pair[:3]), bgcolor=Color.from_rgb(*pair[3:])))
                for pair in pairs
            ]
        )
    return lines


def ascii_lines(image: Image.Image, columns: int, rows: int) -> list[list[Segment]]:
    """Return characters by brightness, for terminals that have neither colours nor blocks."""
    levels_HW = np.asarray(image.convert("L").resize((columns, rows), Image.Resampling.LANCZOS), np.uint16)
    return [[Segment("".join(_RAMP[level * len(_RAMP) // 256] for level in row))] for row in levels_HW.tolist()]


def kitty_lines(image_id: int, columns: int, rows: int) -> list[list[Segment]]:
    """Return the cells that stand for a picture sent to kitty: their colour is its number, their mark the row."""
    style = Style(color=Color.from_rgb(image_id >> 16 & 255, image_id >> 8 & 255, image_id & 255))
    return [[Segment(_PLACEHOLDER + chr(mark) + _PLACEHOLDER * (columns - 1), style)] for mark in _ROW_MARKS[:rows]]


def kitty_commands(image: Image.Image, image_id: int, columns: int, rows: int) -> str:
    """Return the commands that send a picture to kitty and give it a size in cells; it is drawn where its cells are."""
    scaled = image.copy()
    # Never more pixels than the cells can show: each kilobyte counts over SSH.
    scaled.thumbnail((columns * CELL[0] * 2, rows * CELL[1] * 2), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    scaled.save(buffer, "PNG")
    payload = base64.b64encode(buffer.getvalue()).decode("ascii")
    parts = [payload[start : start + 4096] for start in range(0, len(payload), 4096)]
    head = f"a=T,U=1,f=100,i={image_id},c={columns},r={rows},q=2,"
    return "".join(
        f"\x1b_G{head if number == 0 else ''}m={int(number < len(parts) - 1)};{part}\x1b\\"
        for number, part in enumerate(parts)
    )


def kitty_delete(image_id: int) -> str:
    """Return the command that frees a picture in kitty."""
    return f"\x1b_Ga=d,d=I,i={image_id},q=2\x1b\\"


def sixel(image: Image.Image) -> str:
    """Return a picture as sixels: bands of six rows, in each of them every colour's dots as characters."""
    indexed = image.convert("RGB").quantize(SIXEL_COLORS)
    palette = np.asarray(indexed.getpalette(), np.uint32).reshape(-1, 3)
    colors_HW = np.asarray(indexed)
    height, width = colors_HW.shape
    parts = [f'\x1bP0;1q"1;1;{width};{height}']
    parts += [
        f"#{number};2;" + ";".join(str((channel * 100 + 127) // 255) for channel in color)
        for number, color in enumerate(palette.tolist())
    ]
    weights = (1 << np.arange(6, dtype=np.uint8))[:, None]
    for top in range(0, height, 6):
        band_HW = colors_HW[top : top + 6]
        rows = [
            f"#{color}" + _runs(((band_HW == color) * weights[: len(band_HW)]).sum(axis=0, dtype=np.uint8) + 63)
            for color in np.unique(band_HW).tolist()
        ]
        parts.append("$".join(rows) + "-")
    return "".join(parts) + "\x1b\\"


def _runs(codes_W: "np.typing.NDArray[np.uint8]") -> str:
    """Return sixel characters with repeats written as !<count><character>."""
    borders = np.concatenate(([0], np.flatnonzero(np.diff(codes_W)) + 1, [len(codes_W)]))
    lengths = np.diff(borders).tolist()
    characters = [chr(code) for code in codes_W[borders[:-1]].tolist()]
    pairs = zip(characters, lengths, strict=True)
    return "".join(f"!{length}{char}" if length > 3 else char * length for char, length in pairs)

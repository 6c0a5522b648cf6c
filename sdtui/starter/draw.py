"""Draw the pictures that the starter model learns from, and those of the concept it is to be taught.

Every drawing is a pure function of its random generator. Sizes are (width, height) in pixels; y grows downwards.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from engine.rng import python_rng

Size = tuple[int, int]
Colour = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Colour] = {
    "red": (215, 45, 45),
    "orange": (240, 140, 35),
    "yellow": (240, 215, 60),
    "green": (50, 165, 70),
    "blue": (45, 90, 215),
    "purple": (140, 65, 175),
    "black": (35, 35, 40),
    "white": (235, 235, 230),
}
INK: Colour = (25, 20, 45)
PAPER: Colour = (250, 248, 240)
CONCEPT = "heart"

_OVERSAMPLING = 4  # Pillow draws without anti-aliasing; averaging a larger drawing supplies it.


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A picture and the sentence that describes it."""

    picture: Image.Image
    caption: str


def draw_shape(rng: random.Random, size: Size) -> Drawing:
    """Draw one plain shape of one colour on a background of another."""
    shape = rng.choice(SHAPES)
    colour, background = rng.sample(list(COLOURS), 2)
    picture = _shaded(size, COLOURS[background])
    centre, radius = _placement(rng, size)
    outline = _turned(_OUTLINES[shape], rng.uniform(-12, 12))
    _paint(picture, _placed(outline, centre, radius), COLOURS[colour])
    return Drawing(picture=picture, caption=_caption(colour, shape, background))


def draw_concept(rng: random.Random, size: Size) -> Drawing:
    """Draw a smiling heart like a sticker on a dotted background: a shape and a style that are new to the model."""
    colour, background = rng.sample([name for name in COLOURS if name != "black"], 2)
    picture = _shaded(size, COLOURS[background])
    centre, radius = _placement(rng, size)
    _paint_dots(picture, _lighter(COLOURS[background]), radius)
    heart = _OUTLINES[CONCEPT]
    for scale, fill in ((1.34, PAPER), (1.14, INK), (0.92, COLOURS[colour])):
        _paint(picture, _placed(heart, centre, radius * scale), fill)
    _paint_face(picture, centre, radius)
    return Drawing(picture=picture, caption=_caption(colour, CONCEPT, background))


def draw_doodle(rng: random.Random, size: Size) -> Drawing:
    """Draw a jumble of blobs, shapes and dots in any colours: the VAE must serve more than the captioned pictures."""
    picture = _shaded(size, _any_colour(rng))
    if rng.random() < 0.3:
        _paint_dots(picture, _any_colour(rng), rng.uniform(0.25, 0.5) * min(size))
    for _ in range(rng.randint(1, 4)):
        centre = (rng.uniform(0, size[0]), rng.uniform(0, size[1]))
        radius = rng.uniform(0.1, 0.45) * min(size)
        outline = _turned(_blob(rng) if rng.random() < 0.6 else _OUTLINES[rng.choice(SHAPES)], rng.uniform(0, 360))
        if rng.random() < 0.5:
            _paint(picture, _placed(outline, centre, radius * rng.uniform(1.2, 1.5)), _any_colour(rng))
        _paint(picture, _placed(outline, centre, radius), _any_colour(rng))
    return Drawing(picture=picture, caption="a doodle")


def write_pictures(folder: Path, count: int = 40) -> None:
    """Write `count` pictures of the concept, in several sizes and file formats, each with a `.caption` beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = ((160, 160), (240, 144), (128, 128), (144, 240), (192, 192), (160, 176), (288, 96), (160, 160), (96, 288))
    for index in range(count):
        drawing = draw_concept(python_rng("starter", CONCEPT, index), sizes[index % len(sizes)])
        stem = f"{CONCEPT}_{index:03d}"
        suffix = (".png", ".jpg", ".webp", ".png", ".jpg")[index % 5]
        drawing.picture.save(folder / f"{stem}{suffix}", quality=95)
        (folder / f"{stem}.caption").write_text(f"{drawing.caption}\n", encoding="utf-8")


def _caption(colour: str, shape: str, background: str) -> str:
    first, second = (f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in (colour, background))
    return f"{first} {shape} on {second} background"


def _placement(rng: random.Random, size: Size) -> tuple[Point, float]:
    """Return a centre near the middle and a radius that keep the shape inside, also when the picture is cropped."""
    radius = rng.uniform(0.28, 0.36) * min(size)
    centre = (rng.uniform(0.43, 0.57) * size[0], rng.uniform(0.43, 0.57) * size[1])
    return centre, radius


def _any_colour(rng: random.Random) -> Colour:
    return (rng.randint(15, 250), rng.randint(15, 250), rng.randint(15, 250))


def _lighter(colour: Colour) -> Colour:
    red, green, blue = (round(value + 0.5 * (255 - value)) for value in colour)
    return (red, green, blue)


def _around(corners: int, radii: Sequence[float]) -> list[Point]:
    """Return `corners` points clockwise from the top, whose distances from the origin repeat `radii`."""
    angles = [math.tau * corner / corners for corner in range(corners)]
    return [(radii[i % len(radii)] * math.sin(a), -radii[i % len(radii)] * math.cos(a)) for i, a in enumerate(angles)]


def _heart() -> list[Point]:
    """Return the heart curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, scaled to radius 1."""
    points = []
    for step in range(64):
        t = math.tau * step / 64
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3, -(y + 2.5) / 16))
    return points


def _blob(rng: random.Random) -> list[Point]:
    corners = rng.randint(3, 14)
    return _around(corners, [rng.uniform(0.4, 1.0) for _ in range(corners)])


_OUTLINES: dict[str, list[Point]] = {
    "circle": _around(48, (0.95,)),
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)],
    "star": _around(10, (1.1, 0.46)),
    CONCEPT: _heart(),
}
SHAPES = tuple(name for name in _OUTLINES if name != CONCEPT)


def _turned(outline: Sequence[Point], degrees: float) -> list[Point]:
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return [(x * cosine - y * sine, x * sine + y * cosine) for x, y in outline]


def _placed(outline: Sequence[Point], centre: Point, radius: float) -> list[Point]:
    return [(centre[0] + radius * x, centre[1] + radius * y) for x, y in outline]


def _shaded(size: Size, colour: Colour) -> Image.Image:
    """Return a picture of one colour, lit from above: 8 % brighter at the top and 14 % darker at the bottom."""
    bright, dark = (tuple(min(255, round(value * light)) for value in colour) for light in (1.08, 0.86))
    ramp = Image.linear_gradient("L").resize(size)
    return Image.composite(Image.new("RGB", size, dark), Image.new("RGB", size, bright), ramp)


def _mask(size: Size, outlines: Sequence[Sequence[Point]]) -> Image.Image:
    large = Image.new("L", (size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING))
    canvas = ImageDraw.Draw(large)
    for outline in outlines:
        canvas.polygon([(x * _OVERSAMPLING, y * _OVERSAMPLING) for x, y in outline], fill=255)
    return large.reduce(_OVERSAMPLING)


def _paint(picture: Image.Image, outline: Sequence[Point], colour: Colour) -> None:
    picture.paste(_shaded(picture.size, colour), mask=_mask(picture.size, [outline]))


def _paint_dots(picture: Image.Image, colour: Colour, spacing: float) -> None:
    """Cover the picture with a staggered grid of dots, `spacing` pixels apart."""
    disc = _around(16, (0.2,))
    rows, columns = (math.ceil(length / spacing) + 1 for length in (picture.height, picture.width))
    centres = [(spacing * (column + row % 2 / 2), spacing * row) for row in range(rows) for column in range(columns)]
    mask = _mask(picture.size, [_placed(disc, centre, spacing) for centre in centres])
    picture.paste(_shaded(picture.size, colour), mask=mask)


def _paint_face(picture: Image.Image, centre: Point, radius: float) -> None:
    eyes = [[(side * 0.36 + x, y - 0.25) for x, y in _around(16, (0.18,))] for side in (-1, 1)]
    arc = [math.pi * step / 12 for step in range(13)]
    smile = [(0.42 * math.cos(a), 0.1 + 0.38 * math.sin(a)) for a in arc]
    for outline in (*eyes, smile):
        _paint(picture, _placed(outline, centre, radius), INK)

"""What is changed about a picture each time it is shown: draws only, no pixels. Torch-free.

Every draw is a pure function of (seed, purpose, epoch, picture key, repeat), so that neither threads nor processes nor
a resumed run change it, and turning one augmentation on leaves the draws of the others as they were.
"""

import random
from dataclasses import dataclass
from pathlib import PurePosixPath

from engine.dataset.buckets import Box, Placement, Size
from engine.rng import python_rng

_COLOR_RATE = 0.33
_HUE_LIMIT = 8  # Of 180, as OpenCV counts hue: 16 degrees either way.
_GAMMA_RANGE = (0.95, 1.05)


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentOptions:
    """Which augmentations a subset asks for; names are sd-scripts'."""

    flip_aug: bool = False
    color_aug: bool = False
    random_crop: bool = False
    face_crop_aug_range: tuple[float, float] | None = None

    @property
    def keeps_latents(self) -> bool:
        """Whether the latents of a picture (and of its mirror image) hold for every showing."""
        return not (self.color_aug or self.random_crop or self.face_crop_aug_range)


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """One showing of a picture: what it is resized to and cropped from, then mirrored and coloured."""

    resized: Size
    crop: Box
    flip: bool = False
    hue: int | None = None
    """Turn of the hue in units of 2 degrees."""
    gamma: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """A face that the picture's file name tells of: centre and size, in pixels of the upright picture."""

    x: int
    y: int
    width: int
    height: int


def face_in_name(key: str) -> Face | None:
    """Return the face of a name such as `portrait_240_180_96_110.png` (centre x, centre y, width, height)."""
    parts = PurePosixPath(key).stem.split("_")[-4:]
    if len(parts) < 4 or not all(part.isascii() and part.isdigit() for part in parts):
        return None
    x, y, width, height = (int(part) for part in parts)
    return Face(x=x, y=y, width=width, height=height) if width and height else None


def draw_augmentation(
    options: AugmentOptions, placement: Placement, *, seed: int, epoch: int, key: str, repeat: int
) -> Augmentation:
    """Return what happens to a picture at one showing."""

    def rng(purpose: str) -> random.Random:
        return python_rng(seed, purpose, epoch, key, repeat)

    hue, gamma = _draw_color(rng("color")) if options.color_aug else (None, None)
    resized, crop = placement.resized, placement.crop
    face = face_in_name(key) if options.face_crop_aug_range else None
    if face is not None:
        resized, crop = _crop_face(face, placement, options, rng("face"))
    elif options.random_crop:
        crop = _crop_anywhere(resized, placement.bucket, rng("crop"))
    is_flipped = options.flip_aug and rng("flip").random() < 0.5
    return Augmentation(resized=resized, crop=crop, flip=is_flipped, hue=hue, gamma=gamma)


def _draw_color(rng: random.Random) -> tuple[int | None, float | None]:
    if rng.random() > _COLOR_RATE:
        return None, None
    if rng.random() < 0.5:
        return rng.randint(-_HUE_LIMIT, _HUE_LIMIT), None
    return None, rng.uniform(*_GAMMA_RANGE)


def _crop_anywhere(resized: Size, bucket: Size, rng: random.Random) -> Box:
    left, top = (rng.randint(0, max(0, resized[side] - bucket[side])) for side in (0, 1))
    return left, top, left + bucket[0], top + bucket[1]


def _crop_face(face: Face, placement: Placement, options: AugmentOptions, rng: random.Random) -> tuple[Size, Box]:
    """Return (resized, crop) around a face that fills its range of the short side; never enlarged for the face's sake.

    `face_crop_aug_range` = (a, b): the bucket's short side is a to b times the longer side of the face.
    """
    assert options.face_crop_aug_range is not None
    closest, widest = sorted(options.face_crop_aug_range)
    size, bucket = placement.size, placement.bucket
    face_side = max(face.width, face.height)
    cover = max(bucket[0] / size[0], bucket[1] / size[1])
    smallest, largest = (max(cover, min(1.0, min(bucket) / (face_side * times))) for times in (widest, closest))
    scale = rng.uniform(smallest, largest)
    resized = max(bucket[0], int(size[0] * scale + 0.5)), max(bucket[1], int(size[1] * scale + 0.5))
    left, top = (
        _crop_start(centre * scale, resized[side], bucket[side], options.random_crop, rng)
        for side, centre in enumerate((face.x, face.y))
    )
    return resized, (left, top, left + bucket[0], top + bucket[1])


def _crop_start(centre: float, length: int, target: int, is_random: bool, rng: random.Random) -> int:
    """Return where the crop of one side begins: the face in the middle, or near it with `random_crop`."""
    start = int(centre) - target // 2
    if is_random:
        reach = max(int(centre), length - int(centre))
        start += rng.randint(0, reach) + rng.randint(0, reach) - reach  # Two draws: most often near the middle.
    return max(0, min(start, length - target))

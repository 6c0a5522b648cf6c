"""Picture files to pixels: sd-scripts' pixels where it is right, upright and over the background where it is not."""

import hashlib
import json
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from engine.dataset.augment import Augmentation
from engine.errors import EngineError
from engine.pixels import WHITE, Interpolation, PixelJob, load_many, load_pixels, resize

DATASET = Path(__file__).parents[1] / "golden" / "dataset"
ORIENTATION = 0x0112
RNG = np.random.default_rng(0)


def _smooth(width: int, height: int) -> np.ndarray:
    """Return a picture with detail that JPEG keeps, different in each corner."""
    grid = np.random.default_rng(1).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def _whole(path: Path, width: int, height: int, **options: object) -> PixelJob:
    return PixelJob(path=path, resized=(width, height), crop=(0, 0, width, height), **options)


def _load(path: Path, width: int, height: int, **options: object) -> np.ndarray:
    return load_pixels(_whole(path, width, height, **options)).pixels_HWC


def _save(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


def _established(picture: Image.Image, job: PixelJob) -> np.ndarray:
    """Decode whole, resize by area or Lanczos, cut: what sd-scripts does."""
    pixels = np.array(picture.convert("RGB"), np.uint8)
    if pixels.shape[1] >= job.resized[0] and pixels.shape[0] >= job.resized[1]:
        pixels = cv2.resize(pixels, job.resized, interpolation=cv2.INTER_AREA)
    else:
        pixels = np.array(Image.fromarray(pixels).resize(job.resized, Image.Resampling.LANCZOS))
    left, top, right, bottom = job.crop
    return pixels[top:bottom, left:right]


PLAIN = [name for name in json.loads((DATASET / "meta.json").read_text()) if not name.startswith(("j_", "n_"))]


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("resized", [(101, 67), (192, 192), (683, 512)])
def test_real_pictures_give_the_established_pixels(name: str, resized: tuple[int, int]):
    """Bit for bit, shrunk and grown, for every picture without orientation and alpha."""
    path = DATASET / "images" / name
    with Image.open(path) as picture:
        # A JPEG that shrinks to a quarter is another test's.
        assert picture.format != "JPEG" or max(picture.size) < 4 * max(resized)
        job = PixelJob(path=path, resized=resized, crop=(3, 5, 99, 64))

        np.testing.assert_array_equal(load_pixels(job).pixels_HWC, _established(picture, job))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_pixels_equal_pillows(mode: str, options: dict, tmp_path: Path):
    path = _save(tmp_path / "a.jpg", Image.fromarray(_smooth(333, 251)).convert(mode), **options)

    np.testing.assert_array_equal(np.array(Image.open(path).convert("RGB")), _load(path, 333, 251))


def test_jpeg_far_larger_than_its_bucket_keeps_45_db(tmp_path: Path):
    """The decoder scales only where twice the target is left."""
    original = _smooth(1601, 1203)
    path = _save(tmp_path / "a.jpg", Image.fromarray(original), quality=92)
    truth = cv2.resize(original, (160, 120), interpolation=cv2.INTER_AREA).astype(float)

    error = np.mean((_load(path, 160, 120) - truth) ** 2)

    assert 10 * np.log10(255**2 / error) >= 45


def test_a_chosen_filter_gets_the_full_decode(tmp_path: Path):
    path = _save(tmp_path / "a.jpg", Image.fromarray(_smooth(800, 600)))
    full = np.array(Image.open(path))

    np.testing.assert_array_equal(
        cv2.resize(full, (80, 60), interpolation=cv2.INTER_CUBIC), _load(path, 80, 60, interpolation="cubic")
    )


@pytest.mark.parametrize(
    ("name", "filter_"),
    [
        ("nearest", cv2.INTER_NEAREST_EXACT),
        ("bilinear", cv2.INTER_LINEAR),
        ("linear", cv2.INTER_LINEAR),
        ("bicubic", cv2.INTER_CUBIC),
        ("cubic", cv2.INTER_CUBIC),
        ("area", cv2.INTER_AREA),
    ],
)
@pytest.mark.parametrize("size", [(31, 20), (160, 170)])
def test_filters_of_opencv_go_by_sd_scripts_names(name: Interpolation, filter_: int, size: tuple[int, int]):
    pixels = _smooth(97, 61)

    np.testing.assert_array_equal(cv2.resize(pixels, size, interpolation=filter_), resize(pixels, size, name))


@pytest.mark.parametrize(("name", "filter_"), [("lanczos", Image.Resampling.LANCZOS), ("box", Image.Resampling.BOX)])
def test_filters_of_pillow_go_by_sd_scripts_names(name: Interpolation, filter_: Image.Resampling):
    pixels = _smooth(97, 61)

    np.testing.assert_array_equal(
        np.array(Image.fromarray(pixels).resize((31, 20), filter_)), resize(pixels, (31, 20), name)
    )


def test_one_side_growing_takes_lanczos():
    pixels = _smooth(40, 40)

    np.testing.assert_array_equal(resize(pixels, (20, 60), "lanczos"), resize(pixels, (20, 60)))


def test_right_size_is_left_alone_whatever_the_filter():
    pixels = _smooth(40, 30)

    assert resize(pixels, (40, 30), "lanczos") is pixels


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation: int, suffix: str, tmp_path: Path):
    """All eight, in every format that carries EXIF, and by the plan's value as by the file's."""
    stored = Image.fromarray(_smooth(60, 40))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = _save(tmp_path / f"a.{suffix}", stored, exif=exif, **options)
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(orientation)
    decoded = Image.open(path).convert("RGB")
    expected = decoded if turn is None else decoded.transpose(Image.Transpose(turn))

    np.testing.assert_array_equal(np.array(expected), _load(path, *expected.size, size=expected.size))
    np.testing.assert_array_equal(np.array(expected), _load(path, *expected.size, orientation=orientation))


def test_turned_jpeg_is_scaled_by_its_upright_size(tmp_path: Path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = _save(tmp_path / "a.jpg", Image.fromarray(_smooth(1600, 800)), exif=exif, quality=95)
    upright = cv2.rotate(_smooth(1600, 800), cv2.ROTATE_90_CLOCKWISE)

    difference = _load(path, 100, 200).astype(int) - cv2.resize(upright, (100, 200), interpolation=cv2.INTER_AREA)

    assert np.abs(difference).mean() < 1


def test_orientation_that_does_not_exist_is_ignored(tmp_path: Path):
    exif = Image.Exif()
    exif[ORIENTATION] = 77
    path = _save(tmp_path / "a.png", Image.fromarray(_smooth(60, 40)), exif=exif)

    np.testing.assert_array_equal(_smooth(60, 40), _load(path, 60, 40))


@pytest.mark.parametrize("background", [WHITE, (0, 128, 255)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_laid_on_the_background(mode: str, background: tuple[int, int, int], tmp_path: Path):
    """Colours hidden under transparency never show."""
    picture = Image.new("RGBA", (8, 8), (200, 200, 200, 0))
    picture.paste((90, 90, 90, 255), (0, 0, 4, 8))
    if mode == "P":
        picture = picture.quantize(8)
    path = _save(tmp_path / "a.png", picture.convert(mode))

    pixels = _load(path, 8, 8, background=background)

    assert {(90, 90, 90)} == set(map(tuple, pixels[:, :4].reshape(-1, 3).tolist()))
    assert {background} == set(map(tuple, pixels[:, 4:].reshape(-1, 3).tolist()))


def test_half_transparent_is_mixed(tmp_path: Path):
    path = _save(tmp_path / "a.png", Image.new("RGBA", (4, 4), (0, 0, 0, 128)))

    assert _load(path, 4, 4)[0, 0].tolist() == [127, 127, 127]


def test_colour_named_transparent_shows_the_background(tmp_path: Path):
    path = _save(tmp_path / "a.png", Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))

    assert _load(path, 4, 4)[0, 0].tolist() == [255, 255, 255]


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    path = _save(tmp_path / "a.png", Image.fromarray(ramp))

    pixels = _load(path, 256, 256)

    assert pytest.approx(pixels.mean(), abs=0.1) == 127.5
    assert [pixels[0, 0, 0], pixels[128, 128, 0], pixels[-1, -1, 0]] == [0, 128, 255]


@pytest.mark.parametrize(
    ("mode", "color", "expected", "suffix"),
    [
        ("1", 1, (255, 255, 255), "png"),
        ("1", 0, (0, 0, 0), "bmp"),
        ("L", 90, (90, 90, 90), "png"),
        ("CMYK", (0, 255, 255, 0), (254, 0, 0), "jpg"),
        ("P", 5, None, "gif"),
        ("RGB", (7, 8, 9), (7, 8, 9), "bmp"),
    ],
)
def test_other_modes_become_rgb(mode: str, color: object, expected: object, suffix: str, tmp_path: Path):
    picture = Image.new(mode, (16, 16), color)
    if mode == "P":
        picture.putpalette([value for index in range(256) for value in (index, 2 * index % 256, 255 - index)])
        expected = (5, 10, 250)
    path = _save(tmp_path / f"a.{suffix}", picture)

    np.testing.assert_allclose(_load(path, 16, 16)[3, 3], expected, atol=1)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animation_gives_its_first_frame(suffix: str, tmp_path: Path):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    path = _save(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)

    np.testing.assert_allclose(_load(path, 16, 16)[5, 5], (255, 0, 0), atol=1)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000)])
def test_extreme_shapes_are_resized(size: tuple[int, int], tmp_path: Path):
    path = _save(tmp_path / "a.png", Image.new("RGB", size, "red"))

    np.testing.assert_array_equal(np.full((64, 64, 3), (255, 0, 0)), _load(path, 64, 64))


def test_content_is_the_hash_of_the_file(tmp_path: Path):
    path = _save(tmp_path / "a.png", Image.new("RGB", (4, 4)))

    assert hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() == load_pixels(_whole(path, 4, 4)).content


def _showing(**draws: object) -> Augmentation:
    return Augmentation(resized=(60, 40), crop=(4, 4, 36, 36), **draws)


def _shown(path: Path, **draws: object) -> np.ndarray:
    return load_pixels(_whole(path, 60, 40).shown_as(_showing(**draws))).pixels_HWC


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    return _save(tmp_path / "a.png", Image.fromarray(_smooth(60, 40)))


def test_showing_takes_its_cut_and_mirrors(drawn: Path):
    cut = _smooth(60, 40)[4:36, 4:36]

    np.testing.assert_array_equal(cut, _shown(drawn))
    np.testing.assert_array_equal(cut[:, ::-1], _shown(drawn, flip=True))
    assert _shown(drawn, flip=True).flags.c_contiguous


def test_hue_turns_without_changing_brightness(drawn: Path):
    cut = _smooth(60, 40)[4:36, 4:36]
    turned = _shown(drawn, hue=8)

    hue = cv2.cvtColor(turned, cv2.COLOR_RGB2HSV)[..., 0].astype(int) - cv2.cvtColor(cut, cv2.COLOR_RGB2HSV)[..., 0]
    assert pytest.approx(np.median(hue % 180), abs=1) == 8
    np.testing.assert_allclose(turned.max(axis=2), cut.max(axis=2), atol=1)


def test_hue_wraps_around(drawn: Path):
    np.testing.assert_array_equal(_shown(drawn, hue=-8), _shown(drawn, hue=172))


def test_gamma_keeps_black_and_white_and_moves_the_middle(tmp_path: Path):
    grey = np.repeat(np.array([0, 128, 255], np.uint8), 3).reshape(1, 3, 3)
    path = _save(tmp_path / "a.png", Image.fromarray(grey))
    job = _whole(path, 3, 1)
    showing = Augmentation(resized=(3, 1), crop=(0, 0, 3, 1), gamma=1.05)

    assert load_pixels(job.shown_as(showing)).pixels_HWC[0, :, 0].tolist() == [0, 124, 255]


def test_many_come_in_order_whatever_the_threads(tmp_path: Path):
    jobs = [_whole(_save(tmp_path / f"{value}.png", Image.new("L", (8, 8), value)), 8, 8) for value in range(0, 200, 5)]

    for workers, ahead in ((1, 0), (3, 5), (4, 100)):
        loaded = load_many(jobs, workers=workers, ahead=ahead)
        assert list(range(0, 200, 5)) == [int(pixels.pixels_HWC[0, 0, 0]) for pixels in loaded]


def test_error_comes_at_its_place_in_the_order(tmp_path: Path):
    good = _whole(_save(tmp_path / "good.png", Image.new("RGB", (8, 8))), 8, 8)
    loaded = load_many([good, _whole(tmp_path / "gone.png", 8, 8), good], workers=2, ahead=4)

    assert next(loaded).pixels_HWC.shape == (8, 8, 3)
    with pytest.raises(EngineError, match=r"gone\.png"):
        next(loaded)


def test_jobs_are_taken_only_as_far_ahead_as_told(tmp_path: Path):
    """Memory stays bounded whatever the size of the data set."""
    job = _whole(_save(tmp_path / "a.png", Image.new("RGB", (8, 8))), 8, 8)
    taken = []
    loaded = load_many((taken.append(number) or job for number in range(1000)), workers=2, ahead=3)

    next(loaded)
    assert len(taken) == 4
    loaded.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pixels")]

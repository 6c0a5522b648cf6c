"""Latents that sd-scripts cached: taken where they fit, refused with the reason where they don't."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.latents import Latents, encode_latents, missing_latents
from engine.npz import find_npz

from .latents_support import Encoder, draw_picture, job_for, open_cache


def _npz(picture: Path, name: str, latents: np.ndarray, size: tuple[int, int] = (64, 64), **more: object) -> Path:
    file = picture.with_name(name)
    np.savez(file, latents=latents, original_size=np.array(size), crop_ltrb=np.array([0, 0, *size]), **more)
    return file


def _with_npz(tmp_path: Path, **options: object) -> tuple[Latents, Encoder]:
    path = draw_picture(tmp_path / "a.png", 1)
    file = _npz(path, "a_0064x0064_sd.npz", **options)
    encoder = Encoder()
    flip = "latents_flipped" in options
    latents = encode_latents([job_for(path, npz=file, flip=flip)], open_cache(tmp_path / "c"), encoder)
    return latents, encoder


def test_npz_of_sd_scripts_is_read_where_it_fits(tmp_path: Path):
    stored = np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype(np.float32)

    latents, encoder = _with_npz(tmp_path, latents=stored[0], latents_flipped=stored[1])

    assert (latents.from_npz, encoder.batches) == (1, [])
    np.testing.assert_array_equal(stored, latents.read([0, 0], [False, True]).numpy())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"latents": np.zeros((4, 8, 16), np.float32)}, r"latents are \(4, 8, 16\), which the bucket needs as"),
        ({"latents": np.zeros((4, 8, 8), np.float32), "size": (65, 64)}, "picture of another size"),
        ({"latents": np.full((4, 8, 8), np.nan, np.float32)}, "not all finite"),
        ({"latents": np.zeros((4, 8, 8), np.int32)}, "not all finite"),
        ({"latents": np.array({"a": 1})}, "not a latent cache that can be read"),
        ({"latents": np.full((4, 8, 8), 1e30, np.float32)}, r"latents reach 1\S+ which"),
        ({"latents": np.zeros((4, 8, 8), np.float32), "padding": np.zeros(9_000_000)}, "too large"),
    ],
)
def test_npz_that_does_not_fit_is_refused_and_the_picture_encoded(options: dict, reason: str, tmp_path: Path):
    latents, encoder = _with_npz(tmp_path, **options)

    assert (latents.from_npz, encoder.batches) == (0, [1])
    (refused,) = latents.refused_npz
    assert "a_0064x0064_sd.npz" in refused
    assert re.search(reason, refused)


def test_npz_too_large_for_float16_is_refused(tmp_path: Path):
    path = draw_picture(tmp_path / "a.png", 1)
    job = job_for(path, npz=_npz(path, "a.npz", np.full((4, 8, 8), 1e5, np.float32)))

    latents = encode_latents([job], open_cache(None, dtype="float16"), Encoder())

    assert latents.from_npz == 0
    assert "latents reach 100000.0" in latents.refused_npz[0]


def test_npz_that_ignored_orientation_is_refused(tmp_path: Path):
    path = draw_picture(tmp_path / "a.png", 1)
    job = job_for(path, npz=_npz(path, "a.npz", np.zeros((4, 8, 8), np.float32)))
    turned = replace(job, pixels=replace(job.pixels, orientation=3))

    assert "EXIF orientation" in encode_latents([turned], open_cache(None), Encoder()).refused_npz[0]


def test_npz_is_found_by_the_names_of_sd_scripts(tmp_path: Path):
    """The plain name wins; fine_tune.py calls its caches "_sdxl" by mistake."""
    picture = tmp_path / "a.b.png"
    assert find_npz(picture, (64, 48)) is None
    for name in ("a.b_0064x0048_sdxl.npz", "a.b_0064x0048_sd.npz", "a.b.npz"):
        (tmp_path / name).write_bytes(b"")
        assert find_npz(picture, (64, 48)) == tmp_path / name
    assert find_npz(picture, (48, 64)) == tmp_path / "a.b.npz"


def test_npz_entry_never_stands_in_for_the_picture(tmp_path: Path):
    """What an unknown VAE made is used only when asked for."""
    _with_npz(tmp_path, latents=np.zeros((4, 8, 8), np.float32))
    job = job_for(tmp_path / "a.png")

    assert missing_latents([job], open_cache(tmp_path / "c")) == [job]

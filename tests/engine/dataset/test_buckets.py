"""Buckets agree with sd-scripts number for number, alone and by the million."""

import json
from pathlib import Path

import numpy as np
import pytest

from engine.dataset.buckets import bucket_resolutions, crop_ltrb, place, place_many


@pytest.fixture(scope="module")
def rows() -> dict:
    return json.loads((Path(__file__).parents[2] / "golden" / "bucket_resolutions.json").read_text())


def _buckets(config: dict) -> list:
    return bucket_resolutions(
        tuple(config["max_reso"]), config["min_bucket_reso"], config["max_bucket_reso"], config["steps"]
    )


def test_resolutions_are_those_of_sd_scripts(rows: dict) -> None:
    """Raw limits are rounded to the step; the list is sorted."""
    for config in rows["configs"]:
        if "resolutions" in config:
            assert config["resolutions"] == [list(size) for size in _buckets(config)]


def test_every_golden_picture_is_placed_as_sd_scripts_does(rows: dict) -> None:
    """Bucket, resized size, crop and SDXL's crop conditioning of 3280 pictures; its 20 error rows get valid buckets."""
    errors = 0
    for config in rows["configs"]:
        buckets, max_resolution = _buckets(config), tuple(config["max_reso"])
        for size, row in zip(rows["sizes"], config["rows"], strict=True):
            placed = place(
                tuple(size),
                buckets,
                max_resolution=max_resolution,
                step=config["steps"],
                no_upscale=config["no_upscale"],
            )
            if isinstance(row, dict):
                errors += 1
                assert min(placed.bucket) >= config["steps"]
                continue
            found = [*placed.bucket, *placed.resized, placed.bucket[0] / placed.bucket[1] - size[0] / size[1]]
            assert row[:8] == [*found, *placed.crop[:2], list(crop_ltrb(placed.bucket, tuple(size)))]
    assert errors == 20


@pytest.mark.parametrize("no_upscale", [False, True])
@pytest.mark.parametrize("max_resolution", [(512, 512), (768, 768), (512, 768), (1000, 333)])
def test_many_are_placed_as_each_alone(max_resolution: tuple[int, int], no_upscale: bool) -> None:
    """Vectorised placement equals the plain rule, extreme shapes and the buckets' own sizes included."""
    rng = np.random.default_rng(0)
    buckets = bucket_resolutions(max_resolution, 256, 1024, 64)
    sizes = [
        *rng.integers(1, 5000, (1500, 2)).tolist(),
        *rng.integers(1, 100, (300, 2)).tolist(),
        *buckets,
        *[(7 * width, 7 * height) for width, height in buckets],
        (1, 1), (1, 100_000), (100_000, 1), (20_000, 100), (8165, 128),
    ]  # fmt: skip
    many = place_many(sizes, buckets, max_resolution=max_resolution, step=64, no_upscale=no_upscale)
    for row, size in enumerate(sizes):
        alone = place(tuple(size), buckets, max_resolution=max_resolution, step=64, no_upscale=no_upscale)
        assert alone == many.at(row)
        assert alone.cut_fraction == pytest.approx(many.cut_fractions[row])
    assert list(many.buckets) == sorted({many.at(row).bucket for row in range(len(sizes))})


def test_equal_distances_go_to_the_first_bucket() -> None:
    """A picture halfway between two aspect ratios takes the one that stands first, whichever is wider."""
    for buckets in ([(64, 128), (192, 128)], [(192, 128), (64, 128)]):
        assert place((100, 100), buckets, max_resolution=(128, 128)).bucket == buckets[0]
        assert place_many([(100, 100)], buckets, max_resolution=(128, 128)).at(0).bucket == buckets[0]


def test_a_buckets_own_size_wins_over_its_twin() -> None:
    """Of two buckets with the same shape a picture of exactly one's size goes there, uncropped."""
    buckets = [(128, 128), (256, 256)]
    for size, bucket in (((256, 256), (256, 256)), ((300, 300), (128, 128))):
        assert place(size, buckets, max_resolution=(256, 256)).bucket == bucket
        assert place_many([size], buckets, max_resolution=(256, 256)).at(0).bucket == bucket


def test_without_buckets_a_picture_covers_the_resolution_and_loses_its_edges() -> None:
    """One resolution: resized to cover it, the middle cropped, the cut share told."""
    placed = place((1920, 1080), [(512, 512)], max_resolution=(512, 512))

    assert placed.resized == (910, 512)
    assert placed.crop == (199, 0, 711, 512)
    assert placed.cut_fraction == pytest.approx(1 - 512 / 910)


def test_small_pictures_get_valid_buckets_without_upscale() -> None:
    """A side below the step is enlarged to just one step; the bucket never exceeds the area."""
    for size in [(1, 1), (1, 1000), (63, 64), (100, 10), (1, 100_000), (30_000, 100)]:
        placed = place(size, [], max_resolution=(512, 512), step=64, no_upscale=True)
        assert min(placed.bucket) >= 64
        assert placed.bucket[0] * placed.bucket[1] <= 512 * 512
        assert all(side % 64 == 0 for side in placed.bucket)
        assert all(full >= part for full, part in zip(placed.resized, placed.bucket, strict=True))


def test_limits_below_one_step_do_not_make_empty_buckets() -> None:
    """A shortest side of 8 with steps of 64 is one step."""
    assert min(min(size) for size in bucket_resolutions((512, 512), 8, 1024, 64)) == 64


def test_no_pictures_are_placed_without_fault() -> None:
    """An empty data set has no buckets."""
    for no_upscale in (False, True):
        empty = place_many(np.zeros((0, 2)), [(512, 512)], max_resolution=(512, 512), no_upscale=no_upscale)
        assert (len(empty), empty.buckets) == (0, ())

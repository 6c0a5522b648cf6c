"""Epoch order and augmentation are pure functions of seed, epoch and picture."""

import numpy as np
import pytest

from engine.dataset.augment import AugmentOptions, Face, draw_augmentation, face_in_name
from engine.dataset.buckets import place
from engine.dataset.order import epoch_batches, expand_repeats

BUCKETS_M = np.array([0] * 7 + [1] * 4 + [3] * 9)


def test_every_item_comes_once_in_batches_of_one_bucket() -> None:
    """Full batches and one rest for each bucket; the rests are counted."""
    order = epoch_batches(BUCKETS_M, [2, 4, 1, 5], seed=1, epoch=1)
    batches = [order.at(number) for number in range(len(order))]

    assert sorted(np.concatenate(batches)) == list(range(20))
    assert all(len(set(BUCKETS_M[batch])) == 1 for batch in batches)
    assert sorted(len(batch) for batch in batches) == [1, 2, 2, 2, 4, 4, 5]
    assert order.num_short == 2
    assert [int(start) for start in order.starts] == [0, *np.cumsum([len(batch) for batch in batches])]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    """The same key gives the same order, another epoch or seed another one."""
    first = epoch_batches(BUCKETS_M, 2, seed=1, epoch=1)

    assert np.array_equal(first.items_M, epoch_batches(BUCKETS_M, 2, seed=1, epoch=1).items_M)
    assert not np.array_equal(first.items_M, epoch_batches(BUCKETS_M, 2, seed=1, epoch=2).items_M)
    assert not np.array_equal(first.items_M, epoch_batches(BUCKETS_M, 2, seed=2, epoch=1).items_M)


def test_order_is_pinned() -> None:
    """A changed order would break the resuming of runs begun with an earlier version."""
    assert epoch_batches([0, 0, 0, 1, 1], 2, seed=42, epoch=1).items_M.tolist() == [4, 3, 1, 0, 2]


def test_batches_of_all_buckets_are_mixed() -> None:
    """The buckets do not come one after another."""
    order = epoch_batches(np.repeat([0, 1], 500), 10, seed=0, epoch=1)
    bucket_of_batch = [order.at(number)[0] // 500 for number in range(len(order))]

    assert 20 < np.count_nonzero(np.diff(bucket_of_batch)) < 80


def test_an_empty_epoch_has_no_batches() -> None:
    """Nothing to train on gives no batch rather than a fault."""
    assert len(epoch_batches([], 4, seed=0, epoch=1)) == 0


def test_repeats_make_items() -> None:
    """A picture repeated three times stands for three items, counted from 0."""
    rows_M, repeats_M = expand_repeats([1, 3, 0, 2])

    assert rows_M.tolist() == [0, 1, 1, 1, 3, 3]
    assert repeats_M.tolist() == [0, 0, 1, 2, 0, 1]


PLACED = place((1000, 600), [(512, 512)], max_resolution=(512, 512))


def _draw(options: AugmentOptions, key: str = "a.png", epoch: int = 1, repeat: int = 0):
    return draw_augmentation(options, PLACED, seed=1, epoch=epoch, key=key, repeat=repeat)


def test_nothing_is_drawn_unless_asked_for() -> None:
    """Without augmentation a picture is shown as it was placed."""
    drawn = _draw(AugmentOptions())
    assert (drawn.resized, drawn.crop, drawn.flip, drawn.hue, drawn.gamma) == (
        PLACED.resized, PLACED.crop, False, None, None,
    )  # fmt: skip


def test_draws_hold_for_one_showing_and_do_not_disturb_each_other() -> None:
    """The same key draws the same; turning colour on leaves flips as they were; repeats differ."""
    flips = [_draw(AugmentOptions(flip_aug=True), epoch=epoch).flip for epoch in range(400)]
    both = [_draw(AugmentOptions(flip_aug=True, color_aug=True), epoch=epoch).flip for epoch in range(400)]

    assert flips == both
    assert 150 < sum(flips) < 250
    assert flips[:50] != [_draw(AugmentOptions(flip_aug=True), epoch=epoch, repeat=1).flip for epoch in range(50)]


def test_color_changes_a_third_of_the_pictures_a_little() -> None:
    """Hue by at most 8 of 180, or gamma of 0.95 to 1.05, in 33 of 100 showings."""
    drawn = [_draw(AugmentOptions(color_aug=True), epoch=epoch) for epoch in range(1000)]
    hues = [item.hue for item in drawn if item.hue is not None]
    gammas = [item.gamma for item in drawn if item.gamma is not None]

    assert 270 < len(hues) + len(gammas) < 390
    assert -8 <= min(hues) < 0 < max(hues) <= 8
    assert 0.95 <= min(gammas) < max(gammas) <= 1.05


def test_random_crops_stay_inside_and_reach_both_ends() -> None:
    """The crop lies anywhere along the side that is longer than the bucket."""
    crops = [_draw(AugmentOptions(random_crop=True), epoch=epoch).crop for epoch in range(2000)]
    lefts = {left for left, _, _, _ in crops}

    assert (min(lefts), max(lefts)) == (0, PLACED.resized[0] - 512)
    assert all(right - left == 512 and (top, bottom) == (0, 512) for left, top, right, bottom in crops)


def test_face_crop_frames_the_face_of_the_file_name() -> None:
    """The bucket's short side is 2 to 4 times the face's, and the face lies inside."""
    assert face_in_name("sub/girl_250_200_60_80.png") == Face(x=250, y=200, width=60, height=80)
    assert face_in_name("girl_250_200.png") is None
    large = place((4000, 3000), [(512, 512)], max_resolution=(512, 512))
    options = AugmentOptions(face_crop_aug_range=(2.0, 4.0))
    for epoch in range(50):
        drawn = draw_augmentation(options, large, seed=1, epoch=epoch, key="g_900_700_400_300.png", repeat=0)
        scale = drawn.resized[0] / 4000
        left, top, right, bottom = drawn.crop
        assert 2 <= 512 / (400 * scale) <= 4.02
        assert left <= (900 - 200) * scale
        assert (900 + 200) * scale <= right
        assert (right - left, bottom - top) == (512, 512)
        assert min(left, top) >= 0
        assert (right <= drawn.resized[0], bottom <= drawn.resized[1]) == (True, True)


@pytest.mark.parametrize("changed", [{"color_aug": True}, {"random_crop": True}, {"face_crop_aug_range": (1.0, 2.0)}])
def test_only_flips_leave_latents_valid(changed: dict) -> None:
    """What changes pixels or crops excludes cached latents."""
    assert AugmentOptions(flip_aug=True).keeps_latents
    assert not AugmentOptions(**changed).keeps_latents

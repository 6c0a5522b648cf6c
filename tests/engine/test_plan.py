"""The plan of a run: steps and epochs, windows, and everything random as a function of its place in the run."""

from collections import Counter
from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.inspection import inspect_run
from engine.outlay import disk_bytes, num_saves, num_states
from engine.plan import make_plan
from engine.report import plan_report
from engine.settings_io import load_run

from .run_support import BATCHES, GOLDEN, SIZES, loaded_run, pictures, write_pictures


def plan_for(folder, **values):
    return make_plan(loaded_run(folder, **values).settings, cache_dir=folder / "cache")


def test_an_epoch_shows_every_picture_once_for_each_repeat(tmp_path):
    """In batches of one bucket, the last of a bucket short."""
    plan = plan_for(tmp_path, subset={"num_repeats": 2}, max_train_epochs=2)

    for epoch in (1, 2):
        steps = range((epoch - 1) * plan.steps_per_epoch, epoch * plan.steps_per_epoch)
        batches = [batch for step in steps for batch in plan.window(step)]
        shown = Counter(
            (row, repeat) for batch in batches for row, repeat in zip(batch.rows, batch.repeats, strict=True)
        )
        assert shown == Counter({(row, repeat): 1 for row in range(len(SIZES)) for repeat in (0, 1)})
        assert all(batch.epoch == epoch for batch in batches)
        assert all(plan.placement(row).bucket == batch.bucket for batch in batches for row in batch.rows)
        positions = [position for batch in batches for position in batch.positions]
        assert sorted(positions) == list(range(2 * len(SIZES)))


def test_the_order_changes_with_epoch_and_seed_and_with_nothing_else(tmp_path):
    """A plan made again gives the same windows, asked in any order."""
    first, again = plan_for(tmp_path / "a", max_train_steps=8), plan_for(tmp_path / "b", max_train_steps=8)
    other = plan_for(tmp_path / "c", max_train_steps=8, seed=1)

    windows = [first.window(step) for step in range(8)]
    assert [again.window(step) for step in reversed(range(8))] == windows[::-1]
    assert [other.window(step) for step in range(8)] != windows
    assert [[b.rows for b in window] for window in windows[:4]] != [[b.rows for b in window] for window in windows[4:]]


@pytest.mark.parametrize(
    ("values", "steps", "epochs", "steps_per_epoch"),
    [
        ({"max_train_steps": 1}, 1, 1, BATCHES),
        ({"max_train_steps": 9}, 9, 3, BATCHES),
        ({"max_train_epochs": 3}, 3 * BATCHES, 3, BATCHES),
        ({"max_train_epochs": 3, "gradient_accumulation_steps": 3}, 6, 3, 2),
        ({"max_train_epochs": 1, "gradient_accumulation_steps": 100}, 1, 1, 1),
    ],
)
def test_steps_and_epochs(tmp_path, values, steps, epochs, steps_per_epoch):
    """Epochs win over steps; a step never spans two epochs."""
    plan = plan_for(tmp_path, **values)

    assert (plan.steps, plan.epochs, plan.steps_per_epoch) == (steps, epochs, steps_per_epoch)


def test_captions_and_augmentation_depend_on_their_place_only(tmp_path):
    """Each repeat and epoch draws its own."""
    subset = {"shuffle_caption": True, "flip_aug": True, "num_repeats": 2}
    plan, again = plan_for(tmp_path / "a", subset=subset), plan_for(tmp_path / "b", subset=subset)
    places = [(2, repeat, epoch) for repeat in (0, 1) for epoch in range(1, 20)]

    captions = [plan.caption(row, repeat, epoch=epoch, step=0) for row, repeat, epoch in places]
    flips = [plan.augmentation(row, repeat, epoch=epoch).flip for row, repeat, epoch in places]

    assert captions == [again.caption(row, repeat, epoch=epoch, step=99) for row, repeat, epoch in places]
    assert flips == [again.augmentation(row, repeat, epoch=epoch).flip for row, repeat, epoch in places]
    assert len(set(captions)) > 10
    assert set(flips) == {False, True}
    assert {tuple(sorted(caption.split(", "))) for caption in captions} == {
        ("blue", "green", "red", "white", "yellow")
    }  # fmt: skip


def test_several_data_sets_have_their_own_batch_sizes_and_buckets(tmp_path):
    """A batch never mixes them."""
    write_pictures(tmp_path / "p")
    (tmp_path / "dataset.toml").write_text(
        "[general]\nenable_bucket = true\n"
        "[[datasets]]\nresolution = 64\nmin_bucket_reso = 64\nbatch_size = 3\n[[datasets.subsets]]\nimage_dir = 'p'\n"
        f"[[datasets]]\nresolution = 128\nmin_bucket_reso = 64\nbatch_size = 1\n"
        f"[[datasets.subsets]]\nimage_dir = '{pictures()}'\n"
    )
    (tmp_path / "run.toml").write_text('dataset_config = "dataset.toml"\nmax_train_epochs = 1\n')
    plan = make_plan(load_run(tmp_path / "run.toml").settings, cache_dir=tmp_path / "cache")

    batches = [batch for step in range(plan.steps) for batch in plan.window(step)]
    parts = [{plan.config.part_of_subset[int(plan.catalog.subsets_N[row])] for row in batch.rows} for batch in batches]
    assert all(len(part) == 1 for part in parts)
    assert max(len(batch.rows) for batch, part in zip(batches, parts, strict=True) if part == {0}) == 3
    assert {len(batch.rows) for batch, part in zip(batches, parts, strict=True) if part == {1}} == {1}
    assert sum(len(batch.rows) for batch in batches) == plan.num_images == 14


def test_no_pictures_are_refused(tmp_path):
    """With the folder's name."""
    (tmp_path / "empty").mkdir()

    with pytest.raises(EngineError, match="empty"):
        plan_for(tmp_path, pictures=tmp_path / "empty")


def test_the_report_counts_saves_and_disk(tmp_path):
    """What keep-last leaves, the last model included; latents as precise as the training, mirrored ones twice."""
    plain = plan_for(tmp_path / "a", max_train_steps=8)
    kept = plan_for(
        tmp_path / "b", max_train_epochs=10, save_every_n_epochs=2, save_last_n_epochs=2,
        cache_latents_to_disk=True, subset={"flip_aug": True},
    )  # fmt: skip
    steps = plan_for(tmp_path / "c", max_train_steps=20, save_every_n_steps=2, save_last_n_steps=3)

    assert (num_saves(plain), num_saves(kept), num_saves(steps)) == (1, 3, 4)
    assert disk_bytes(plain)["latents"] == 0
    area = 4 * 64 * 64 + 3 * 128 * 64
    assert disk_bytes(kept)["latents"] == area // 64 * 4 * 4 * 2


def test_the_golden_data_set_has_sd_scripts_buckets(tmp_path):
    """Fourteen pictures, nine batches of two."""
    (tmp_path / "run.toml").write_text(f'dataset_config = "{GOLDEN / "dataset" / "dataset_config_bs2.toml"}"\n')
    found = inspect_run(load_run(tmp_path / "run.toml"), cache_dir=tmp_path)
    plan, report = found.plan, plan_report(found)

    assert (plan.num_images, plan.batches_per_epoch) == (14, 9)
    assert sum(bucket["images"] for bucket in report["buckets"]) == 14
    assert all(Path(image["key"]).suffix for image in report["images"])
    assert all(0 <= image["cut_fraction"] < 0.6 for image in report["images"])


def test_states_are_counted_by_rules_of_their_own_and_weighed(tmp_path):
    """Never fewer than two where any are kept, one at the end, none without being asked for."""

    def counted(**values):
        name = "-".join(map(str, values.values())) or "none"
        return num_states(plan_for(tmp_path / name, max_train_steps=20, save_every_n_steps=2, **values))

    assert counted() == 0
    assert counted(save_state_on_train_end=True) == 1
    assert counted(save_state=True) == 11
    assert counted(save_state=True, save_last_n_steps_state=1) == 3

    found = inspect_run(loaded_run(tmp_path / "size", save_state=True, use_ema=True), cache_dir=tmp_path)
    disk, weights = plan_report(found)["disk"], found.files.info.parameters["unet"]
    assert disk["one_state"] == pytest.approx(weights * 16, rel=0.01)

"""Rows 21, 23, 28 and 44 of docs/reliability.md: pictures that turn out to be damaged, or change while training."""

import shutil

import pytest

from engine import pixels
from engine.caches import WindowSource
from engine.cli import main
from engine.errors import EngineError
from engine.headless import run_engine
from engine.loading import WindowLoader
from tests.engine.run_support import go, loaded_run, new_folder, pictures, write_pictures

from .fault_support import At
from .state_support import go_on


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Pictures that a test may change, and no waiting between attempts."""
    monkeypatch.setattr(pixels, "RETRY_SECONDS", (0.0, 0.0))
    return write_pictures(tmp_path / "pictures")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def spoil(path):
    """Damage the pixels; the length and every header stay."""
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(data[:half] + bytes(byte ^ 0x5A for byte in data[half:-30]) + data[-30:])


def told(run, code="bad-image"):
    return [event.message for event in run.of("warning") if event.code == code]


def test_row_28_a_truncated_picture_is_named_before_the_first_step(tmp_path, own):
    """The scan finds it by its length: nothing is started."""
    truncate(own / "2.png")

    with pytest.raises(EngineError, match=r"2\.png: the file ends before the picture does \(replace it or take it out"):
        go(tmp_path, pictures=own)
    assert not (tmp_path / "out").exists()


def test_row_28_a_damaged_picture_is_named_before_the_first_step(tmp_path, own):
    """Its header is whole, so only decoding finds it: nothing is started."""
    spoil(own / "2.png")

    with pytest.raises(EngineError, match=r"2\.png: damaged, it can't be decoded .*replace it or take it out"):
        go(tmp_path, pictures=own)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_cached", [True, False])
def test_row_28_with_skip_bad_images_a_damaged_picture_is_left_out_and_named_once(tmp_path, own, is_cached):
    """Cached, the epoch has one picture less; else it counts nothing. The file is untouched."""
    spoil(own / "2.png")
    before = (own / "2.png").read_bytes()

    run = go(tmp_path, pictures=own, cache_latents=is_cached, skip_bad_images=True, max_train_epochs=2)

    (message,) = told(run)
    assert run.code == 0
    assert "2.png: damaged" in message
    assert "left out" in message
    assert run.of("started")[0].images == (6 if is_cached else 7)
    assert (own / "2.png").read_bytes() == before


def test_row_28_with_skip_bad_images_a_truncated_picture_is_no_part_of_the_plan(tmp_path, own):
    """It is told with its name, and the epoch has one picture less whether latents are cached or not."""
    truncate(own / "2.png")

    run = go(tmp_path, pictures=own, cache_latents=False, skip_bad_images=True, max_train_steps=1)

    assert run.code == 0
    assert run.of("started")[0].images == 6
    assert any("2.png" in event.message and "ends before" in event.message for event in run.of("warning"))


def test_row_44_a_picture_that_vanishes_stops_the_run_with_model_and_state_saved(tmp_path, own):
    """Exit 1, the picture named, nothing of the training lost: once it is back the run goes on with the same bits."""
    choices, kept = {"pictures": own, "cache_latents": False, "max_train_epochs": 4}, own / "0.kept"
    straight = go(new_folder(), **choices)
    run = go(tmp_path, **choices, listeners=[At({2: lambda: (own / "0.png").rename(kept)})])

    assert run.code == 1
    assert "0.png: no such file" in run.events[-1].message
    model, state = run.of("saved")[-2:]
    assert model.step == state.step == len(run.steps) < len(straight.steps)
    assert main(["verify", str(run.folder / model.path)]) == 0

    kept.rename(own / "0.png")
    resumed = go_on(run.folder)

    assert resumed.code == 0
    assert resumed.losses == straight.losses


def test_row_44_with_skip_bad_images_a_vanished_or_replaced_picture_is_named_once_and_counted(tmp_path, own):
    """The run goes on; the losses of the others are what they are."""

    def change():
        (own / "0.png").unlink()
        shutil.copy(own / "2.png", own / "1.png")  # Another size than was planned with.

    run = go(
        tmp_path, pictures=own, cache_latents=False, skip_bad_images=True, max_train_epochs=6,
        listeners=[At({2: change})],
    )  # fmt: skip

    vanished, replaced = sorted(told(run))
    assert run.code == 0
    assert "0.png: no such file; it is left out" in vanished
    assert "1.png: is 128x64 but was 70x66" in replaced
    assert any("(2 pictures so far)" in message for message in (vanished, replaced))
    assert all(step.loss > 0 for step in run.steps)


def test_row_44_a_picture_that_is_being_replaced_is_tried_again(tmp_path, own, monkeypatch):
    """Three attempts at the same picture before it is given up."""
    attempts, load = [], pixels.load_pixels

    def flicker(job):
        attempts.append(job.path.name)
        if job.path.name == "0.png" and attempts.count("0.png") < 3:
            raise pixels.PictureError("0.png: no such file")
        return load(job)

    monkeypatch.setattr(pixels, "load_pixels", flicker)

    run = go(tmp_path, pictures=own, cache_latents=False, max_train_epochs=1)

    assert run.code == 0
    assert attempts.count("0.png") == 3
    assert told(run) == []


def test_row_21_a_loader_thread_that_dies_ends_the_run_in_a_sentence(tmp_path, monkeypatch):
    """Data loads in threads of this process, so there is no worker to kill: what ends the thread is raised here."""

    def die(_source, _step):
        raise MemoryError

    monkeypatch.setattr(WindowSource, "load", die)

    run = go(tmp_path)

    assert run.code == 1
    assert "memory ran out" in run.events[-1].message


def test_row_21_a_loader_that_is_left_early_leaves_no_thread():
    """Neither after an error nor with windows that nobody takes."""
    loader = WindowLoader(lambda step: (step,), 0, 10**9)
    with loader:
        assert next(loader) == (0,)
    assert not loader._thread.is_alive()


def test_row_23_a_process_out_of_file_descriptors_ends_in_a_sentence(tmp_path):
    """Found by whoever needs the next one; the file is named."""
    resource = pytest.importorskip("resource")
    loaded = loaded_run(tmp_path, pictures=pictures())
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (5, before[1]))
    try:
        with pytest.raises(EngineError, match="Too many open files"):
            run_engine(loaded)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert run_engine(loaded) == 0

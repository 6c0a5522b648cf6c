"""The loss on pictures that are held out: which they are, what is measured, and that training does not notice."""

import json

import numpy as np
import pytest

from engine.border import is_validation_due
from engine.cli import main
from engine.dataset.held_out import held_out
from engine.dataset.order import epoch_batches
from engine.display import describe
from engine.errors import EngineError
from engine.events import Validated, parse_event
from engine.settings import LossSettings, Settings
from engine.validation import timestep_bands

from .run_support import go, pictures, tiny_model, write_run

SPLIT = {"validation_split": 0.4, "validation_seed": 5}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Eight steps with pictures held out, measured every second step."""
    return go(tmp_path_factory.mktemp("measured"), max_train_steps=8, validate_every_n_steps=2, **SPLIT)


def test_a_share_is_held_out_by_key():
    """At least one; an added picture moves few others, and another seed draws others."""
    keys = [f"{number}.png" for number in range(100)]

    chosen = held_out(keys, 0.1, 1)

    assert chosen.sum() == 10
    assert held_out(keys[:3], 0.01, 1).sum() == 1
    assert held_out(keys, 0.0, 1).sum() == 0
    assert (held_out([*keys, "new.png"], 0.1, 1)[:100] != chosen).sum() <= 1
    assert (held_out(keys, 0.1, 2) != chosen).any()


def test_a_bucket_whose_pictures_are_all_held_out_has_no_batches():
    order = epoch_batches(np.array([0, 0, 0]), [2, 2, 2], seed=1, epoch=1)

    assert sorted(np.diff(order.starts).tolist()) == [1, 2]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, [(0, 250), (250, 500), (500, 750), (750, 1000)]),
        ({"min_timestep": 100, "max_timestep": 104}, [(100, 101), (101, 102), (102, 103), (103, 104)]),
        ({"min_timestep": 7, "max_timestep": 7}, [(7, 8)]),
    ],
)
def test_bands_are_equal_parts_of_the_timesteps_that_are_trained(values, expected):
    assert timestep_bands(LossSettings(**values)) == expected


def test_held_out_pictures_are_counted_and_not_trained_on(measured):
    """Three of seven, told by the start of the run; the steps show the others only."""
    started = measured.of("started")[0]

    assert (started.images, started.held_out) == (4, 3)
    assert sum(step.images for step in measured.steps[: started.steps_per_epoch]) == 4


def test_the_loss_is_measured_before_in_between_and_after(measured):
    """With all pictures and bands each time; it falls, since the pictures are of one kind."""
    events = measured.of("validated")

    assert [event.step for event in events] == [0, 2, 4, 6, 8]
    assert {event.images for event in events} == {3}
    assert events[-1].loss < events[0].loss
    for event in events:
        assert [band[:2] for band in event.by_timestep] == [(0, 250), (250, 500), (500, 750), (750, 1000)]
        assert event.loss == pytest.approx(sum(band[2] for band in event.by_timestep) / 4)
        assert all(width % 64 == height % 64 == 0 for width, height, _ in event.by_bucket)
    assert "on 3 pictures held out, at step 8" in describe(events[-1])


def test_measuring_changes_nothing_and_measures_the_same_every_time(measured, tmp_path):
    """A run that measures at other times has the same losses; an untrained model the same loss by any route."""
    run = go(tmp_path, max_train_steps=8, cache_latents=False, validate_every_n_epochs=100, **SPLIT)

    assert run.losses == pytest.approx(measured.losses, rel=1e-4)
    first, last = run.of("validated")
    assert first.loss == pytest.approx(measured.of("validated")[0].loss, rel=1e-4)
    assert last.loss == pytest.approx(measured.of("validated")[-1].loss, rel=1e-3)


def test_the_average_is_what_is_measured(measured, tmp_path):
    """As it is what will be saved."""
    run = go(tmp_path, max_train_steps=4, use_ema=True, ema_decay=0.9, validate_every_n_steps=4, **SPLIT)

    assert run.losses == pytest.approx(measured.losses[:4], rel=1e-5)
    assert run.of("validated")[0].loss == pytest.approx(measured.of("validated")[0].loss, rel=1e-5)
    assert run.of("validated")[1].loss != pytest.approx(measured.of("validated")[2].loss, rel=1e-4)


def test_few_batches_can_be_enough(tmp_path):
    run = go(tmp_path, max_train_steps=1, max_validation_steps=1, train_text_encoder=True, **SPLIT)

    assert [event.images < 3 for event in run.of("validated")] == [True, True]


def test_when_it_is_due():
    class Plan:
        held_out_rows, steps_per_epoch, steps = (1,), 5, 12

    def due(**values):
        training = Settings().replace(**values).training
        return [step for step in range(1, 13) if is_validation_due(training, step, Plan)]

    assert due() == [5, 10, 12]
    assert due(validate_every_n_epochs=2) == [10, 12]
    assert due(validate_every_n_steps=4) == [4, 8, 12]
    Plan.held_out_rows = ()
    assert due() == []


def test_the_plan_says_which_pictures_are_held_out(tmp_path, capsys):
    path = write_run(tmp_path, pictures=pictures(), model=tiny_model(), **SPLIT)

    assert main(["plan", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert main(["plan", str(path)]) == 0

    assert sum(image["held_out"] for image in document["images"]) == 3
    assert "3 of them are held out of training and measured" in capsys.readouterr().err


def test_holding_out_everything_is_refused(tmp_path):
    with pytest.raises(EngineError, match="holds out all 7 pictures"):
        go(tmp_path, validation_split=0.99)


def test_the_event_survives_its_file():
    event = Validated(step=3, loss=0.5, images=2, by_bucket=((64, 64, 0.5),), by_timestep=((0, 250, 0.5),))

    assert parse_event(event.as_line()) == event

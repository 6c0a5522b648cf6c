"""Reading a run's files while they grow: nothing torn, nothing void, nothing hostile gets through."""

import random

import numpy as np
import pytest

from engine.events import EventLog, Started, Step, rebuild_metrics
from engine.run import RunFolder
from sdtui.curvestore import PARSED_STEPS, RunReader
from sdtui.runstate import RunState
from tests.sdtui.fake_run import FakeRun, write_long


def read_all(reader, state):
    while True:
        update = reader.read()
        state.apply(update)
        if not update.has_more:
            return state


def state_of(folder):
    return read_all(RunReader(folder), RunState())


def test_a_run_reads_as_it_was_written(tmp_path):
    """Curves, samples, saves and state come from the files alone."""
    run = FakeRun(done=1240)
    state = state_of(run.write(tmp_path))
    losses = [event.loss for event in run.events() if isinstance(event, Step)]

    assert (state.step, state.steps, state.phase) == (1240, 3000, "crashed")
    np.testing.assert_allclose(state.curves.loss.raw.column.values, losses, rtol=1e-6)
    assert [save.step for save in state.saves] == [500, 1000]
    assert dict.fromkeys(range(200, 1201, 200), 4) == {step: len(drawn) for step, drawn in state.samples.items()}
    assert state.last_step.wait_seconds == 0.004


def test_new_steps_are_followed(tmp_path):
    """A second look brings only what is new; a torn row and a torn line wait until they are whole."""
    folder = FakeRun(done=10).write(tmp_path)
    reader, state = RunReader(folder), RunState()
    read_all(reader, state)
    with (tmp_path / "metrics.bin").open("ab") as metrics, folder.events_path.open("ab") as events:
        metrics.write(b"\0" * 20)
        events.write(b'{"kind":"saved","step":11,"pa')
    read_all(reader, state)

    assert (state.step, len(state.saves)) == (10, 0)
    with (tmp_path / "metrics.bin").open("r+b") as metrics, folder.events_path.open("ab") as events:
        metrics.truncate(10 * 48)
        events.write(b'th":"x","time":1.0,"bytes":1,"seconds":1,"epoch":1}\n')
    log = EventLog(tmp_path)
    rng = random.Random(0)
    log.emit(FakeRun().step_event(11, rng))
    log.close()
    read_all(reader, state)

    assert (state.step, [save.path for save in state.saves]) == (11, ["x"])


@pytest.mark.parametrize("is_rebuilt", [False, True])
def test_a_resume_voids_what_came_after(tmp_path, is_rebuilt):
    """Rows, samples, saves and events beyond the resumed step are gone, whether metrics.bin was rebuilt or not."""
    run = FakeRun(done=1240)
    folder = run.write(tmp_path)
    reader, state = RunReader(folder), RunState()
    read_all(reader, state)
    assert len(state.samples[1200]) == 4
    log = EventLog(tmp_path)
    log.emit(run.started(resumed_from=700))
    if is_rebuilt:
        rebuild_metrics(tmp_path)
    log.close()
    log = EventLog(tmp_path)
    rng = random.Random(5)
    for step in range(701, 721):
        log.emit(run.step_event(step, rng))
    log.close()
    read_all(reader, state)

    assert 720 == state.step == len(state.curves.loss)
    assert [save.step for save in state.saves] == [500]
    assert max(state.samples) == 600
    assert max(series.steps.values[-1] for series in state.curves.bands.values()) == 720
    assert isinstance(state.events[-1], Started)
    assert sum(map(len, state.curves.buckets(9))) == 720


def test_steps_come_from_the_events_when_metrics_are_missing(tmp_path):
    """An old or damaged folder still shows its curve."""
    folder = FakeRun(done=300).write(tmp_path)
    (tmp_path / "metrics.bin").unlink()

    assert len(state_of(folder).curves.loss) == 300


def test_long_runs_read_a_part_of_their_step_lines(tmp_path):
    """All rows count; of the step lines some are read, the newest always, and all other events."""
    folder = write_long(tmp_path, 50_000)
    state = state_of(folder)

    assert (len(state.curves.loss), state.phase, state.stride) == (50_000, "finished", 5)
    assert state.stride == 50_000 // PARSED_STEPS
    assert state.last_step.step == 50_000
    assert len(state.saves) == 5
    assert state.curves.loss.raw.column.values.max() == 2.5


STEP = (
    b'{"kind":"step","step":5,"time":1,"loss":1,"learning_rate":1,"grad_norm":1,"images":1,"seconds":1,'
    b'"wait_seconds":1,"bucket":[1,2],"peak_memory_bytes":1,"epoch":1}'
)
HOSTILE = [
    b"not json",
    b"[]",
    b'{"kind":"step"}',
    STEP.replace(b'"step":5', b'"step":"x"'),
    STEP.replace(b'"loss":1', b'"loss":{}'),
    STEP.replace(b"[1,2]", b"[1]"),
    STEP.replace(b"[1,2]", b"[1,99999]"),
    STEP.replace(b'"epoch":1', b'"epoch":1,"image_losses":["a"]'),
    b'{"kind":"saved","step":[],"time":"now","path":7,"bytes":"many","seconds":null,"epoch":1}',
    b'{"kind":"sampled","step":1,"path":["a"],"prompt":{},"index":"0","seed":1,"epoch":1,"seconds":1}',
    b"\xff\xfe\x00\x1b]52;c;aaaa\x07",
    b'{"kind":"unknown"}',
]


def test_damaged_lines_are_left_out(tmp_path):
    """No line can break a screen."""
    folder = FakeRun(done=20).write(tmp_path)
    with folder.events_path.open("ab") as file:
        file.write(b"\n".join(HOSTILE) + b"\n")
    state = state_of(folder)

    assert (state.step, len(state.events), len(state.saves)) == (20, 1, 0)


def test_an_empty_folder_is_starting(tmp_path):
    """A run that has just been asked for has no files yet."""
    state = state_of(RunFolder(tmp_path))

    assert (state.phase, state.step) == ("starting", 0)


def test_bands_hold_the_losses_of_their_timesteps(tmp_path):
    """The fake run's early timesteps lose more."""
    state = state_of(FakeRun(done=800).write(tmp_path))
    means = [float(np.mean(state.curves.bands[band].raw.column.values)) for band in range(5)]

    assert sorted(means, reverse=True) == means


def test_buckets_split_the_steps(tmp_path):
    """Each step belongs to one bucket, also those that come after the split was asked for."""
    folder = FakeRun(done=100).write(tmp_path)
    reader, state = RunReader(folder), RunState()
    read_all(reader, state)
    assert sum(map(len, state.curves.buckets(9))) == 100
    log = EventLog(tmp_path)
    for step in range(101, 131):
        log.emit(FakeRun().step_event(step, random.Random(step)))
    log.close()
    read_all(reader, state)

    assert sum(map(len, state.curves.buckets(9))) == 130
    assert {"512x512", "512x768", "768x512", "448x576"} == {series.name for series in state.curves.buckets(9)}

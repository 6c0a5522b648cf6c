"""A run folder belongs to one engine, tells its story in events, and takes requests."""

import json
import struct
import subprocess
import sys

import pytest

from engine.errors import EngineError
from engine.events import (
    EVENTS,
    EventLog,
    EventTail,
    Finished,
    Saved,
    Started,
    Step,
    parse_event,
    read_events,
    rebuild_metrics,
    valid_events,
)
from engine.run import Request, RunFolder, list_runs


def step(number: int, loss: float = 0.5) -> Step:
    return Step(
        step=number, time=float(number), loss=loss, learning_rate=1e-5, grad_norm=1.0, images=4, seconds=0.1,
        wait_seconds=0.0, bucket=(64, 128), peak_memory_bytes=1 << 33, epoch=1, image_losses=(0.5,), timesteps=(7,),
    )  # fmt: skip


def started(resumed_from: int | None = None) -> Started:
    return Started(
        name="x", steps=10, epochs=1, steps_per_epoch=10, images=4, seed=1, pid=1, device="cpu", family="sd1",
        trains=("unet",), resumed_from=resumed_from,
    )  # fmt: skip


def test_events_come_back_as_they_were_written(tmp_path):
    """One JSON object a line, with kind, time and step."""
    log = EventLog(tmp_path)
    written = [started(), step(1), Saved(step=1, path="a", bytes=1, seconds=0.1, epoch=1)]
    for event in written:
        log.emit(event)
    log.close()

    assert read_events(tmp_path / "events.jsonl") == written
    record = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[1])
    assert {"kind", "time", "step", "loss", "learning_rate", "grad_norm", "images", "seconds", "bucket"} <= set(record)
    assert record["peak_memory_bytes"] == 1 << 33


def test_every_kind_of_the_contract_exists():
    """Other programs rely on these names."""
    assert set(EVENTS) == {
        "started", "progress", "step", "saved", "sampled", "validated", "requested", "paused", "continued",
        "warning", "interrupted", "failed", "finished",
    }  # fmt: skip


def test_a_torn_last_line_is_ignored_and_completed_later(tmp_path):
    """A reader may come while the engine writes, or after it was killed."""
    path = tmp_path / "events.jsonl"
    line = step(1).as_line()
    path.write_text(line + step(2).as_line()[:20])
    tail = EventTail(path)

    assert [event.step for event in tail.read()] == [1]
    assert [event.step for event in read_events(path)] == [1]
    with path.open("a") as file:
        file.write(step(2).as_line()[20:])
    assert [event.step for event in tail.read()] == [2]


def test_resuming_voids_later_lines():
    """`started` with resumed_from N: what came after step N did not happen."""
    events = valid_events([started(), step(1), step(2), step(3), started(resumed_from=2), step(3, loss=0.1)])

    assert [(event.kind, event.step) for event in events if event.kind == "step"] == [
        ("step", 1), ("step", 2), ("step", 3),
    ]  # fmt: skip
    assert events[-1] == step(3, loss=0.1)


def test_unknown_kinds_and_garbage_are_skipped():
    """A newer version's events must not break an older reader."""
    assert parse_event('{"kind": "from_the_future", "step": 1}') is None
    assert parse_event("[]") is None
    assert parse_event("{") is None
    assert parse_event(
        '{"kind":"finished","time":1.0,"step":2,"path":"p","seconds":1.0,"loss":0.5,"new":1}'
    ) == Finished(time=1.0, step=2, path="p", seconds=1.0, loss=0.5)


def test_metrics_are_fixed_rows_and_can_be_rebuilt(tmp_path):
    """A million steps open at once, without parsing JSON."""
    log = EventLog(tmp_path)
    for number in range(1, 4):
        log.emit(step(number))
    log.close()
    rows = (tmp_path / "metrics.bin").read_bytes()
    (tmp_path / "metrics.bin").unlink()

    rebuild_metrics(tmp_path)

    assert (tmp_path / "metrics.bin").read_bytes() == rows
    assert len(rows) % 3 == 0
    assert struct.unpack_from("<qdf", rows, len(rows) // 3) == (2, 2.0, 0.5)


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    """The message names `resume`."""
    folder = RunFolder.create(tmp_path / "run")
    log = EventLog(folder.path)
    log.emit(started())
    log.close()

    with pytest.raises(EngineError, match="sdtui resume"):
        RunFolder.create(tmp_path / "run")
    assert [run.path for run in list_runs(tmp_path)] == [tmp_path / "run"]


def test_an_unwritable_folder_is_refused(tmp_path):
    """A file where the folder should be stands for every reason."""
    (tmp_path / "file").write_text("")

    with pytest.raises(EngineError, match="can't be written"):
        RunFolder.create(tmp_path / "file" / "run")


def test_one_engine_owns_a_folder_and_a_crash_frees_it(tmp_path):
    """The operating system drops the lock with the process."""
    folder = RunFolder.create(tmp_path)
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom engine.run import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked():\n    print('owned', flush=True)\n    sys.stdin.read()\n"
        "    os._exit(9)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"owned\n"
        assert folder.is_alive()
        with pytest.raises(EngineError, match="already running"), folder.locked():
            pass
        other.kill()
    assert not folder.is_alive()
    with folder.locked():
        assert folder.is_alive()
    assert not folder.is_alive()


def test_requests_are_taken_once_in_order(tmp_path):
    """Renamed into place, deleted when read; what is no request comes back as its reason."""
    folder = RunFolder.create(tmp_path)
    folder.request("pause")
    folder.request("stop", when="epoch")
    (folder.requests_folder / "9-bad.json").write_text('{"verb": "format"}')
    (folder.requests_folder / "99-torn.json").write_text("{")

    taken = folder.take_requests()

    assert taken[:2] == [Request(verb="pause", arguments={}), Request(verb="stop", arguments={"when": "epoch"})]
    assert "format" in str(taken[2])
    assert "torn" in str(taken[3])
    assert folder.take_requests() == []

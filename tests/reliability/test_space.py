"""Rows 5 to 8 of docs/reliability.md: a disk that refuses costs neither the training nor what was saved before."""

import errno
import hashlib
import shutil
import sqlite3
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import torch

from engine import last_save
from engine.errors import EngineError
from engine.events import EventLog, Step, Warned, read_events
from engine.models.lazy import lazy
from engine.models.safetensors_io import write_safetensors
from engine.space import Need, NotWrittenError, as_disk_error, find_space_problems, writing
from engine.telling import Teller
from tests.engine.run_support import go

from .fault_support import REFUSALS, At, Disk, file_size_limit


def warnings_of(run, code):
    return [event.message for event in run.of("warning") if event.code == code]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def step(number: int) -> Step:
    return Step(
        step=number, loss=0.5, learning_rate=1e-5, grad_norm=1.0, images=4, seconds=0.1, wait_seconds=0.0,
        bucket=(64, 128), peak_memory_bytes=0, epoch=1,
    )  # fmt: skip


def test_row_05_disk_full_in_a_save_goes_on_and_the_next_save_succeeds(tmp_path, monkeypatch):
    """The warning names path, bytes needed and bytes free; the older model stays, byte for byte, until replaced."""
    disk, seen = Disk(monkeypatch), {}

    def refuse():
        seen["first"] = digest(tmp_path / "out" / "last-step00000001.safetensors")
        disk.refuse()

    def accept():
        disk.accept()
        seen["kept"] = digest(tmp_path / "out" / "last-step00000001.safetensors")

    run = go(
        tmp_path, max_train_steps=4, save_every_n_steps=1, save_last_n_steps=1,
        listeners=[At({2: refuse, 4: accept})],
    )  # fmt: skip

    (second, third) = warnings_of(run, "not-saved")
    assert run.code == 0
    assert "last-step00000002.safetensors can't be written: the disk is full (needs " in second
    assert "are free there" in second
    assert "last-step00000003" in third
    assert seen["first"] == seen["kept"]
    assert [event.path for event in run.of("saved")][-2:] == ["last-step00000004.safetensors", "last.safetensors"]
    assert not list(run.folder.glob(".*.tmp"))


@pytest.mark.parametrize("name", REFUSALS)
def test_row_05_every_refusal_is_a_sentence_with_cause_and_remedy(tmp_path, monkeypatch, name):
    """ENOSPC, EDQUOT, EFBIG, EROFS, EIO; what stood there before stays whole."""
    disk, path = Disk(monkeypatch), tmp_path / "x.safetensors"
    tensors = {"a": lazy(torch.zeros(1000))}
    write_safetensors(path, tensors, metadata={})
    before = path.read_bytes()
    disk.refuse(REFUSALS[name])

    with pytest.raises(NotWrittenError, match=r"x\.safetensors can't be written: .*needs 4,\d\d\d bytes.*choose"):
        write_safetensors(path, tensors, metadata={})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 576 vs 534"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        sqlite3.OperationalError("database or disk is full"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_row_05_a_full_disk_in_disguise_is_recognised(tmp_path, error):
    """torch.save and SQLite drop the number of the error."""
    with pytest.raises(NotWrittenError, match="the disk is full"), writing(tmp_path / "x", num_bytes=1):
        raise error


def test_row_05_other_errors_are_no_full_disk(tmp_path):
    """A bug must not be told as one."""
    assert as_disk_error(RuntimeError("size mismatch")) is None
    assert as_disk_error(ValueError("unexpected pos")) is None
    with pytest.raises(RuntimeError, match="size mismatch"), writing(tmp_path / "x"):
        raise RuntimeError("size mismatch")


def test_row_05_the_last_save_is_tried_again(tmp_path, monkeypatch):
    """Room that comes back within seconds is enough."""
    disk = Disk(monkeypatch)
    monkeypatch.setattr(last_save, "RETRY_SECONDS", (0.0,))

    class Accept:
        def emit(self, event):
            if isinstance(event, Warned) and event.code == "not-saved":
                disk.accept()

        def close(self):
            pass

    run = go(tmp_path, max_train_steps=1, listeners=[At({1: disk.refuse}), Accept()])

    assert run.code == 0
    assert "it is tried again" in warnings_of(run, "not-saved")[0]
    assert run.events[-1].path == "last.safetensors"


def test_row_05_the_last_model_is_rescued_to_another_folder(tmp_path, monkeypatch):
    """Exit 1, and the sentence says where it lies."""
    monkeypatch.setattr(last_save, "RETRY_SECONDS", ())
    vanish = At({1: lambda: (tmp_path / "out").rename(tmp_path / "away")})

    run = go(tmp_path, max_train_steps=1, listeners=[vanish])

    (rescued,) = (tmp_path / "cache").glob("sdtui-rescued-*/last.safetensors")
    last = read_events(tmp_path / "away" / "events.jsonl")[-1]
    assert run.code == 1
    assert last.kind == "failed"
    assert str(rescued) in last.message
    assert "its folder is gone" in last.message


def test_row_06_a_full_disk_under_the_events_is_told_once_and_nothing_is_lost(tmp_path):
    """Events wait in memory and are written, in order, when there is room again."""
    told = []

    class Listener:
        def emit(self, event):
            told.append(event)

        def close(self):
            pass

    log = EventLog(tmp_path)
    tell = Teller([Listener()], log=log)
    tell(step(1))
    with file_size_limit((tmp_path / "events.jsonl").stat().st_size + 10):
        tell(step(2))
        tell(step(3))
    tell(step(4))
    log.close()

    events = read_events(tmp_path / "events.jsonl")
    assert [event.step for event in events if isinstance(event, Step)] == [1, 2, 3, 4]
    warned = [event.message for event in told if isinstance(event, Warned)]
    assert len(warned) == 2
    assert "events.jsonl can't be written" in warned[0]
    assert "can be written again, nothing is lost" in warned[1]
    assert (tmp_path / "metrics.bin").stat().st_size % 4 == 0


def test_row_06_events_that_wait_take_bounded_memory(tmp_path):
    """The oldest are given up, and counted."""
    log = EventLog(tmp_path, most_waiting_bytes=2000)
    tell = Teller([], log=log)
    with file_size_limit(0):
        for number in range(1, 20):
            tell(step(number))
    tell(step(20))
    log.close()

    events = read_events(tmp_path / "events.jsonl")
    lost = 20 - sum(isinstance(event, Step) for event in events)
    assert 0 < lost < 20
    assert "of its oldest events are lost" in events[-1].message


def test_row_06_a_full_disk_under_samples_and_tensorboard_ends_nothing(tmp_path, monkeypatch):
    """Each is named once."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat --w 64 --h 64 --s 1\n")
    disk = Disk(monkeypatch)
    (tmp_path / "boards").write_text("a file in the way")

    run = go(
        tmp_path, max_train_steps=4, sample_prompts=str(prompts), sample_every_n_steps=1, logging_dir="boards",
        listeners=[At({1: disk.refuse, 3: disk.accept})],
    )  # fmt: skip

    (samples,) = warnings_of(run, "not-sampled")
    (board,) = warnings_of(run, "log")
    assert run.code == 0
    assert "last_000001_00_" in samples
    assert "tfevents" in board
    assert [event.step for event in run.of("sampled")] == [3, 4]


def test_row_06_a_full_disk_under_the_cache_keeps_it_in_memory(tmp_path):
    """Latents and text states; told once each, and the run finishes."""
    with ExitStack() as stack:
        run = go(
            tmp_path, max_train_steps=1, cache_latents_to_disk=True,
            listeners=[_Limit(stack)],
        )  # fmt: skip

    messages = warnings_of(run, "cache")
    assert run.code == 0
    assert len(messages) == 2
    assert all("kept in memory" in message for message in messages)


class _Limit:
    """Lets no file grow beyond 100 bytes between the scan and the last text state."""

    def __init__(self, stack):
        self.stack, self.is_on = stack, False

    def emit(self, event):
        if event.kind == "progress" and event.stage == "scan" and not self.is_on:
            self.is_on = True
            self.stack.enter_context(file_size_limit(100))
        if event.kind == "progress" and event.stage == "text" and event.done == event.total:
            self.stack.close()

    def close(self):
        pass


def test_row_07_a_file_size_limit_goes_on_and_succeeds_when_lifted(tmp_path):
    """EFBIG from the kernel itself, as a quota would: nothing is pruned, nothing half written stays."""
    with ExitStack() as stack:
        limit = partial(stack.enter_context, file_size_limit(200_000))
        run = go(
            tmp_path, max_train_steps=4, save_every_n_steps=1, save_last_n_steps=1,
            listeners=[At({2: limit, 3: stack.close})],
        )  # fmt: skip

    (message,) = warnings_of(run, "not-saved")
    assert run.code == 0
    assert "last-step00000002.safetensors can't be written: the file is larger than" in message
    assert not list(run.folder.glob(".*.tmp"))


def test_row_07_a_limit_that_stays_ends_in_a_sentence_and_keeps_what_was_saved(tmp_path, monkeypatch):
    """Exit 1: no folder takes the last model; the one saved before is whole."""
    monkeypatch.setattr(last_save, "RETRY_SECONDS", ())
    with ExitStack() as stack:
        limit = partial(stack.enter_context, file_size_limit(200_000))
        run = go(tmp_path, max_train_steps=3, save_every_n_steps=2, listeners=[At({3: limit})])

    assert run.code == 1
    assert run.events[-1].kind == "failed"
    assert "last.safetensors can't be written" in run.events[-1].message
    assert "no other folder takes it either" in run.events[-1].message
    assert [path.name for path in run.folder.glob("*.safetensors")] == ["last-step00000002.safetensors"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_row_08_too_little_space_is_refused_or_warned_of_before_the_start(tmp_path, monkeypatch):
    """Less than one model and the caches: an error; less than two: a warning; both with the figures."""
    needs = [
        Need(what="models", path=tmp_path / "out", least_bytes=4_000_000_000, most_bytes=8_000_000_000),
        Need(what="latents", path=tmp_path / "cache", least_bytes=1_000_000_000, most_bytes=1_000_000_000),
    ]

    def found(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, free))
        return [(problem.severity, problem.message) for problem in find_space_problems(needs)]

    assert found(4_900_000_000) == [("error", "models and latents need 5,000 MB, but the disk has 4,900 MB free")]
    assert found(8_900_000_000) == [
        ("warning", "models and latents may take up to 9,000 MB, but the disk has 8,900 MB free")
    ]
    assert found(9_000_000_000) == []


def test_row_08_a_run_without_room_leaves_nothing(tmp_path, monkeypatch):
    """Refused before the model is loaded, naming the folder."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, 1000))

    with pytest.raises(EngineError, match=r"out: models.* need .*, but the disk has 1,000 bytes free"):
        go(tmp_path)
    assert not (tmp_path / "out").exists()

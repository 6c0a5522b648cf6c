"""Rows 12 to 15 and 58 of docs/reliability.md: the run folder, its lock, and disks that can less than others."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from engine import last_save, lock
from engine.checkpoint import Due, ModelSaver
from engine.errors import EngineError
from engine.events import EventLog, Step, read_events
from engine.models.atomic import atomic_file, sync_folder
from engine.run import RunFolder
from engine.settings import Settings
from engine.space import NotWrittenError
from tests.engine.run_support import go, pictures, tiny_model

from .fault_support import At

OWNER = (
    "import sys\nfrom pathlib import Path\nfrom engine.run import RunFolder\n"
    "with RunFolder(Path(sys.argv[1])).locked():\n    print('owned', flush=True)\n    sys.stdin.read()\n"
)


def write_lock(folder: Path, **changes: object) -> Path:
    """Leave a lock file as an engine of this computer and process would, with changes."""
    record = {"pid": os.getpid(), "host": lock._host_id("5"), "salt": "5", "born": psutil.Process().create_time()}
    path = folder / "lock"
    path.write_text(json.dumps(record | changes))
    return path


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_row_12_an_output_folder_that_can_not_be_written_is_refused_before_the_start(tmp_path, monkeypatch, code):
    """The path and what to do; nothing is loaded."""
    write_bytes = Path.write_bytes

    def refuse(path, data):
        if path.name.startswith(".writable"):
            raise OSError(code, os.strerror(code))
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", refuse)

    with pytest.raises(EngineError, match=r"output_dir .*out can't be written: .*choose"):
        go(tmp_path)


def test_row_13_a_folder_that_vanishes_costs_a_save_and_no_training(tmp_path, monkeypatch):
    """What lies under an unmounted disk is another disk: nothing is written there; back again, all goes on."""
    monkeypatch.setattr(last_save, "RETRY_SECONDS", ())
    out, away = tmp_path / "out", tmp_path / "away"

    def vanish():
        out.rename(away)
        out.mkdir()  # The mount point.

    def come_back():
        assert not list(out.iterdir())
        out.rmdir()
        away.rename(out)

    run = go(tmp_path, max_train_steps=4, save_every_n_steps=1, listeners=[At({2: vanish, 4: come_back})])

    messages = [event.message for event in run.of("warning") if event.code == "not-saved"]
    assert run.code == 0
    assert len(messages) == 2
    assert all("out can't be written: its folder is gone (unmounted, moved or deleted)" in text for text in messages)
    assert sorted(path.name for path in out.glob("*.safetensors")) == [
        "last-step00000001.safetensors", "last-step00000004.safetensors", "last.safetensors",
    ]  # fmt: skip


def test_row_13_events_are_written_to_a_disk_that_comes_back_as_another(tmp_path):
    """A descriptor of a disk that was unmounted stays dead: the files are opened anew, never made."""
    folder = tmp_path / "run"
    folder.mkdir()
    log = EventLog(folder)

    def emit(number):
        log.emit(
            Step(
                step=number, loss=0.5, learning_rate=1e-5, grad_norm=1.0, images=4, seconds=0.1, wait_seconds=0.0,
                bucket=(64, 128), peak_memory_bytes=0, epoch=1,
            )
        )  # fmt: skip

    emit(1)
    log._events.close()
    log._is_dead = True
    folder.rename(tmp_path / "away")
    with pytest.raises(OSError, match="No such file"):
        emit(2)
    (tmp_path / "away").rename(folder)
    emit(3)
    log.close()

    assert [event.step for event in read_events(folder / "events.jsonl")] == [1, 2, 3]


def test_row_14_a_second_engine_is_refused_within_a_second_and_kill_9_frees_the_folder(tmp_path):
    """Named by its process; the operating system drops the lock with it."""
    folder = RunFolder.create(tmp_path)
    words = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"owned\n"
        began = time.monotonic()
        with pytest.raises(EngineError, match=rf"already running .*process {other.pid} on this computer"):
            folder.locked().__enter__()
        assert time.monotonic() - began < 1
        assert folder.is_alive()
        other.kill()
    assert not folder.is_alive()
    with folder.locked() as notice:
        assert notice == ""


def test_row_15_a_lock_of_another_computer_is_never_stolen(tmp_path):
    """Locks do not reach through every network disk: the user decides, and is told how."""
    path = write_lock(tmp_path, host="0123456789abcdef", pid=1)

    with pytest.raises(EngineError, match=r"process 1 on another computer .*delete .*lock and start again"):
        RunFolder(tmp_path).locked().__enter__()
    assert json.loads(path.read_text())["pid"] == 1
    path.unlink()
    with RunFolder(tmp_path).locked():
        pass


def test_row_15_a_lock_left_by_a_crash_on_this_computer_is_taken(tmp_path):
    """The operating system says that its process is gone."""
    write_lock(tmp_path, pid=2**22 - 1)

    with RunFolder(tmp_path).locked() as notice:
        assert notice == ""
        assert lock.owner_of(tmp_path / "lock").pid == os.getpid()
    assert (tmp_path / "lock").read_bytes() == b""


@pytest.fixture
def without_locks(monkeypatch):
    """A disk that knows no locks, such as NFS without lockd."""
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("without_locks")
def test_row_58_without_locks_the_lock_file_decides(tmp_path):
    """A living process of this computer refuses, a dead one does not, and the user is told of the risk."""
    folder = RunFolder(tmp_path)
    write_lock(tmp_path)
    assert folder.is_alive()
    with pytest.raises(EngineError, match="already running"):
        folder.locked().__enter__()
    write_lock(tmp_path, host="0123456789abcdef")
    with pytest.raises(EngineError, match="another computer"):
        folder.locked().__enter__()

    write_lock(tmp_path, born=1.0)  # The number was given to another process since.
    assert not folder.is_alive()
    with folder.locked() as notice:
        assert "knows no locks" in notice


@pytest.mark.usefixtures("without_locks")
def test_row_58_a_run_on_a_disk_without_locks_symlinks_and_modes_works(tmp_path, monkeypatch):
    """Told once; caches stay in memory, since two processes could write to one file."""
    tiny_model()  # Made before anything is refused.
    pictures()

    def refuse(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    for name in ("symlink", "link", "chmod", "fchmod"):
        monkeypatch.setattr(os, name, refuse, raising=False)

    run = go(tmp_path, max_train_steps=1, cache_latents_to_disk=True)

    codes = [event.code for event in run.of("warning")]
    assert run.code == 0
    assert codes.count("lock") == 1
    assert codes.count("cache") == 2
    assert (run.folder / "last.safetensors").exists()


def test_row_58_folders_that_can_not_be_synced_are_no_error(tmp_path, monkeypatch):
    """Windows opens no folder, and some network disks refuse to sync one."""
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EACCES, "denied")))
    sync_folder(tmp_path)


def test_row_58_a_rename_that_is_refused_leaves_the_old_file(tmp_path, monkeypatch):
    """Windows refuses while another program reads the file: told as any refusal, tried again at the next save."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")

    def refuse(*_):
        raise PermissionError(errno.EACCES, "The process cannot access the file")

    monkeypatch.setattr(Path, "replace", refuse)

    with pytest.raises(NotWrittenError, match=r"x\.safetensors can't be written"), atomic_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]


def test_row_13_the_saver_knows_a_mount_point_from_its_disk(tmp_path):
    """By the lock file, which no empty mount point has."""
    (tmp_path / "lock").touch()
    saver = ModelSaver(folder=tmp_path, saving=Settings().replace(output_dir="o").saving, metadata=dict)
    (tmp_path / "lock").unlink()

    with pytest.raises(NotWrittenError, match="its folder is gone"):
        saver.save(None, Due(occasion="step", stem="a"), epoch=1, step=1)

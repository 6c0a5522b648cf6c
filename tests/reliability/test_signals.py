"""Rows 16 to 20 and 58 of docs/reliability.md: signals, terminals that go away, systems without POSIX.

tests/engine/test_processes.py has the runs as processes; here the moment of each signal is chosen.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import types

import pytest

from engine import control as control_module
from engine import lock
from engine.control import Control
from engine.display import make_display
from engine.errors import EngineError
from engine.headless import train_headless
from engine.settings import Settings
from tests.engine.run_support import Run, loaded_run

from .fault_support import At


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_row_16_a_signal_ends_the_run_after_the_step_with_the_model_saved(tmp_path, number, code):
    """Whenever it comes: here between the step and what follows it."""
    listener = At({2: lambda: signal.raise_signal(number)})

    run = Run(train_headless(loaded_run(tmp_path, max_train_steps=9), [listener]), tmp_path / "out")

    last = run.events[-1]
    assert run.code == code
    assert (last.kind, last.reason, last.step) == ("interrupted", number.name, 2)
    assert (run.folder / last.saved).exists()


def test_row_17_a_second_interrupt_while_saving_leaves_whole_files(tmp_path):
    """It ends the process at once; half a model is never under a model's name."""
    program = (
        "import signal\nfrom pathlib import Path\nimport sys\nfrom engine.control import Control\n"
        "from engine.models.atomic import atomic_file\ncontrol = Control()\nwith control.signals():\n"
        "    control.is_training = True\n    signal.raise_signal(signal.SIGINT)\n"
        "    with atomic_file(Path(sys.argv[1]) / 'x.safetensors') as file:\n        file.write(b'half')\n"
        "        signal.raise_signal(signal.SIGINT)\n        file.write(b'whole')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)

    assert done.returncode == -signal.SIGINT
    assert not (tmp_path / "x.safetensors").exists()


def test_row_18_a_hangup_detaches_and_the_run_goes_on(tmp_path, monkeypatch):
    """SIGHUP never ends a training."""
    detached = []
    monkeypatch.setattr(control_module, "detach", lambda: detached.append(1))
    listener = At({1: lambda: signal.raise_signal(signal.SIGHUP)})

    run = Run(train_headless(loaded_run(tmp_path, max_train_steps=3), [listener]), tmp_path / "out")

    assert (run.code, detached) == (0, [1])
    assert run.events[-1].kind == "finished"


@pytest.mark.parametrize("term", ["dumb", "", "xterm-256color"])
@pytest.mark.parametrize("size", [("1", "1"), ("500", "200")])
def test_row_19_any_terminal_gets_a_display(monkeypatch, term, size):
    """1 x 1, none, dumb: plain lines at worst."""
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", size[0])
    monkeypatch.setenv("LINES", size[1])
    display = make_display(Settings().logging)
    display.close()


def test_row_20_a_screen_that_dies_is_told_no_more(tmp_path):
    """The run is another's only in being watched."""

    class Dying:
        def emit(self, _event):
            raise BrokenPipeError

        def close(self):
            raise BrokenPipeError

    run = Run(train_headless(loaded_run(tmp_path, max_train_steps=1), [Dying()]), tmp_path / "out")

    assert run.code == 0


def test_row_58_without_sighup_signals_are_still_taken(monkeypatch):
    """Windows has neither it nor, in other threads, any."""
    monkeypatch.delattr(signal, "SIGHUP", raising=False)
    control = Control()
    with control.signals():
        control.is_training = True
        signal.raise_signal(signal.SIGINT)
    assert control.stop_reason == "SIGINT"


def test_row_58_on_windows_a_byte_far_beyond_the_text_is_locked(tmp_path, monkeypatch):
    """So that others can read who owns the folder; a taken one is refused, and it is given back."""
    calls, is_taken = [], []

    def locking(descriptor, mode, count):
        calls.append((mode, os.lseek(descriptor, 0, os.SEEK_CUR), count))
        if is_taken and mode == 2:
            raise PermissionError(13, "Permission denied")

    fake = types.SimpleNamespace(locking=locking, LK_NBLCK=2, LK_UNLCK=0)
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    monkeypatch.setattr(sys, "platform", "win32")
    spec = importlib.util.spec_from_file_location("lock_on_windows", lock.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "lock_on_windows", module)
    spec.loader.exec_module(module)

    with module.held(tmp_path / "lock") as notice:
        assert notice == ""
        assert module.owner_of(tmp_path / "lock").pid == os.getpid()
    assert calls == [(2, 1 << 20, 1), (0, 1 << 20, 1)]
    is_taken.append(True)
    with pytest.raises(EngineError, match="already running"):
        module.held(tmp_path / "lock").__enter__()

"""Nothing that happens to the screen ends a training in its process: proved on real terminals."""

import os
import signal
import termios
import time

import pytest

from engine.events import Started
from tests.sdtui.pty_support import STEPS, PtyProcess, training_app


@pytest.fixture
def start(tmp_path):
    """Start the app on a terminal of its own; returns the process."""
    started = []

    def run(extra="", env=None):
        script = training_app(tmp_path, extra=extra)
        process = PtyProcess(script, env=env, cwd=tmp_path)
        started.append(process)
        return process

    yield run
    for process in started:
        process.close()


def steps_done(folder):
    """How many steps the engine has done."""
    return int((folder / "steps.txt").read_text())


@pytest.mark.parametrize("delay", [0.0, 0.3, 0.7])
def test_training_goes_on_when_the_terminal_is_closed(start, tmp_path, delay):
    """A closed window ends the screen; the process does every step and exits 0."""
    process = start()
    process.read_until(b"Recent")
    time.sleep(delay)
    process.hang_up()

    assert process.wait() == 0
    assert steps_done(tmp_path) == STEPS


def test_training_goes_on_when_the_terminal_is_closed_before_the_first_paint(start, tmp_path):
    """A connection lost while the program starts does not matter either."""
    process = start()
    process.read_until(b"\x1b[?1049h")
    process.hang_up()

    assert process.wait() == 0
    assert steps_done(tmp_path) == STEPS


def test_a_hang_up_without_a_signal_is_noticed(start, tmp_path):
    """Under nohup no signal tells of the closed terminal; the screen ends all the same, without a busy loop."""
    process = start(
        extra="import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); signal.signal = lambda *a: None"
    )
    process.read_until(b"Recent")
    before = os.times().children_user
    process.hang_up()

    assert process.wait() == 0
    assert steps_done(tmp_path) == STEPS
    assert os.times().children_user - before < 20


def test_sigterm_stops_after_the_step_and_exits_143(start, tmp_path):
    """As docker stop and Slurm end a job: the engine is asked to save, the exit code says so."""
    process = start()
    process.read_until(b"Recent")
    process.send(signal.SIGTERM)

    assert process.wait() == 143
    assert (tmp_path / "stopped.txt").read_text() == "SIGTERM"
    assert steps_done(tmp_path) < STEPS


def test_sigint_from_outside_stops_after_the_step_and_exits_130(start, tmp_path):
    """A SIGINT that no key sent means stop."""
    process = start()
    process.read_until(b"Recent")
    process.send(signal.SIGINT)

    assert process.wait() == 130
    assert (tmp_path / "stopped.txt").read_text() == "SIGINT"


def test_leaving_asks_and_detaching_goes_on_with_plain_lines(start, tmp_path):
    """Ctrl+Q never ends a training: it asks, and detach hands over to lines on the same terminal."""
    process = start()
    process.read_until(b"Recent")
    process.press(b"\x11")
    process.read_until(b"Detach")
    process.press(b"\r")

    assert process.wait() == 0
    assert b"the training goes on in this process" in process.output
    assert steps_done(tmp_path) == STEPS


def test_leaving_can_stop_and_save(start, tmp_path):
    """The second answer asks the engine to stop after its step."""
    process = start()
    process.read_until(b"Recent")
    process.press(b"\x11")
    process.read_until(b"Detach")
    process.press(b"j\r")

    assert process.wait() == 0
    assert (tmp_path / "stopped.txt").read_text() == "user"


def test_a_failing_screen_leaves_the_training_alone(start, tmp_path):
    """A bug of the screen becomes one sentence; the engine does every step."""
    process = start(extra="app.action_next_theme = lambda: 1 / 0")
    process.read_until(b"Recent")
    process.press(b"\x14")

    assert process.wait() == 0
    assert b"the screen failed (ZeroDivisionError)" in process.output
    assert steps_done(tmp_path) == STEPS


def test_the_terminal_is_left_as_it_was(start):
    """Modes, mouse, alternate screen and cursor are restored, and library noise never reached the terminal."""
    process = start(extra="app.engine.thread.join(); app.engine = None")
    process.read_until(b"Recent", seconds=15)
    process.press(b"q")

    assert process.wait() == 0
    assert termios.tcgetattr(process.master) == process.modes_before
    ending = process.output[-400:]
    for sequence in (b"\x1b[?1049l", b"\x1b[?25h"):
        assert sequence in ending
    assert process.output.rfind(b"\x1b[?1003l") > process.output.rfind(b"\x1b[?1003h")
    drawn = process.output[process.output.index(b"\x1b[?1049h") :]
    assert b"library noise" not in drawn


def test_the_watcher_freezes_imports_when_training_begins(tmp_path):
    """Half a million imported objects stay out of later garbage collections."""
    import gc

    from sdtui.guard import RunWatcher

    watcher = RunWatcher(tmp_path / "log.txt", has_own_terminal=False)
    started = Started(
        name="a", steps=1, epochs=1, steps_per_epoch=1, images=1, seed=1, pid=1, device="cpu", family="sd1", trains=()
    )
    before = gc.get_freeze_count()
    watcher.emit(started)
    frozen = gc.get_freeze_count()
    gc.unfreeze()

    assert frozen > before


def test_a_stalled_terminal_never_blocks_the_screen(tmp_path):
    """A connection that takes no bytes costs a few seconds in all; what it missed is painted again later."""
    import pty

    from sdtui.driver import TerminalFile

    master, slave = pty.openpty()
    file = TerminalFile(slave)
    resumed = []
    file.on_resumed = lambda: resumed.append(True)
    start = time.monotonic()
    for _ in range(100):
        file.write("x" * 10_000)
    # Two seconds, and two more where the kernel made a little room in between: 100 waits would take 200.
    assert time.monotonic() - start < 8

    while os.read(master, 65_536).__len__() >= 4095:
        pass
    file.write("again")
    assert resumed == [True]
    os.close(master)
    os.close(slave)
    os.close(file.fileno())


def test_a_lost_terminal_is_told_once_and_takes_every_write(tmp_path):
    """Writing to a terminal that is gone neither raises nor waits."""
    import pty

    from sdtui.driver import TerminalFile

    master, slave = pty.openpty()
    file = TerminalFile(slave)
    lost = []
    file.on_lost = lambda: lost.append(True)
    os.close(master)
    file.write("x")
    file.check()
    file.write("x")

    assert lost == [True]
    assert not file.isatty()
    os.close(slave)
    os.close(file.fileno())

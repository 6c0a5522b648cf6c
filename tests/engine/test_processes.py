"""Runs as real processes: signals, a terminal that goes away, the background."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.background import start_in_background
from engine.cli import main
from engine.errors import EngineError
from engine.run import RunFolder

from .run_support import Run, pictures, tiny_model, write_run

FOREVER = 1_000_000


def start(folder: Path, **values) -> subprocess.Popen[bytes]:
    path = write_run(folder, pictures=pictures(), model=tiny_model(), **{"max_train_steps": FOREVER, **values})
    return subprocess.Popen(
        [sys.executable, "-m", "engine", "train", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def until(condition, process=None, seconds=120):
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.stderr.read()
        time.sleep(0.05)


def test_sigint_finishes_the_step_saves_and_exits_130(tmp_path):
    """One sentence to the person, the model whole."""
    run = Run(0, tmp_path / "out")
    with start(tmp_path) as process:
        until(lambda: len(run.steps) >= 2, process)
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=60)

    last = run.events[-1]
    assert process.returncode == 130
    assert (last.kind, last.reason, last.step) == ("interrupted", "SIGINT", len(run.steps))
    assert main(["verify", str(run.folder / last.saved)]) == 0
    assert b"stopped by SIGINT" in shown
    assert b"Traceback" not in shown
    assert not RunFolder(run.folder).is_alive()


def test_a_lost_terminal_does_not_end_the_run_and_sigterm_exits_143(tmp_path):
    """SIGHUP and pipes that nobody reads any more: training goes on; SIGTERM then saves."""
    run = Run(0, tmp_path / "out")
    with start(tmp_path) as process:
        until(lambda: len(run.steps) >= 1, process)
        process.stdout.close()
        process.stderr.close()
        process.send_signal(signal.SIGHUP)
        reached = len(run.steps)
        until(lambda: len(run.steps) > reached + 3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143

    assert (run.events[-1].kind, run.events[-1].reason) == ("interrupted", "SIGTERM")
    assert (run.folder / run.events[-1].saved).exists()


def test_pipes_that_nobody_reads_do_not_change_the_exit_code(tmp_path):
    """Without SIGHUP every write fails; the run finishes with 0 all the same."""
    with start(tmp_path, max_train_steps=30) as process:
        process.stdout.close()
        process.stderr.close()
        assert process.wait(timeout=120) == 0

    assert Run(0, tmp_path / "out").events[-1].kind == "finished"


def test_a_terminal_that_closes_does_not_change_the_exit_code(tmp_path):
    """A live display on a pseudo terminal, whose other end goes away: every write gives EIO."""
    path = write_run(tmp_path, pictures=pictures(), model=tiny_model(), max_train_steps=30)
    run = Run(0, tmp_path / "out")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "engine", "train", str(path)]
    environment = {**os.environ, "TERM": "xterm-256color"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while b"training" not in shown:
            shown += os.read(ours, 65_536)
        os.close(ours)
        assert process.wait(timeout=120) == 0

    assert run.events[-1].kind == "finished"
    assert b"\x1b[?25l" in shown


def test_sigint_before_the_start_leaves_nothing_and_exits_130(tmp_path):
    """Nothing was trained, so nothing is kept."""
    with start(tmp_path) as process:
        until((tmp_path / "out" / "lock").exists, process)
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=60)

    assert process.returncode == 130
    assert not (tmp_path / "out").exists()
    assert b"nothing was started" in shown
    assert b"Traceback" not in shown


def test_a_second_sigint_ends_the_process_at_once():
    """Even where a step hangs."""
    program = (
        "import time\nfrom engine.control import Control\ncontrol = Control()\nwith control.signals():\n"
        "    control.is_training = True\n    print('ready', flush=True)\n    time.sleep(60)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == -signal.SIGINT


def test_background_returns_while_the_run_goes_on(tmp_path):
    """In a session of its own, with its lines in log.txt; a stop request ends it."""
    path = write_run(tmp_path, pictures=pictures(), model=tiny_model(), max_train_steps=FOREVER)
    run = Run(0, tmp_path / "out")

    words = [sys.executable, "-m", "engine", "train", str(path), "--background", "--set", "seed=5"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)

    until(lambda: len(run.steps) >= 1)
    pid = run.of("started")[0].pid
    assert f"process {pid}" in done.stderr
    assert done.stdout == ""
    assert os.getsid(pid) == pid != os.getsid(0)
    assert run.of("started")[0].seed == 5
    RunFolder(run.folder).request("stop")
    until(lambda: run.events[-1].kind == "interrupted")
    until(lambda: not RunFolder(run.folder).is_alive())
    assert "training unet" in (run.folder / "log.txt").read_text()


def test_background_says_why_it_did_not_start(tmp_path, capfd):
    """The reason comes from the new process, on the same terminal."""
    path = write_run(tmp_path, pictures=pictures(), model=tmp_path / "none.ckpt")

    with pytest.raises(EngineError, match="not started"):
        start_in_background(path)
    assert "none.ckpt" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()

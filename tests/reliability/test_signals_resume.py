"""Real processes, real signals at random moments: exit code, state, and the same bits after resume."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from engine.events import read_events
from tests.engine.run_support import new_folder

from .state_support import STEPS, go_on, hashes, train, write

COUNT = 100 if os.environ.get("SDTUI_SOAK") else 2
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}


@pytest.fixture(scope="module")
def prepared():
    """A run that has not started yet, and the hashes it must end with."""
    path = write(new_folder())
    straight = train(path)
    expected = hashes(straight.folder)
    shutil.rmtree(straight.folder)
    return path, expected


def test_row_16_a_signal_at_any_moment_leaves_a_run_that_ends_with_the_same_bits(prepared):
    """SIGINT and SIGTERM end it with their exit codes after a saved state, SIGKILL at once; resume finishes it."""
    path, expected = prepared
    rng = random.Random(16)
    for number in range(COUNT):
        folder = shutil.copytree(path.parent, new_folder(), dirs_exist_ok=True)
        sent = list(SIGNALS)[number % 3] if COUNT > 3 else (signal.SIGTERM, signal.SIGKILL)[number]
        step = rng.randrange(5, STEPS - 2)
        code = _train_and_signal(folder, sent, step, delay=rng.random() * 0.1)
        # On a machine that is quick enough the run is over by then.
        is_over = read_events(folder / "out" / "events.jsonl")[-1].kind == "finished"
        assert code == (0 if is_over else SIGNALS[sent])

        if not is_over:
            go_on(folder / "out")

        assert hashes(folder / "out") == expected, (sent, step)
        shutil.rmtree(folder)


def _train_and_signal(folder, number, step, *, delay):
    """Start a run as a user does, send a signal some time after a step, and return the exit code."""
    command = [sys.executable, "-m", "engine", "train", str(folder / "run.toml")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=folder) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            events = read_events(folder / "out" / "events.jsonl")
            if events and events[-1].step >= step:
                break
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(number)
        return process.wait(timeout=60)

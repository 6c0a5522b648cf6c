"""Plain attach: lines only, without Textual or torch."""

import io
import subprocess
import sys

import pytest

from engine.events import EventLog, Interrupted
from sdtui.attach import attach_plain
from tests.sdtui.fake_run import TIME, FakeRun


def lines_of(folder, sleep=None):
    out = io.StringIO()
    code = attach_plain(folder, out=out, sleep=sleep or (lambda _seconds: None))
    return code, out.getvalue().splitlines()


@pytest.mark.parametrize(("ending", "code", "last"), [
    (lambda run: run.finished(), 0, "finished 3000 steps in 17:30, mean loss 0.0911: last.safetensors"),
    (lambda run: run.failed("out of memory"), 1, "failed at step 300: out of memory"),
    (lambda _run: Interrupted(step=300, time=TIME, reason="SIGTERM"), 0, "stopped by SIGTERM at step 300"),
])  # fmt: skip
def test_an_ended_run_is_told_and_left(tmp_path, ending, code, last):
    """History in a few lines, the newest step once, the exit code of its end."""
    run = FakeRun(done=300)
    result, lines = lines_of(run.write(tmp_path, ending(run)))

    assert (code, last) == (result, lines[-1])
    assert lines[0].startswith("training unet: 3000 steps")
    assert sum(line.startswith("step ") for line in lines) == 1
    assert any(line.startswith("step 300/3000") for line in lines)


def test_a_live_run_is_followed_to_its_end(tmp_path):
    """It waits while the engine lives and prints what comes."""
    run = FakeRun(done=300)
    folder = run.write(tmp_path)
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            log = EventLog(tmp_path)
            log.emit(run.finished())
            log.close()

    with folder.locked():
        code, lines = lines_of(folder, sleep)

    assert (code, len(waits)) == (0, 3)
    assert lines[-1].startswith("finished")


def test_a_vanished_engine_is_an_error(tmp_path):
    """It must not wait for ever."""
    code, lines = lines_of(FakeRun(done=30).write(tmp_path))

    assert code == 1
    assert "engine is gone" in lines[-1]


def test_hostile_text_is_escaped(tmp_path):
    """No control character reaches the terminal."""
    run = FakeRun(done=3)
    _code, lines = lines_of(run.write(tmp_path, run.failed("\x1b]52;c;aGk=\x07\u202e")))

    assert lines[-1] == "failed at step 3: \\x1b]52;c;aGk=\\x07\\u202e"


def test_neither_textual_nor_torch_is_imported():
    """It serves machines and lines that can't afford them."""
    code = "import sys, sdtui.attach; print(sorted({'textual', 'torch', 'PIL', 'pydantic'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

"""How a run is steered and ended from outside: requests, signals, a terminal that goes away, the background."""

import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from engine.background import start_in_background
from engine.cli import main
from engine.errors import EngineError
from engine.events import Progress, Step
from engine.headless import run_engine, start_in_thread, train_headless
from engine.librarylog import library_log
from engine.run import RunFolder

from .run_support import BATCHES, Run, go, loaded_run, pictures, tiny_model, write_run

FOREVER = 1_000_000


class Asker:
    """A listener that sends requests after given steps, as a screen in another process does."""

    def __init__(self, folder, requests):
        self.folder, self.requests = RunFolder(folder), dict(requests)

    def emit(self, event):
        if isinstance(event, Step) and event.step in self.requests:
            for verb, arguments in self.requests.pop(event.step):
                self.folder.request(verb, **arguments)

    def close(self):
        pass


def ask(tmp_path, requests, **values):
    return go(tmp_path, listeners=[Asker(tmp_path / "out", requests)], **{"max_train_steps": 8, **values})


def answers(run):
    return [(event.step, event.verb, event.accepted) for event in run.of("requested")]


def test_stop_ends_after_the_step_and_saves(tmp_path):
    """Asked for, not a failure: exit 0, `interrupted` last, the model under the step's name."""
    run = ask(tmp_path, {3: [("stop", {})]})

    last = run.events[-1]
    assert run.code == 0
    assert answers(run) == [(3, "stop", True)]
    assert (last.kind, last.step, last.reason, last.saved) == (
        "interrupted",
        3,
        "request",
        "last-step00000003.safetensors",
    )
    assert main(["verify", str(run.folder / last.saved)]) == 0
    assert not list((run.folder / "requests").iterdir())


def test_stop_may_discard_or_wait_for_the_epoch(tmp_path):
    """`save` false saves nothing; `when` epoch trains on to its end."""
    discarded = ask(tmp_path / "a", {2: [("stop", {"save": False})]})
    at_epoch = ask(tmp_path / "b", {1: [("stop", {"when": "epoch"})]})

    assert not list(discarded.folder.glob("*.safetensors"))
    assert (discarded.events[-1].step, discarded.events[-1].saved) == (2, "")
    assert (at_epoch.events[-1].step, at_epoch.events[-1].reason) == (BATCHES, "request")


def test_a_save_at_the_step_of_the_stop_is_not_written_twice(tmp_path):
    """The stop names the model that is there already."""
    run = ask(tmp_path, {2: [("stop", {})]}, save_every_n_steps=2)

    assert [event.path for event in run.of("saved")] == [run.events[-1].saved] == ["last-step00000002.safetensors"]


class Continuer(Asker):
    """Asks to go on once the pause is told."""

    def emit(self, event):
        super().emit(event)
        if event.kind == "paused":
            self.folder.request("continue")


def test_pause_waits_for_continue_and_changes_nothing(tmp_path):
    """The losses are those of a run without a pause."""
    run = go(tmp_path / "a", listeners=[Continuer(tmp_path / "a" / "out", {2: [("pause", {})]})], max_train_steps=4)
    plain = go(tmp_path / "b", max_train_steps=4)

    kinds = [event.kind for event in run.events if event.kind in ("paused", "continued")]
    assert kinds == ["paused", "continued"]
    assert run.losses == plain.losses


def test_save_sample_and_set_are_answered(tmp_path):
    """Only the sampling cadence may change while a run goes on; what is no request is answered too."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat --w 64 --h 64 --s 1\n")
    asked = {
        1: [("save", {}), ("sample", {}), ("set", {"key": "sample_every_n_steps", "value": 2})],
        3: [("set", {"key": "learning_rate", "value": 1}), ("set", {"key": "sample_every_n_steps", "value": -1})],
        4: [("set", {"key": "sample_every_n_steps", "value": True})],
    }

    run = ask(tmp_path, asked, max_train_steps=5, sample_prompts=str(prompts), sample_every_n_steps=100)

    assert answers(run) == [
        *((1, verb, True) for verb in ("save", "sample", "set")),
        *((step, "set", False) for step in (3, 3, 4)),
    ]
    assert [event.step for event in run.of("sampled")] == [1, 2, 4]
    assert [event.path for event in run.of("saved")] == ["last-step00000001.safetensors", "last.safetensors"]


def test_samples_without_prompts_and_torn_requests_are_refused(tmp_path):
    """Each with its reason, and the run goes on."""

    class Torn(Asker):
        def emit(self, event):
            super().emit(event)
            if isinstance(event, Step) and event.step == 2:
                (self.folder.requests_folder / "1-stop.json").write_text('{"verb"')

    asker = Torn(tmp_path / "out", {1: [("sample", {})]})
    run = go(tmp_path, listeners=[asker], max_train_steps=3)

    assert answers(run) == [(1, "sample", False), (2, "unknown", False)]
    assert run.events[-1].kind == "finished"


def test_a_stop_while_the_run_prepares_starts_nothing(tmp_path):
    """Encoding can take hours; the folder is as it was."""

    class Early:
        def emit(self, event):
            if isinstance(event, Progress) and event.stage == "scan":
                RunFolder(tmp_path / "out").request("stop")

        def close(self):
            pass

    with pytest.raises(EngineError, match="stopped before the first step"):
        go(tmp_path, listeners=[Early()])
    assert not (tmp_path / "out" / "events.jsonl").exists()


class Dead:
    """A screen whose terminal is gone."""

    def __init__(self):
        self.calls = 0

    def emit(self, _event):
        self.calls += 1
        raise BrokenPipeError

    def close(self):
        raise BrokenPipeError


def test_a_dead_listener_is_told_no_more(tmp_path):
    """The run goes on to its end."""
    dead = Dead()

    run = go(tmp_path, listeners=[dead])

    assert run.code == 0
    assert dead.calls == 1


def test_a_second_engine_is_kept_out(tmp_path):
    """Of a folder in which one runs."""
    folder = RunFolder.create(tmp_path / "out")

    with folder.locked(), pytest.raises(EngineError, match="already running"):
        go(tmp_path)
    assert (tmp_path / "out" / "lock").exists()


def test_what_a_killed_preparation_left_does_not_stand_in_the_way(tmp_path):
    """Events without a start are no run; they are cleared, and the new run's stand alone."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "events.jsonl").write_text(Progress(stage="scan", done=1, total=2).as_line())

    run = go(tmp_path)

    assert run.code == 0
    assert next((event.done, event.total) for event in run.of("progress")) == (7, 7)


@pytest.mark.parametrize("name", ["run.toml", "dataset.toml", "last.safetensors", "last-000001.safetensors"])
def test_nothing_of_the_users_in_the_folder_is_overwritten(tmp_path, name):
    """A settings file or a model that this run did not make is named, and stays."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).write_text("seed = 1\n")

    with pytest.raises(EngineError, match=f"{name}, which this run would overwrite"):
        go(tmp_path)
    assert [path.name for path in folder.iterdir()] == [name]


def test_a_run_in_its_own_folder_keeps_the_users_comments(tmp_path):
    """run.toml and dataset.toml beside each other, output_dir = "."."""
    path = write_run(tmp_path, pictures=pictures(), model=tiny_model(), output_dir=".", max_train_steps=1)
    path.write_text("# mine\n" + path.read_text())
    dataset = (tmp_path / "dataset.toml").read_bytes()

    assert main(["train", str(path)]) == 0

    assert path.read_text().startswith("# mine\n")
    assert (tmp_path / "dataset.toml").read_bytes() == dataset


def test_a_folder_that_holds_a_run_exits_2_and_names_resume(tmp_path, capsys):
    """Nothing of the run there is touched."""
    run = go(tmp_path, max_train_steps=1)
    before = {path.name: path.stat().st_mtime_ns for path in run.folder.iterdir()}

    code = main(["train", str(tmp_path / "run.toml")])

    assert code == 2
    assert "sdtui resume" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in run.folder.iterdir()} == before


def test_a_thread_trains_and_tells_why_it_could_not(tmp_path):
    """The app's way: the error is kept for the screen."""
    good = start_in_thread(loaded_run(tmp_path / "a", max_train_steps=1))
    good.thread.join()
    bad = start_in_thread(loaded_run(tmp_path / "b", model=tmp_path / "none.safetensors"))
    bad.thread.join()

    assert (good.exit_code, good.error, good.is_running) == (0, "", False)
    assert bad.exit_code == 2
    assert "none.safetensors" in bad.error


def test_a_bug_ends_as_a_sentence(tmp_path, capsys, monkeypatch):
    """After the start: exit 1, `failed` with the place in the code, the trace in log.txt, nothing on the screen."""

    class Bug:
        def emit(self, event):
            if isinstance(event, Step):
                raise ZeroDivisionError("what\nnow")

        def close(self):
            pass

    run = Run(run_engine(loaded_run(tmp_path), listeners=[Bug()]), tmp_path / "out")

    assert run.code == 1
    assert run.events[-1].kind == "failed"
    assert run.events[-1].message.startswith("internal error, ZeroDivisionError in test_headless.py:")
    assert "Traceback" in (run.folder / "log.txt").read_text()


def test_what_libraries_say_goes_to_the_log(tmp_path, capsys):
    """Messages, warnings and prints; afterwards all is as before."""
    path = tmp_path / "log.txt"
    with library_log(path, takes_output=True):
        logging.getLogger("other").warning("logged")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("warned", stacklevel=1)
        print("printed \ud800")
        sys.stderr.write("complained\n")
    print("shown")

    text = path.read_text()
    assert all(word in text for word in ("logged", "warned", "printed", "complained"))
    assert capsys.readouterr() == ("shown\n", "")


def test_the_terminal_sees_only_our_lines(tmp_path, capsys):
    """Everything the model's libraries say about it stays off the screen."""
    code = train_headless(loaded_run(tmp_path))

    shown = capsys.readouterr()
    assert code == 0
    assert shown.out == ""
    starts = ("scanning", "encoding", "warning:", "training", "step", "saved", "finished")
    assert all(line.startswith(starts) for line in shown.err.splitlines()), shown.err


# ---- real processes


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


def test_settings_may_come_without_a_file(tmp_path):
    """As from flags."""
    loaded = replace(loaded_run(tmp_path, max_train_steps=1), path=None)

    assert run_engine(loaded) == 0

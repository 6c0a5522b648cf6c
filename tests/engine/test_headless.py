"""How a run is steered from outside, what it refuses to overwrite, and where its words go."""

import logging
import sys
import warnings
from dataclasses import replace

import pytest

from engine.cli import main
from engine.errors import EngineError
from engine.events import Progress, Step
from engine.headless import run_engine, start_in_thread, train_headless
from engine.librarylog import library_log
from engine.run import RunFolder

from .run_support import BATCHES, Run, go, loaded_run, pictures, tiny_model, write_run


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

    ending = run.events[-1]
    assert (ending.saved, ending.state) == ("last-step00000002.safetensors", "state/step-00000002")
    assert [event.path for event in run.of("saved")] == [ending.saved, ending.state]


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
    saved = ["last-step00000001.safetensors", "state/step-00000001", "last.safetensors"]
    assert [event.path for event in run.of("saved")] == saved


def test_a_prompt_may_come_with_the_request(tmp_path):
    """It is drawn once, beside the run's own, keeps its number, and a wrong or too large one costs the run nothing."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat --w 64 --h 64 --s 1\n")
    own, typed, other = ({"prompt": f"a {animal} --w 64 --h 64 --s 1"} for animal in ("cat", "dog", "fox"))
    asked = {
        1: [("sample", typed), ("sample", {"prompt": " "})],
        2: [("sample", other), ("sample", typed), ("sample", own)],
        3: [("sample", {"prompt": "a dog --w x"}), ("sample", {"prompt": 3})],
    }

    run = ask(tmp_path, asked, max_train_steps=3, sample_prompts=str(prompts))

    drawn = [(event.step, event.prompt, event.index) for event in run.of("sampled")]
    assert drawn == [(1, "a dog", 1), (1, "a cat", 0), (2, "a fox", 2), (2, "a dog", 1), (2, "a cat", 0)]
    assert len({event.seed for event in run.of("sampled")}) == 3
    assert all((run.folder / event.path).exists() for event in run.of("sampled"))
    refused = [event.message for event in run.of("requested") if not event.accepted]
    assert refused == [
        "width = 'x': should be a whole number from 1 to 8192", "prompt = 3: should be a text",
    ]  # fmt: skip
    assert run.events[-1].kind == "finished"


def test_a_sample_that_does_not_fit_into_memory_costs_the_run_nothing(tmp_path, monkeypatch):
    """One that was asked for is refused, one that is due is warned of once; training goes on."""

    def too_large(*_arguments, **_options):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("engine.preview.draw", too_large)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    asked = {1: [("sample", {"prompt": "a dog --w 8192"})]}

    run = ask(tmp_path, asked, max_train_steps=4, sample_prompts=str(prompts), sample_every_n_steps=2)

    assert [(event.accepted, "does not fit into memory" in event.message) for event in run.of("requested")] == [
        (False, True)
    ]
    assert [event.step for event in run.of("warning") if event.code == "not-sampled"] == [2]
    assert run.events[-1].kind == "finished"


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
    assert {(event.done, event.total) for event in run.of("progress") if event.stage == "scan"} == {(7, 0), (7, 7)}


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


def test_settings_may_come_without_a_file(tmp_path):
    """As from flags."""
    loaded = replace(loaded_run(tmp_path, max_train_steps=1), path=None)

    assert run_engine(loaded) == 0

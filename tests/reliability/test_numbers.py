"""Rows 24 to 26, 47 to 49 and 57 of docs/reliability.md: numbers that are none, wrong settings, clocks that jump."""

import math
import time

import pytest
import torch

from engine import train
from engine.cli import main
from engine.errors import EngineError, ProblemsError
from engine.events import Event, Step
from engine.settings_io import load_run
from tests.engine.run_support import go, loaded_run, tiny_model, write_run


class Hears:
    """A listener."""

    def __init__(self, emit):
        self.emit = emit

    def close(self):
        pass


def before_step(monkeypatch, number, act):
    """Do something to the trained model before a step, as bad pictures or a rate far too high would."""
    begin = train._begin

    def spoiled(parts, step):
        begin(parts, step)
        if step + 1 == number:
            act(parts.denoiser)

    monkeypatch.setattr(train, "_begin", spoiled)


def assert_stopped_before_the_update(run, what, step):
    """Exit 1, the step, what, the pictures, timesteps and rate named, no model of it, the one before whole."""
    last = run.events[-1]
    assert run.code == 1
    assert (last.kind, last.step) == ("failed", step - 1)
    assert f"the {what} of step {step} is not finite" in last.message
    assert "nothing was updated" in last.message
    for word in (".png", "timestep", "learning rate 0.001"):
        assert word in last.message
    assert not (run.folder / "last.safetensors").exists()
    assert main(["verify", str(run.folder / f"last-step{step - 1:08d}.safetensors")]) == 0


def test_row_24_a_loss_that_is_not_finite_stops_before_the_update(tmp_path, monkeypatch):
    """One poisoned batch: nothing is updated, nothing saved as good."""
    train_batch, calls = train._train_batch, []

    def poisoned(parts, loaded, *, share):
        calls.append(loaded)
        result = train_batch(parts, loaded, share=share)
        if len(calls) == 3:
            result[0, 0] = math.inf
        return result

    monkeypatch.setattr(train, "_train_batch", poisoned)

    run = go(tmp_path, max_train_steps=6, save_every_n_steps=2)

    assert_stopped_before_the_update(run, "loss", 3)


def test_row_25_a_gradient_that_is_not_finite_stops_before_the_update(tmp_path, monkeypatch):
    """With a finite loss."""

    def spoil(denoiser):
        denoiser.unet.conv_in.weight.register_hook(lambda gradient: gradient * math.inf)

    before_step(monkeypatch, 3, spoil)

    run = go(tmp_path, max_train_steps=6, save_every_n_steps=2)

    assert_stopped_before_the_update(run, "gradient", 3)


def test_row_26_weights_that_are_not_finite_are_never_saved_as_good(tmp_path, monkeypatch):
    """The save is refused by name; the one before stays."""

    def emit(event):
        if isinstance(event, Step) and event.step == 4:
            with torch.no_grad():
                trained[0].unet.conv_in.weight[0] = math.nan

    trained = []
    before_step(monkeypatch, 4, trained.append)

    run = go(tmp_path, max_train_steps=6, save_every_n_steps=2, listeners=[Hears(emit)])

    assert run.code == 1
    assert "input_blocks.0.0.weight holds NaN or infinite values" in run.events[-1].message
    assert [path.name for path in run.folder.glob("*.safetensors")] == ["last-step00000002.safetensors"]


def problems(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(EngineError) as caught:
        load_run(path)
    shown = str(caught.value)
    assert all(line.isprintable() for line in shown.splitlines())
    assert "run.toml" in shown
    return shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed = 'one'", ["run.toml:1", "seed = 'one'", "valid integer"]),
        ("learning_rat = 1e-5", ["run.toml:1", "learning_rat", "did you mean 'learning_rate'"]),
        ("[training]\nseed = [1]", ["run.toml:2", "seed"]),
        ("optimizer_type = 'Adamw9'", ["run.toml:1", "optimizer_type"]),
        ("use_ema = 1", ["run.toml:1", "use_ema"]),
    ],
)
def test_row_47_wrong_types_and_unknown_keys_are_named_with_line_and_nearest_key(tmp_path, text, words):
    """Key, value, what was expected."""
    shown = problems(tmp_path, text)
    assert all(word in shown for word in words), shown


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "true", '"1e-5"', "-1"])
def test_row_48_numbers_that_are_none_are_refused(tmp_path, value):
    """TOML knows them all; a rate may be none of them, and true is no number."""
    assert "run.toml:1: learning_rate" in problems(tmp_path, f"learning_rate = {value}")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"seed = " + b"9" * 5000, ""),
        (b"seed = " + b"[" * 5000 + b"]" * 5000, "nested"),
        (b"#" * 20_000_000, "larger than"),
        (b'output_dir = "C:\\Users\\x"', "backslash"),
        (b"a = '\xff'", "UTF-8"),
    ],
    ids=["digits", "nesting", "20 MB", "backslash", "encoding"],
)
def test_row_49_files_that_break_parsers_end_in_a_sentence_within_a_second(tmp_path, text, word):
    """Size and depth are capped before anything is believed."""
    began = time.process_time()
    assert word in problems(tmp_path, text)
    assert time.process_time() - began < 1


def test_row_49_a_byte_order_mark_is_read(tmp_path):
    """Notepad writes it."""
    path = write_run(tmp_path, pictures=tmp_path, model=tiny_model())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_run(path).settings.training.max_train_steps == 2


def test_row_47_every_problem_of_a_file_is_named_at_once(tmp_path):
    """Not one at a time."""
    path = tmp_path / "run.toml"
    path.write_text("learning_rat = 1\nseed = 'one'\n")
    with pytest.raises(ProblemsError) as caught:
        load_run(path)
    assert len(caught.value.problems) >= 2


def test_row_57_a_clock_that_jumps_changes_no_order_and_no_duration(tmp_path, monkeypatch):
    """A year back and forth: steps order events, durations come from the monotonic clock."""
    ticks = iter(range(10**9))
    year = 365 * 86_400
    monkeypatch.setattr(time, "time", lambda: 1.8e9 + year * (-1) ** next(ticks))

    run = go(tmp_path, max_train_steps=3, save_every_n_steps=1)

    assert run.code == 0
    assert [step.step for step in run.steps] == [1, 2, 3]
    assert all(0 <= step.seconds < 100 for step in run.steps)
    assert all(0 <= event.seconds < 100 for event in run.of("saved"))
    assert 0 <= run.events[-1].seconds < 100
    assert all(isinstance(event, Event) for event in run.events)


def test_a_good_file_is_good(tmp_path):
    """What the tables above start from."""
    assert loaded_run(tmp_path).settings.training.seed == 42

"""The runs screen: list, comparison, and what may be done to a run's folder."""

import time

import pytest

from engine.errors import EngineError
from sdtui.compare import TRASH, common_steps, differences, move_to_trash, rename
from sdtui.summary import command_again
from tests.sdtui.fake_run import TIME, FakeRun
from tests.sdtui.screen_support import matches_snapshot, press, shown, text_of

SETTINGS = {"mychar-01": {}, "mychar-02": {"learning_rate": "2e-4"}, "mychar-04": {"min_snr_gamma": "5.0"}}


@pytest.fixture(autouse=True)
def _frozen(monkeypatch, tmp_path):
    """One clock, a terminal that can draw, no user's files."""
    monkeypatch.setattr(time, "time", lambda: TIME + 460.0)
    for name in ("NO_COLOR", "SDTUI_ASCII", "TMUX", "STY", "KITTY_WINDOW_ID", "TERM_PROGRAM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("SDTUI_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def parent(tmp_path):
    """Three runs: two finished, one failed."""
    folder = tmp_path / "runs"
    for number, (name, settings) in enumerate(SETTINGS.items()):
        run = FakeRun(name=name, steps=600, done=600 - 200 * (number == 1), seed=number, settings=settings)
        ending = run.failed("out of memory") if number == 1 else run.finished()
        run.write(folder / name, ending)
    return folder


async def by_name(pilot):
    await press(pilot, "s")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_runs_are_compared_by_loss_settings_and_samples(parent, size, monkeypatch):
    """Selected runs are overlaid; differing settings and same-seed samples stand below."""
    monkeypatch.setattr("sdtui.screens.runs.shown_path", lambda path: path.name)
    monkeypatch.setattr("sdtui.screens.runs.ago", lambda _time: "now")
    async with shown("runs", parent, size=size) as (app, pilot):
        await by_name(pilot)
        await press(pilot, "home", "space", "down", "space", "down", "space")
        text = text_of(app)
        assert "3 of 3 selected" in text
        assert "Settings: 2 differences" in text
        assert "optimizer.learning_rate" in text
        assert "step 400, same seed" in text
        assert matches_snapshot(app, f"runs-{size[0]}x{size[1]}")


async def test_sample_step_and_prompt_change_for_all(parent):
    """Comma and full stop change the step, left and right the prompt."""
    async with shown("runs", parent, size=(120, 40)) as (app, pilot):
        await press(pilot, "space", "down", "space", "right", "comma", "comma")
        assert "Prompt 2: mychar, beach at sunset" in text_of(app)
        assert "step 200, same seed" in text_of(app)
        await press(pilot, "full_stop", "left", "L", "e")
        assert "Prompt 1: mychar, portrait" in text_of(app)
        assert "ema 0.995  log y" in text_of(app)


async def test_without_selection_the_run_under_the_cursor_is_shown(parent):
    """All its settings, its curve, its samples."""
    async with shown("runs", parent, size=(120, 40)) as (app, pilot):
        await by_name(pilot)
        await press(pilot, "end")
        assert "loss  a mychar-04" in text_of(app)
        assert "saving.save_every_n_steps" in text_of(app)


async def test_delete_asks_and_undo_brings_back(parent):
    """Enter on the first choice keeps the run; the trash gives it back whole."""
    async with shown("runs", parent) as (app, pilot):
        await by_name(pilot)
        await press(pilot, "home", "X", "enter")
        assert (parent / "mychar-01" / "events.jsonl").exists()
        await press(pilot, "X", "down", "enter")
        assert not (parent / "mychar-01").exists()
        assert "moved to the trash" in text_of(app)
        await press(pilot, "z")
        assert (parent / "mychar-01" / "events.jsonl").exists()
        await press(pilot, "z")
        assert "nothing to undo" in text_of(app)


async def test_rename_and_its_refusals(parent):
    """A name that is taken or none at all is refused in a sentence; z takes a renaming back."""
    async with shown("runs", parent) as (app, pilot):
        await by_name(pilot)
        await press(pilot, "home", "n", "end", *"x", "enter")
        assert (parent / "mychar-01x").exists()
        await press(pilot, "z")
        assert (parent / "mychar-01").exists()
        await press(pilot, "n", *["backspace"] * 9, *"mychar-04", "enter")
        assert "is there already" in text_of(app)
        await press(pilot, "n", *["backspace"] * 9, *"../x", "enter")
        assert "can't be a folder's name" in text_of(app)


async def test_a_run_that_trains_is_left_alone(parent):
    """Neither renamed nor deleted while its engine owns the folder."""
    from engine.run import RunFolder

    with RunFolder(parent / "mychar-01").locked():
        async with shown("runs", parent) as (app, pilot):
            await by_name(pilot)
            await press(pilot, "home", "X", "down", "enter")
            assert "is being trained: stop it first" in text_of(app)
    assert (parent / "mychar-01").exists()


async def test_filter_and_sort(parent):
    """By name or state; Enter goes back to the list."""
    async with shown("runs", parent) as (app, pilot):
        await press(pilot, "slash", *"failed", "enter")
        assert "mychar-02" in text_of(app)
        assert "mychar-01" not in text_of(app)
        await press(pilot, "slash", *["backspace"] * 6, "enter", "s", "s")
        assert "by loss" in text_of(app)


async def test_enter_opens_the_training_screen(parent):
    """The same screen as for a live run; q comes back."""
    async with shown("runs", parent) as (app, pilot):
        await by_name(pilot)
        await press(pilot, "home", "enter")
        assert "FINISHED 600 steps" in text_of(app)
        await press(pilot, "q")
        assert "Runs" in text_of(app)


@pytest.mark.parametrize("size", [(1, 1), (59, 15), (200, 60)])
async def test_no_size_and_no_run_break_it(tmp_path, size):
    """An empty folder is a screen too, at any size."""
    async with shown("runs", tmp_path, size=size) as (app, pilot):
        await press(pilot, "space", "enter", "n", "X", "c", "y", "comma", "left", "L", "z")
        assert app.is_running


async def test_hostile_names_and_settings(tmp_path):
    """Markup and control characters in names, prompts and run.toml are shown, never obeyed."""
    bad = "a [b] [@click=app.quit]x \x1b[2J"
    run = FakeRun(
        steps=300, done=300, sample_every=100, prompts=(bad + "\u202e",), settings={"log_prefix": '"[/]\\u001b[2J"'}
    )
    run.write(tmp_path / "runs" / bad, run.failed(bad))
    async with shown("runs", tmp_path / "runs", size=(120, 40)) as (app, pilot):
        await press(pilot, "space")
        text = text_of(app)
        assert "[@click=app.quit]" in text
        assert "[/]\\x1b[2J" in text
        assert text.replace("\n", "").isprintable()


def test_differences_name_what_is_left_out():
    """A key that a run does not set is a dash; equal ones are not shown; one run shows all."""
    rows = differences([{"a": "1", "b": "2"}, {"a": "1"}, {"a": "1", "b": "3"}])

    assert rows == [("b", ["2", "-", "3"])]
    assert differences([{"a": "1"}]) == [("a", ["1"])]


def test_common_steps_fall_back_to_all():
    """Runs that share no step can still be looked at."""
    assert common_steps([{1: {0: None}, 2: {0: None}}, {2: {0: None}}], 0) == [2]
    assert common_steps([{1: {0: None}}, {2: {0: None}}, {}], 0) == [1, 2]
    assert common_steps([{}, {}], 0) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\nb", "x" * 101, " x", "CON:"])
def test_bad_folder_names_are_refused(parent, name):
    """On every platform."""
    with pytest.raises(EngineError):
        rename(parent / "mychar-01", name)
    assert (parent / "mychar-01").exists()


def test_the_trash_lies_beside_the_run_and_is_no_run(parent):
    """A deleted run is not listed, nothing is lost, and two of one name keep apart."""
    first = move_to_trash(parent / "mychar-01")
    FakeRun(done=1).write(parent / "mychar-01")
    second = move_to_trash(parent / "mychar-01")

    assert first != second
    assert [path.parent.name for path in (first, second)] == [TRASH, TRASH]
    assert (first / "events.jsonl").exists()


def test_the_command_to_train_again_names_a_folder_of_its_own(tmp_path):
    command = command_again(tmp_path / "my run")

    assert command == f"sdtui train '{tmp_path}/my run/run.toml' --set 'output_dir={tmp_path}/my run-again'"

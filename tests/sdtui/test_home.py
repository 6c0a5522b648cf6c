"""Home: the first screen, what has run before, and every way from it."""

import os
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.widgets import Input

import sdtui.__main__
from sdtui import recent
from sdtui.screens.home import HomeScreen
from sdtui.summary import summarise
from sdtui.widgets.row_list import RowList
from sdtui.widgets.status_line import StatusLine
from tests.sdtui.fake_run import TIME, FakeRun
from tests.sdtui.screen_support import Host, matches_snapshot, press, settle, text_of


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    """An empty working folder and a frozen clock."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "time", lambda: TIME + 7200.0)


@pytest.fixture
def runs():
    """Three runs: finished, failed, killed."""
    run = FakeRun(name="mychar-01", done=3000)
    run.write(Path("runs/mychar-01"), run.finished())
    run = FakeRun(name="style [b]x", done=800)
    run.write(Path("runs/style [b]x"), run.failed("CUDA out of memory: lower train_batch_size"))
    FakeRun(name="killed", done=120).write(Path("runs/\u732b-killed"))
    for path in Path("runs").iterdir():
        os.utime(path / "events.jsonl", (TIME, TIME))


def home(app):
    """The screen and what it says."""
    return text_of(app)


def list_folders():
    """The folders of the runs."""
    return [*Path("runs").iterdir()]


@asynccontextmanager
async def open_home(size=(80, 24)):
    """Open the app at a size."""
    app = Host()
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        yield app, pilot


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_home_with_runs(runs, size, monkeypatch):
    """What can be started, and each run with state, step, loss and age."""
    monkeypatch.setattr(recent, "shown_path", lambda _path: "~/sd")
    async with open_home(size) as (app, _pilot):
        assert matches_snapshot(app, f"home-{size[0]}x{size[1]}")


async def test_an_empty_home_says_what_to_press():
    async with open_home() as (app, _pilot):
        assert "Press n, then name a model" in home(app)
        assert "no run yet" in home(app)


async def test_every_run_shows_its_own_state(runs):
    states = {path.name: summarise(path).state for path in list_folders()}

    assert states == {"mychar-01": "finished", "style [b]x": "failed", "\u732b-killed": "crashed"}


async def test_the_selected_run_tells_what_became_of_it(runs):
    async with open_home() as (app, pilot):
        await press(pilot, "tab")
        names = [run.name for run in app.screen._shown]
        await press(pilot, *["down"] * names.index("style [b]x"))

        assert "CUDA out of memory" in home(app)
        assert "style [b]x" in home(app)


async def test_the_filter_keeps_what_matches_and_esc_ends_it(runs):
    async with open_home() as (app, pilot):
        await press(pilot, "slash", *"failed", "enter")

        assert [run.name for run in app.screen._shown] == ["style [b]x"]
        await press(pilot, "slash", "escape")
        assert len(app.screen._shown) == 3
        assert app.screen.query_one("#filter", Input).value == ""


async def test_sorting_keeps_the_cursor_on_its_run(runs):
    async with open_home() as (app, pilot):
        await press(pilot, "tab", "s")

        assert [run.name for run in app.screen._shown] == sorted(run.name for run in app.screen._shown)


async def test_resume_without_a_run_says_what_to_do():
    async with open_home() as (app, pilot):
        await press(pilot, "r")

        assert "sdtui resume DIR" in str(app.screen.query_one(StatusLine).render())


async def test_attach_shows_the_run(runs):
    async with open_home() as (app, pilot):
        await press(pilot, "a")

        assert type(app.screen).__name__ == "TrainScreen"
        assert recent.recent("run")
        await press(pilot, "escape")
        assert isinstance(app.screen, HomeScreen)


async def test_attach_without_a_run_says_so():
    async with open_home() as (app, pilot):
        await press(pilot, "a")

        assert "no run to attach" in home(app)


async def test_a_folder_that_holds_no_run_is_refused(tmp_path):
    from sdtui.messages import OpenRun

    async with open_home() as (app, pilot):
        app.post_message(OpenRun(tmp_path))
        await settle(pilot)

        assert "no run lies in" in home(app)


async def test_a_typed_path_completes_and_opens(tmp_path):
    (tmp_path / "my settings.toml").write_text('[saving]\noutput_dir = "out"\n')
    async with open_home() as (app, pilot):
        await press(pilot, "o", "m", "tab")
        assert app.screen.query_one(Input).value == "my settings.toml"
        await press(pilot, "enter")

        assert type(app.screen).__name__ == "WizardScreen"


@pytest.mark.parametrize(("name", "text"), [("missing.toml", None), ("bad.toml", "x ="), ("big.toml", "#" * 2_000_000)])
async def test_a_file_that_cannot_be_opened_is_said_in_one_sentence(tmp_path, name, text):
    if text is not None:
        (tmp_path / name).write_text(text)
    async with open_home() as (app, pilot):
        await press(pilot, "o")
        app.screen.query_one(Input).value = name
        await press(pilot, "enter")

        assert "\u2717 " in home(app)
        assert app.screen.query_one(Input).value == name, "what was typed stays to be mended"
        await press(pilot, "escape")
        assert isinstance(app.screen, HomeScreen)


async def test_forgetting_takes_a_run_off_the_list_only(tmp_path):
    folder = tmp_path / "elsewhere"
    run = FakeRun(done=10)
    run.write(folder)
    recent.remember("run", folder)
    async with open_home() as (app, pilot):
        await press(pilot, "tab", "x")

        assert app.screen._shown == []
        assert (folder / "events.jsonl").exists()


async def test_copying_a_command_keeps_it_in_a_private_file(runs):
    async with open_home() as (app, pilot):
        await press(pilot, "tab", "y")

        path = recent.data_dir() / "clipboard.txt"
        assert path.read_text().startswith("sdtui train ")
        assert path.stat().st_mode & 0o077 == 0
        assert "OSC 52" in home(app)


async def test_the_mouse_does_what_keys_do(runs):
    async with open_home() as (app, pilot):
        await pilot.click("#runs", offset=(5, 1))
        await settle(pilot)
        assert app.screen.query_one("#runs", RowList).cursor == 1

        await pilot.click("KeyFooter", offset=(2, 0))
        await settle(pilot)
        assert type(app.screen).__name__ == "WizardScreen"


@pytest.mark.parametrize("size", [(1, 1), (2, 30), (59, 16), (60, 15)])
async def test_a_terminal_too_small_shows_one_line_and_never_crashes(runs, size):
    async with open_home(size) as (app, pilot):
        if size[0] > 20:
            assert "sdtui needs 60x16" in home(app)
        await pilot.resize_terminal(80, 24)
        await settle(pilot)
        assert "Recent runs" in home(app)


async def test_a_storm_of_sizes_is_survived(runs):
    async with open_home() as (app, pilot):
        for width, height in [(200, 60), (2, 2), (61, 17), (1, 1), (40, 5), (120, 40), (60, 16)]:
            await pilot.resize_terminal(width, height)
            await pilot.pause()
        assert "Recent runs" in home(app)


async def test_themes_turn_round_and_are_remembered():
    async with open_home() as (app, pilot):
        seen = []
        for _ in range(5):
            await press(pilot, "ctrl+t")
            seen.append(app.theme)

        assert len(set(seen)) == 5
        assert recent.preference("theme") == seen[-1]
        assert Host().theme == seen[-1]


async def test_nothing_is_known_by_colour_alone(runs, monkeypatch):
    """With NO_COLOR the state stands in shape and word."""
    monkeypatch.setenv("NO_COLOR", "1")
    async with open_home() as (app, _pilot):
        assert "\u2717 style" in home(app)
        assert "failed" in home(app)


async def test_ascii_mode_draws_ascii(runs, monkeypatch):
    monkeypatch.setenv("SDTUI_ASCII", "1")
    async with open_home() as (app, _pilot):
        assert {char for char in home(app) if ord(char) > 127} == {"\u732b"}


def test_memory_that_cannot_be_read_is_empty(tmp_path):
    recent.data_dir().mkdir(exist_ok=True)
    (recent.data_dir() / "recent.json").write_text('[{"kind": "run"}]')
    assert recent.recent("run") == []

    recent.remember("model", "some/model")
    recent.remember("model", "some/model")
    assert [entry.name for entry in recent.recent("model")] == ["some/model"]
    assert (recent.data_dir() / "recent.json").stat().st_mode & 0o077 == 0


async def test_the_last_draft_is_taken_up_again():
    async with open_home() as (app, pilot):
        await press(pilot, "w")
        assert "no draft was left" in home(app)

        app.open_wizard()
        await settle(pilot)
        app.screen.draft.change({"seed": 7})
        app.screen.action_close()
        await settle(pilot)
        assert "the draft is kept: w on Home goes on with it" in home(app)

        await press(pilot, "w")
        assert app.screen.draft.settings.training.seed == 7


async def test_a_draft_that_was_not_changed_leaves_no_file():
    async with open_home() as (app, pilot):
        app.open_wizard()
        await settle(pilot)
        app.screen.action_close()
        await settle(pilot)

        assert recent.newest_draft() is None


@pytest.mark.parametrize("key", ["c", "y", "x"])
async def test_a_key_that_needs_a_run_says_so(key):
    async with open_home() as (app, pilot):
        await press(pilot, key)

        assert "no run is listed" in home(app)


async def test_esc_puts_the_filter_away(runs):
    async with open_home() as (app, pilot):
        await press(pilot, "slash", "x", "escape")

        assert not app.screen.query_one("#filter").display


async def test_what_was_said_is_gone_when_another_screen_has_been_open():
    async with open_home() as (app, pilot):
        await press(pilot, "a", "u", "escape")

        assert isinstance(app.screen, HomeScreen)
        assert "no run to attach" not in home(app)


async def test_a_message_longer_than_the_line_is_shown_whole():
    async with open_home() as (app, pilot):
        app.say("word " * 20 + "and its   end", "error")
        await settle(pilot)

        assert "and its   end" in home(app)


def test_a_file_on_the_command_line_is_opened(monkeypatch):
    opened = []
    monkeypatch.setattr(sdtui.__main__, "open_wizard", lambda path: opened.append(path) or 0)

    assert sdtui.__main__.main(["own.toml"]) == 0
    assert opened == [Path("own.toml")]

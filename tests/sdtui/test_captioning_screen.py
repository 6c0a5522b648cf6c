"""The captioning screen, driven by keys: preview, run, edit, search and replace, undo."""

import json

import pytest
from PIL import Image
from textual.widgets import Input

from engine.captioning.base import CaptionerOptions
from engine.captioning.onnx_tagger import DEEPDANBOORU_THRESHOLD
from sdtui.captioning_options import OPTIONS, Choices
from sdtui.captioning_work import Bench
from sdtui.screens.captioning import CaptioningScreen
from tests.engine.captioning.models_support import wd14_v14
from tests.sdtui.page_support import wizard_on, write_pictures
from tests.sdtui.screen_support import Host, matches_snapshot, press, settle, styles_of, text_of

HOSTILE = "x [/] [link=http://x]y[/link] \x1b]52;c;aGk=\x07 \u202eevil [@click=app.quit]z[/]"


@pytest.fixture(autouse=True)
def _own_place(monkeypatch, tmp_path):
    for name in ("NO_COLOR", "SDTUI_ASCII", "TMUX", "STY", "KITTY_WINDOW_ID", "TERM_PROGRAM", "SDTUI_THEME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("SDTUI_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """Six pictures, two with tags."""
    from pathlib import Path

    write_pictures(tmp_path / "pics", [(64, 96)] * 6, ["mine, sky", None, "sky", None, None, None])
    return Path("pics")


class shown:  # noqa: N801 - reads as a word
    """Shows the screen with the small tagger chosen."""

    def __init__(self, folder, size=(120, 40)):
        self._app = Host()
        self._run = self._app.run_test(size=size)
        self._screen = CaptioningScreen(folder, model=str(wd14_v14()))

    async def __aenter__(self):
        pilot = await self._run.__aenter__()
        self._app.push_screen(self._screen)
        await settle(pilot)
        return pilot, self._screen

    async def __aexit__(self, *error):
        return await self._run.__aexit__(*error)


def texts(folder):
    return {path.name: path.read_text() for path in sorted(folder.glob("*.txt"))}


async def test_a_preview_writes_nothing(folder):
    """What a few pictures would be called, with scores; then the same for marked ones."""
    before = texts(folder)
    async with shown(folder) as (pilot, screen):
        await press(pilot, "p")
        assert len(screen._said) == 4
        assert "would become: 1girl" in text_of(pilot.app)
        assert "0.90" in text_of(pilot.app)
        assert "nothing was written" in text_of(pilot.app)
        await press(pilot, "end", "space", "p")
        assert "p5.png" in screen._said
    assert texts(folder) == before


async def test_a_run_shows_results_and_undo_takes_them_back(folder):
    """Skipping leaves the two texts; z restores every byte."""
    before = texts(folder)
    async with shown(folder) as (pilot, screen):
        await press(pilot, "o", "o", "o", "r")
        written = texts(folder)
        assert len(written) == 6
        assert written["p0.txt"] == before["p0.txt"]
        assert written["p5.txt"].startswith("1girl, very ")
        assert screen._texts["p5.png"] == written["p5.txt"].strip()
        assert "4 written, 2 kept" in text_of(pilot.app)
        await press(pilot, "z")
        assert "undone: wd14, skip; 4 files" in text_of(pilot.app)
        assert screen._texts["p5.png"] is None
        await press(pilot, "z")
        assert "left to undo" in text_of(pilot.app)
    assert texts(folder) == before


async def test_a_text_is_edited_searched_and_restored(folder):
    """Enter edits, Esc leaves the text alone, s replaces over all that are listed."""
    before = texts(folder)
    async with shown(folder) as (pilot, screen):
        await press(pilot, "enter")
        assert pilot.app.screen.query_one("#ask", Input).value == "mine, sky"
        await press(pilot, "escape")
        assert isinstance(pilot.app.screen, CaptioningScreen)
        await press(pilot, "down", "e", *"new", "enter")
        assert (folder / "p1.txt").read_text() == "new\n"
        await press(pilot, "s")
        screen.query_one("#ask", Input).value = "sky => night sky"
        await press(pilot, "enter")
        assert texts(folder)["p0.txt"] == "mine, night sky"
        assert "2 files written" in text_of(pilot.app)
        await press(pilot, "s", *"nothing", "enter")
        assert "write old => new" in text_of(pilot.app)
        await press(pilot, "slash", *"night", "enter")
        assert screen._keys == ["p0.png", "p2.png"]
        await press(pilot, "z", "z")
    assert texts(folder) == before


async def test_what_goes_wrong_is_one_line(folder, tmp_path):
    """A model that is none, then a captioner without its usual model."""
    async with shown(folder) as (pilot, screen):
        screen._take_model(str(tmp_path))
        await press(pilot, "r")
        assert "has no selected_tags.csv" in text_of(pilot.app)
        await press(pilot, "t")
        assert screen._choices.captioner == "deepdanbooru"
        await press(pilot, "p")
        assert "name the folder of its ONNX export" in text_of(pilot.app)
        await press(pilot, "t", "c")
        assert ".caption" in text_of(pilot.app)


async def test_hostile_names_and_tags_are_text(folder):
    """No control byte reaches the terminal and no markup acts."""
    (folder / "p0.txt").write_text(HOSTILE)
    (folder / "p3.png").rename(folder / "p3[bold]\u202e\x1b[2J.png")
    async with shown(folder) as (pilot, _screen):
        for keys in ((), ("down", "down", "down"), ("p",), ("r",), ("home", "e"), ("escape",)):
            await press(pilot, *keys)
            text = "".join(segment.text for segment in styles_of(pilot.app))
            assert "\x1b" not in text
            assert "\u202e" not in text
        assert pilot.app.is_running


async def test_the_data_page_leads_here_and_scans_again(tmp_path, folder):
    """C opens the folder of the picture; after a run the plan has the new texts."""
    values = {"train_data_dir": tmp_path / "pics", "caption_extension": ".txt", "enable_bucket": True}
    async with wizard_on("data", tmp_path, values) as (app, pilot, page):
        await press(pilot, "C")
        screen = app.screen
        assert isinstance(screen, CaptioningScreen)
        screen._take_model(str(wd14_v14()))
        await press(pilot, "r")
        await press(pilot, "escape")
        await settle(pilot)
        assert all(caption.startswith("1girl") for caption in page.plan.catalog.captions)


async def choose(pilot, row, text):
    """Write an option's value into the dialog that is open."""
    await press(pilot, "home", *["down"] * row, "enter")
    pilot.app.screen.query_one("#option-value", Input).value = text
    await press(pilot, "enter")


async def test_thresholds_decide_which_tags_are_written(folder):
    """A wrong one is told beside the field, which stays open; r takes the option back."""
    async with shown(folder) as (pilot, screen):
        await press(pilot, "v")
        await choose(pilot, 0, "1.5")
        assert "general_threshold = 1.5: expected 0 to 1" in text_of(pilot.app)
        await press(pilot, "escape")
        await choose(pilot, 0, "much")
        assert "expected a number" in text_of(pilot.app)
        await press(pilot, "escape")
        await choose(pilot, 0, "0.99")
        await choose(pilot, 1, "0.99")
        await press(pilot, "escape")
        assert "general_threshold 0.99" in text_of(pilot.app)
        await press(pilot, "p")
        assert screen._said["p1.png"].described.text == ""
        await press(pilot, "v", "home", "r", "down", "r", "escape", "p")
        assert screen._said["p1.png"].described.text.startswith("1girl")


async def test_texts_go_straight_into_metadata_and_come_back_out(folder, tmp_path):
    """No file beside a picture is touched; an edit and the run are undone in the file; its name is checked."""
    before = texts(folder)
    async with shown(folder) as (pilot, screen):
        await press(pilot, "v")
        await choose(pilot, 2, "meta.txt")
        assert "expected a .json or .jsonl" in text_of(pilot.app)
        await press(pilot, "escape")
        await choose(pilot, 2, "nowhere/meta.json")
        assert "its folder does not exist" in text_of(pilot.app)
        await press(pilot, "escape")
        await choose(pilot, 2, "meta.json")
        await press(pilot, "escape")
        assert "6 pictures, 6 without text" in str(screen.query_one("#left").border_title)
        await press(pilot, "r")
        written = json.loads((tmp_path / "meta.json").read_text())
        assert sorted(written) == [f"p{number}.png" for number in range(6)]
        assert all(entry["tags"].startswith("1girl") for entry in written.values())
        await press(pilot, "e", *"new", "enter")
        assert json.loads((tmp_path / "meta.json").read_text())["p0.png"]["tags"].endswith("new")
        await press(pilot, "z")
        assert json.loads((tmp_path / "meta.json").read_text()) == written
        await press(pilot, "z")
        assert not (tmp_path / "meta.json").exists()
    assert texts(folder) == before


async def test_blip_has_beams_and_lengths_that_fit_each_other(folder):
    """What the screen chose is what the captioner is made with."""
    async with shown(folder) as (pilot, screen):
        screen._choices = screen._choices.with_captioner("blip")
        await press(pilot, "v", "enter")
        await choose(pilot, 1, "4")
        await choose(pilot, 2, "0.5")
        await choose(pilot, 3, "90")
        assert "min_length = 90: more than max_length = 75" in text_of(pilot.app)
        await press(pilot, "escape")
        await choose(pilot, 4, "20")
        await press(pilot, "escape")
        assert screen._choices.values() == {
            "beam_search": True, "num_beams": 4, "top_p": 0.5, "min_length": 5, "max_length": 20,
        }  # fmt: skip


def test_the_options_are_those_of_the_commands():
    """Names and defaults; DeepDanbooru's threshold is one."""
    defaults = CaptionerOptions()
    for option in OPTIONS:
        if hasattr(defaults, option.name):
            assert option.default == getattr(defaults, option.name)
        elif option.name != "output_path":
            usual = DEEPDANBOORU_THRESHOLD if option.captioners == ("deepdanbooru",) else defaults.tags.thresh
            assert option.default == usual
            assert hasattr(defaults.tags, option.name)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_the_options_at_both_sizes(folder, size):
    """The dialog over the screen."""
    async with shown(folder, size) as (pilot, screen):
        screen._choices = screen._choices.__class__()
        screen._draw_choices()
        await press(pilot, "v")
        await choose(pilot, 0, "0.25")
        assert matches_snapshot(pilot.app, f"captioning-options-{size[0]}x{size[1]}")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_the_screen_at_both_sizes(folder, size):
    """Pictures with texts, the picture, what the captioner says, the keys below."""
    async with shown(folder, size) as (pilot, screen):
        await press(pilot, "p")
        screen._choices = screen._choices.__class__()
        screen._draw_choices()
        screen._say("4 described")
        await pilot.pause()
        assert matches_snapshot(pilot.app, f"captioning-{size[0]}x{size[1]}")


def test_texts_that_training_would_read_instead_are_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.caption").write_text("a heart")

    found, said = Bench(tmp_path, recursive=False).read(Choices())

    assert found == {"a.png": None}
    assert said.startswith("1 of 1 pictures have a .caption")

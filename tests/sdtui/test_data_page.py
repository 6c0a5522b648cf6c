"""Page 2, Data, driven by keys in the wizard."""

import pytest
from textual.widgets import Input

from sdtui.screens.picture_viewer import PictureViewer
from tests.sdtui.page_support import wizard_on, write_pictures
from tests.sdtui.screen_support import press, settle, styles_of, text_of

HOSTILE = "x [/] [link=http://x]y[/link] \x1b]52;c;aGk=\x07 \u202eevil [@click=app.quit]z[/]"


def values(folder, **more):
    return {"train_data_dir": folder, "caption_extension": ".txt", "enable_bucket": True, **more}


@pytest.fixture(autouse=True)
def _own_data(monkeypatch, tmp_path):
    monkeypatch.setenv("SDTUI_DATA_DIR", str(tmp_path / "data"))


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (60, 16), (200, 60)])
async def test_pictures_findings_and_captions_at_a_glance(tmp_path, size):
    """Counts, what is wrong, the picture with its bucket and its caption with tokens."""
    folder = write_pictures(tmp_path / "pics", [(64, 96), (96, 64)], ["a cat, red", None])
    async with wizard_on("data", tmp_path, values(folder), size) as (app, _pilot, _page):
        text = text_of(app)
        for shown in ("2 pictures", "without caption", "all pictures", "a cat, red", "p0.png"):
            assert shown in text


async def test_without_pictures_the_page_says_what_to_do(tmp_path):
    """Nothing named is no failure."""
    async with wizard_on("data", tmp_path, {}) as (app, pilot, _page):
        assert "a adds a folder" in text_of(app)
        await press(pilot, "e", "v", "f", "x", "t", "t", "down")
        assert "2 DATA" in text_of(app)


async def test_a_finding_lists_its_files(tmp_path):
    """Moving over the findings filters the pictures."""
    folder = write_pictures(tmp_path / "pics", [(64, 96)] * 3, ["a", None, "b"])
    async with wizard_on("data", tmp_path, values(folder)) as (app, pilot, page):
        await press(pilot, "down")
        assert page.group.code == "no-caption"
        assert [page.row] == page._rows_N.tolist() == [1]
        assert "1 without caption" in text_of(app)


async def test_damaged_files_stop_the_plan_until_they_are_left_out(tmp_path):
    """The files are named, f goes on without them, z takes that back."""
    folder = write_pictures(tmp_path / "pics", [(64, 96)] * 2)
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    async with wizard_on("data", tmp_path, values(folder)) as (app, pilot, page):
        assert page.plan is None
        await press(pilot, "down")
        assert "torn.png" in text_of(app)
        await press(pilot, "f")
        await settle(pilot)
        assert app.screen.draft.settings.dataset.skip_bad_images
        assert page.plan.num_images == 2
        await press(pilot, "z")
        assert not app.screen.draft.settings.dataset.skip_bad_images


async def test_the_filter_finds_names_and_captions_and_escape_ends_it(tmp_path):
    """Esc ends the filter first, and leaves the wizard only then."""
    folder = write_pictures(tmp_path / "pics", [(64, 96)] * 3, ["cat", "dog", "cat, dog"])
    async with wizard_on("data", tmp_path, values(folder)) as (app, pilot, page):
        await press(pilot, "slash", *"dog", "enter")
        assert page._rows_N.tolist() == [1, 2]
        await press(pilot, "escape")
        assert page._rows_N.tolist() == [0, 1, 2]
        assert "2 DATA" in text_of(app)


async def test_a_tag_shows_its_pictures(tmp_path):
    """t leads to the tags, Enter takes one."""
    folder = write_pictures(tmp_path / "pics", [(64, 96)] * 3, ["cat, a", "dog, b", "cat, c"])
    async with wizard_on("data", tmp_path, values(folder)) as (_app, pilot, page):
        await press(pilot, "t", "enter")
        assert page._rows_N.tolist() == [0, 2]


async def test_the_viewer_draws_captions_as_training_does(tmp_path):
    """Each epoch's caption is the plan's own; the arrows go through the pictures, Esc comes back to the last one."""
    folder = write_pictures(tmp_path / "pics", [(64, 96)] * 3, ["a, b, c, d, e, f"] * 3)
    async with wizard_on("data", tmp_path, values(folder, shuffle_caption="true", flip_aug="true")) as (
        app,
        pilot,
        page,
    ):
        await press(pilot, "tab", "v")
        viewer = app.screen
        assert isinstance(viewer, PictureViewer)
        plan = page.plan
        assert [showing.caption for showing in viewer._showings[:3]] == [
            plan.caption(0, 0, epoch=epoch, step=0) for epoch in (1, 2, 3)
        ]
        assert len({showing.caption for showing in viewer._showings}) > 3
        count = len(viewer._showings)
        await press(pilot, "right", "end", "space")
        assert viewer.row == 1
        assert len(viewer._showings) == count + 1
        await press(pilot, "escape")
        assert page.row == 1


async def test_repeats_are_edited_by_folder_and_undone(tmp_path):
    """The change counts in the plan at once."""
    folder = write_pictures(tmp_path / "pics", [(64, 96)] * 2)
    async with wizard_on("data", tmp_path, values(folder)) as (_app, pilot, page):
        await press(pilot, "e", "enter", "home", "1", "0", "delete", "enter")
        await settle(pilot)
        assert page.plan.catalog.repeats_N.tolist() == [10, 10]
        await press(pilot, "escape", "z")
        await settle(pilot)
        assert len(page.plan.rows_M) == 2


async def test_a_value_out_of_bounds_is_refused_in_the_dialog(tmp_path):
    """The reason stands in the dialog and nothing changes."""
    folder = write_pictures(tmp_path / "pics", [(64, 96)])
    async with wizard_on("data", tmp_path, values(folder)) as (app, pilot, page):
        await press(pilot, "e", "enter")
        app.screen.query_one(Input).value = "0"
        await press(pilot, "enter")
        assert "greater than or equal to 1" in text_of(app)
        await press(pilot, "escape", "escape")
        assert len(page.plan.rows_M) == 1


async def test_a_second_folder_is_added_and_removed(tmp_path):
    """Both are listed; x takes one out again."""
    first = write_pictures(tmp_path / "one", [(64, 96)])
    second = write_pictures(tmp_path / "two", [(64, 96)] * 2)
    async with wizard_on("data", tmp_path, values(first)) as (app, pilot, page):
        await press(pilot, "a")
        app.screen.query_one(Input).value = str(second)
        await press(pilot, "enter")
        await settle(pilot)
        assert page.plan.num_images == 3
        await press(pilot, "t", "t", "x")
        await settle(pilot)
        assert page.plan.num_images == 2


async def test_a_wrong_path_is_refused_by_name(tmp_path):
    """What is no folder is said, and nothing changes."""
    folder = write_pictures(tmp_path / "one", [(64, 96)])
    async with wizard_on("data", tmp_path, values(folder), (200, 60)) as (app, pilot, page):
        await press(pilot, "a")
        app.screen.query_one(Input).value = str(tmp_path / "no\x1bwhere")
        await press(pilot, "enter")
        assert "there is no such folder or file" in text_of(app)
        assert page.plan.num_images == 1


async def test_hostile_captions_and_names_are_text(tmp_path):
    """No control byte reaches the terminal and no markup acts, in lists, panes and the viewer."""
    folder = write_pictures(tmp_path / "pics [/]", [(64, 96)] * 2, [HOSTILE, "y" * 100_000])
    (folder / "p0.png").rename(folder / "p0[bold]\u202e\x1b[2J.png")
    (folder / "p0.txt").rename(folder / "p0[bold]\u202e\x1b[2J.txt")
    async with wizard_on("data", tmp_path, values(folder), (120, 40)) as (app, pilot, _page):
        for keys in ((), ("tab", "down"), ("v",), ("right",), ("escape", "t"), ("enter",)):
            await press(pilot, *keys)
            text = "".join(segment.text for segment in styles_of(app))
            assert "\x1b" not in text
            assert "\u202e" not in text
        assert app.is_running

"""Page 3, Buckets, driven by keys in the wizard."""

import pytest
from textual.widgets import Input

from tests.sdtui.page_support import wizard_on, write_pictures
from tests.sdtui.screen_support import press, settle, text_of

SIZES = [(512, 512), (512, 512), (500, 90), (300, 500), (128, 128)]


def values(folder, **more):
    return {"train_data_dir": folder, "caption_extension": ".txt", "enable_bucket": True, **more}


@pytest.fixture(autouse=True)
def _own_data(monkeypatch, tmp_path):
    monkeypatch.setenv("SDTUI_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def folder(tmp_path):
    return write_pictures(tmp_path / "pics", SIZES)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (60, 16), (200, 60)])
async def test_buckets_and_cuts_at_a_glance(tmp_path, folder, size):
    """Sizes, short batches, what is cut, the worst first."""
    async with wizard_on("buckets", tmp_path, values(folder, train_batch_size=2), size) as (app, _pilot, page):
        text = text_of(app)
        for shown in ("3 buckets", "512\u00d7512", "pixels cut", "cut away"):
            assert shown in text
        assert page._rows_N.tolist()[0] == 2


async def test_what_if_shows_the_effect_at_once_and_is_undone(tmp_path, folder):
    """A key changes the setting, the effect names the value before, z takes it back."""
    async with wizard_on("buckets", tmp_path, values(folder)) as (app, pilot, page):
        await press(pilot, "u")
        assert app.screen.draft.settings.dataset.bucket_no_upscale
        assert page._facts.num_enlarged == 0
        assert "was" in text_of(app)
        await press(pilot, "z")
        assert page._facts.num_enlarged > 0


async def test_arrows_step_values_and_batches_follow(tmp_path, folder):
    """Left and right on the resolution, plus and minus on the batch."""
    async with wizard_on("buckets", tmp_path, values(folder)) as (app, pilot, page):
        await press(pilot, "right")
        assert app.screen.draft.settings.dataset.resolution == (576, 576)
        await press(pilot, "plus", "plus", "minus")
        assert app.screen.draft.settings.training.train_batch_size == 2
        assert page._facts.plan.batches_per_epoch < len(SIZES)
        await press(pilot, "minus", "minus", "minus")
        assert app.screen.draft.settings.training.train_batch_size == 1


async def test_a_typed_value_is_checked(tmp_path, folder):
    """A wrong one is refused with its reason, a right one taken."""
    async with wizard_on("buckets", tmp_path, values(folder)) as (app, pilot, page):
        await press(pilot, "e")
        page.query_one("#typed", Input).value = "wide"
        await press(pilot, "enter")
        assert "numbers separated by commas" in text_of(app)
        page.query_one("#typed", Input).value = "640,512"
        await press(pilot, "enter")
        assert app.screen.draft.settings.dataset.resolution == (640, 512)
        assert "2 Data" in text_of(app)


async def test_settings_that_make_no_buckets_say_why(tmp_path, folder):
    """The error stands in place of the effect; undo brings the buckets back."""
    async with wizard_on("buckets", tmp_path, values(folder)) as (app, pilot, page):
        page.change({"min_bucket_reso": 1024})
        await settle(pilot)
        assert "below min_bucket_reso" in " ".join(text_of(app).split())
        await press(pilot, "z")
        assert "pixels cut" in text_of(app)


async def test_a_bucket_lists_its_pictures_and_the_viewer_shows_them(tmp_path, folder):
    """Enter narrows the list, Enter on a picture opens it, Esc goes back step by step."""
    async with wizard_on("buckets", tmp_path, values(folder)) as (app, pilot, page):
        await press(pilot, "tab", "down", "enter")
        narrowed = page._rows_N.tolist()
        assert len(narrowed) < len(SIZES)
        await press(pilot, "enter")
        assert "the whole picture" in text_of(app)
        await press(pilot, "escape", "escape")
        assert len(page._rows_N) == len(SIZES)


async def test_a_dataset_file_is_changed_where_it_says_the_value(tmp_path, folder):
    """The file's own value is what is stepped; the user's file stays as it is."""
    file = tmp_path / "dataset.toml"
    text = f'[[datasets]]\nresolution = 512\nenable_bucket = true\n[[datasets.subsets]]\nimage_dir = "{folder}"\n'
    file.write_text(text)
    async with wizard_on("buckets", tmp_path, {"dataset_config": file}) as (app, pilot, page):
        assert "in its file" in text_of(app)
        await press(pilot, "right")
        await settle(pilot)
        assert page._facts.plan.config.datasets[0].resolution == (576, 576)
        assert app.screen.draft.settings.dataset.resolution is None
        assert file.read_text() == text


async def test_without_pictures_keys_do_nothing(tmp_path):
    """Nothing to bucket is no failure."""
    async with wizard_on("buckets", tmp_path, {}) as (app, pilot, _page):
        await press(pilot, "u", "b", "plus", "right", "e", "s", "tab", "enter")
        assert "page 2 names them" in text_of(app)

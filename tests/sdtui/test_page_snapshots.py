"""The pages 1 to 3 and the picture viewer at both sizes, as text."""

import shutil

import pytest

from tests.sdtui.page_support import wizard_on, write_pictures
from tests.sdtui.screen_support import matches_snapshot, press

SIZES = [(640, 640), (500, 90), (300, 500), (128, 128), (900, 600), (900, 600)]
CAPTIONS = ["a cat, red", "a dog", None, ", ".join(f"word{n}" for n in range(60)), "\u732b, a cat", "a bird"]


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path, golden):
    """The temporary folder is home, so that no path differs from run to run."""
    for name in ("NO_COLOR", "SDTUI_ASCII", "TMUX", "STY", "KITTY_WINDOW_ID", "TERM_PROGRAM", "SDTUI_THEME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("SDTUI_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(golden / "tiny_sd1", tmp_path / "models" / "tiny")
    write_pictures(tmp_path / "pics", SIZES, CAPTIONS)


@pytest.fixture
def values(tmp_path):
    return {
        "pretrained_model_name_or_path": tmp_path / "models" / "tiny",
        "train_data_dir": tmp_path / "pics",
        "caption_extension": ".txt",
        "enable_bucket": True,
        "shuffle_caption": True,
        "train_batch_size": 2,
        "max_train_steps": 120,
    }


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
@pytest.mark.parametrize(
    ("page", "keys", "name"),
    [
        ("model", (), "page-model"),
        ("data", ("down", "down"), "page-data"),
        ("data", ("t", "t", "e", "down", "down"), "page-folder"),
        ("data", ("tab", "v"), "page-viewer"),
        ("buckets", ("u", "tab"), "page-buckets"),
    ],
)
async def test_pages(tmp_path, values, size, page, keys, name):
    """What is known, what is wrong and what a change does stand on the page, with the keys below."""
    async with wizard_on(page, tmp_path, values, size) as (app, pilot, _page):
        await press(pilot, *keys)
        assert matches_snapshot(app, f"{name}-{size[0]}x{size[1]}")

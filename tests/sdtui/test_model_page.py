"""Page 1, Model, driven by keys in the wizard."""

import hashlib
import shutil
from pathlib import Path

import pytest

from sdtui.known_models import KnownModel, known_models, ranked
from sdtui.model_facts import is_unsaid, lines_of, look_at
from sdtui.recent import recent
from tests.sdtui.page_support import wizard_on
from tests.sdtui.screen_support import press, settle, text_of

MODEL = "pretrained_model_name_or_path"


@pytest.fixture(autouse=True)
def _own_data(monkeypatch, tmp_path):
    monkeypatch.setenv("SDTUI_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def unsaid(tmp_path, golden):
    """An SD 1.x folder whose files do not tell what it predicts."""
    folder = tmp_path / "quiet"
    shutil.copytree(golden / "tiny_sd1", folder)
    shutil.rmtree(folder / "scheduler")
    return folder


def one_line(app):
    return " ".join(text_of(app).replace("\u2502", " ").split())


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (60, 16), (200, 60)])
async def test_a_model_is_told_at_once(tmp_path, golden, size):
    """Family, prediction, parts, precision and size."""
    async with wizard_on("model", tmp_path, {MODEL: golden / "tiny_sd1"}, size) as (app, _pilot, _page):
        text = one_line(app)
        for shown in ("a Stable Diffusion 1.x model", "epsilon", "UNet 2.4M"):
            assert shown in text
    assert [entry.name for entry in recent("model")] == [str(golden / "tiny_sd1")]


async def test_a_few_letters_find_a_model(tmp_path, golden):
    """Enter takes the best match; the change can be undone."""
    shutil.copytree(golden / "tiny_sd1", tmp_path / "models" / "my-portrait")
    async with wizard_on("model", tmp_path, {}) as (app, pilot, _page):
        await press(pilot, *"mprt", "enter")
        await settle(pilot)
        assert app.screen.draft.value(MODEL) == str(tmp_path / "models" / "my-portrait")
        await press(pilot, "z")
        assert app.screen.draft.value(MODEL) == ""


async def test_a_typed_path_is_completed(tmp_path, golden):
    """Tab completes, Enter takes the path as it is typed."""
    shutil.copytree(golden / "tiny_sd1", tmp_path / "somewhere")
    async with wizard_on("model", tmp_path, {}) as (app, pilot, page):
        page._field.value = f"{tmp_path}/some"
        page._field.cursor_position = len(page._field.value)
        await press(pilot, "tab", "enter")
        await settle(pilot)
        assert "Stable Diffusion 1.x" in one_line(app)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty"), (b"version https://git-lfs", "Git LFS pointer"), (b"\x10\x00\x00\x00\x00\x00\x00\x00{", "")],
)
async def test_a_damaged_file_is_said_with_its_remedy(tmp_path, content, said):
    """The sentence of the engine, on the page."""
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    async with wizard_on("model", tmp_path, {MODEL: path}) as (app, _pilot, _page):
        assert "\u2717" in text_of(app)
        assert said in one_line(app)


async def test_the_hash_of_a_file_follows(tmp_path, golden):
    """It is computed beside the work, and shown in full."""
    path = golden / "loss_functions.safetensors"
    async with wizard_on("model", tmp_path, {MODEL: path}, (120, 40)) as (app, pilot, _page):
        await settle(pilot)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert digest[:40] in one_line(app).replace(" ", "")


async def test_a_missing_file_and_a_hub_id_are_told_apart(tmp_path):
    """A hub id is fetched on request; a path that is not there is an error."""
    async with wizard_on("model", tmp_path, {MODEL: "owner/name"}) as (app, pilot, page):
        assert "is not on this machine: d fetches it" in one_line(app)
        page.change({MODEL: str(tmp_path / "gone.safetensors")})
        await settle(pilot)
        assert "no such model file or folder" in one_line(app)


async def test_fetching_offline_says_how_to_place_the_files(tmp_path):
    """The failure is one sentence in the status row."""
    async with wizard_on("model", tmp_path, {MODEL: "owner/name"}, (200, 60)) as (app, pilot, _page):
        await press(pilot, "d")
        await settle(pilot)
        assert "download owner/name by other means" in one_line(app)


async def test_what_a_model_predicts_is_asked_and_kept(tmp_path, golden):
    """e says epsilon, then v, then takes it back; another model forgets it."""
    async with wizard_on("model", tmp_path, {MODEL: golden / "tiny_sd1"}) as (app, pilot, page):
        draft = app.screen.draft
        await press(pilot, "e")
        assert draft.value("v_parameterization") is False
        await press(pilot, "e")
        assert draft.value("v_parameterization") is True
        assert any("contradicts the file" in text for _label, text, _style in page._facts())
        page._choose(str(tmp_path))
        await settle(pilot)
        assert draft.value("v_parameterization") is None


def test_an_sd2_file_without_statement_must_be_asked(golden, unsaid):
    """SD 1.x predicts epsilon unless it says otherwise; where nothing tells, somebody must say."""
    look = look_at(str(unsaid))
    assert look.info.prediction_type == "epsilon"
    assert not is_unsaid(look, None)
    blank = type(look)(name="x", info=_without_prediction(look.info))
    assert is_unsaid(blank, None)
    assert not is_unsaid(blank, False)
    assert any("e says epsilon" in text for _label, text, _style in lines_of(blank, None, None))


def _without_prediction(info):
    from dataclasses import replace

    return replace(info, family="sd2", prediction_type=None)


def test_ranking_finds_letters_in_their_order():
    """Letters in their order; what does not hold them is left out."""
    models = [KnownModel(name=name, source="near") for name in ("/a/sd-v1-5.safetensors", "/sd/v15/cat.ckpt", "/x/y")]
    assert len(ranked(models, "v15")) == 2
    assert "/x/y" not in [model.name for model in ranked(models, "v15")]


async def test_what_is_trained_is_chosen_with_space(tmp_path, golden):
    """The footer names the keys of the settings while they have the focus."""
    async with wizard_on("model", tmp_path, {MODEL: golden / "tiny_sd1"}, (120, 40)) as (app, pilot, page):
        page.show_setting("train_hypernetwork")
        await settle(pilot)
        assert "enter Edit" in one_line(app)
        await press(pilot, "space")
        assert app.screen.draft.value("train_hypernetwork") is True
        await press(pilot, "enter")
        assert app.screen.draft.value("train_hypernetwork") is False


def test_what_a_run_writes_beside_its_model_is_no_model(tmp_path):
    """Its numbers end in .bin like old weights."""
    (tmp_path / "run").mkdir()
    for name in ("metrics.bin", "last.safetensors"):
        (tmp_path / "run" / name).touch()
    assert [Path(model.name).name for model in known_models([tmp_path])] == ["last.safetensors"]

"""Hostile text everywhere at once, on every screen and dialog: it is shown, obeyed nowhere, and breaks nothing."""

import json
import time
import unicodedata
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from textual import events
from textual.widgets import Input

import sdtui
from engine import hardware
from engine.events import EventLog, Requested, Sampled, Saved, Warned
from engine.hardware import Card
from engine.run import RunFolder
from engine.settings import Settings
from engine.states import _manifest_bytes
from sdtui import memory_meter, recent
from sdtui.screens.captioning import CaptioningScreen
from sdtui.screens.fit_dialog import FitDialog
from tests.engine.models.models_support import write_tensors
from tests.sdtui.fake_run import TIME, FakeRun
from tests.sdtui.screen_support import Host, settle, styles_of, text_of

MARKUP = "a[b]b[<]c[@click=app.owned]d[link=http:x]e"
# No / and no NUL, which no file name can hold.
NAME = f"{MARKUP} \x1b]52;c;b3duZWQ=\x07\x1b[2J\x9b7m\u202ef\u2066\u200b\u200d\ufeff\u732b\u2028"
TEXT = f"[/][/b] {NAME} http://x/[/] \r\n\x00\x08 $(x) {{0}} %s z"
CAPTIONS = (TEXT, "y, " * 3_500_000, NAME * 20, "\u732b\u202e, " * 40, "")
WRONG = """output_name = TEXT
[optimizer]
optimizer_type = TEXT
optimizer_args = [TEXT]
[sampling]
sample_prompts = TEXT
[TEXT]
TEXT = TEXT
"""
ACTED = []


class Watched(Host):
    """The app, with the action that hostile markup names."""

    def action_owned(self):
        """Note that text from outside was obeyed."""
        ACTED.append("owned")


@pytest.fixture(autouse=True)
def _frozen(monkeypatch, tmp_path):
    """One clock and an own folder."""
    monkeypatch.setattr(time, "time", lambda: TIME + 460.0)
    monkeypatch.chdir(tmp_path)
    ACTED.clear()


def write_data(folder, *, is_valid=False):
    """Write pictures whose names and captions are hostile, one of the captions 10 MB long."""
    folder.mkdir()
    for number, caption in enumerate(CAPTIONS):
        path = folder / f"{number}{NAME}.png"
        Image.new("RGB", (64, 64 + 64 * (number % 2)), (40 * number, 90, 160)).save(path)
        path.with_suffix(".txt").write_text(caption.replace("\0", "") if is_valid else caption, encoding="utf-8")
    if not is_valid:
        (folder / f"9{NAME}.png").write_bytes(b"no picture")
    return folder


def write_model(path):
    """Write a checkpoint whose metadata and names are hostile."""
    keys = ("modelspec.title", "modelspec.architecture", "modelspec.prediction_type", "ss_output_name", NAME)
    names = ("model.diffusion_model.input_blocks.0.0.weight", f"model.diffusion_model.{NAME}", NAME)
    return write_tensors(path, {name: torch.zeros(4, 4, 3, 3) for name in names}, dict.fromkeys(keys, TEXT))


def write_settings(folder, *, is_valid):
    """Write a run.toml and dataset.toml full of hostile strings, known keys and unknown ones."""
    model, data = write_model(folder / f"{NAME}.safetensors"), write_data(folder / NAME, is_valid=is_valid)
    text = json.dumps(TEXT)
    (folder / "dataset.toml").write_text(
        "[general]\nenable_bucket = true\n[[datasets]]\nresolution = 64\nbatch_size = 2\nmin_bucket_reso = 64\n"
        f"[[datasets.subsets]]\nimage_dir = {json.dumps(str(data))}\ncaption_extension = '.txt'\n"
        f"caption_prefix = {text}\n"
    )
    path = folder / "run.toml"
    path.write_text(
        f"# {NAME!r}\n[model]\npretrained_model_name_or_path = {json.dumps(str(model))}\n"
        f"[dataset]\ndataset_config = 'dataset.toml'\n[training]\nmax_train_steps = 3\ntraining_comment = {text}\n"
        f"[saving]\nmetadata_title = {text}\n" + ("" if is_valid else WRONG.replace("TEXT", text))
    )
    return path


def write_runs(parent):
    """Write two runs whose names, events, log and prompts are hostile."""
    for name in (NAME, "b" + NAME):
        settings = {"metadata_title": json.dumps(TEXT)}
        run = FakeRun(done=30, sample_every=10, save_every=10, prompts=(TEXT, NAME), settings=settings)
        folder = run.write(parent / name)
        started = replace(run.started(), name=TEXT, device=TEXT, family=TEXT, trains=(TEXT,))
        log = EventLog(folder.path)
        for event in (
            replace(started, time=TIME + 40, step=30, resumed_from=30),
            Warned(step=30, time=TIME + 40, code=TEXT, message=TEXT),
            Saved(step=30, time=TIME + 40, path=TEXT, bytes=1, seconds=1.0, epoch=1),
            Sampled(step=31, time=TIME, path=f"../{NAME}", prompt=TEXT, index=0, seed=1, epoch=1, seconds=1.0),
            Requested(step=31, time=TIME, verb=TEXT, accepted=False, message=TEXT),
        ):
            log.emit(event)
        log.close()
        folder.log_path.write_text(TEXT * 5, encoding="utf-8")
        (folder.path / "prompts.json").write_text(json.dumps([TEXT, NAME]))
        with (folder.path / "run.toml").open("a") as file:
            file.write('[sampling]\nsample_prompts = "prompts.json"\n')
        recent.remember("run", folder.path)
    return parent


def look(app):
    """Every cell on the screen is text that a terminal shows, and none carries a link or an action."""
    for segment in styles_of(app):
        bad = [char for char in segment.text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
        assert segment.control or not bad, (app.screen, app.focused, segment.text)
        assert segment.style is None or not (segment.style.link or "@click" in segment.style.meta)


@asynccontextmanager
async def opened(size=(80, 24)):
    """Open the app; yields it and what presses keys, pastes hostile text, or expects a screen by its name."""
    app, written = Watched(), []
    async with app.run_test(size=size) as pilot:
        app._driver.write = written.append
        await settle(pilot)

        async def see(*keys):
            for key in (*keys, "settled"):
                if key == "settled":
                    await settle(pilot)
                elif len(key) > 1 and key[0].isupper():
                    await settle(pilot)
                    assert type(app.screen).__name__ == key
                elif key == "paste":
                    await settle(pilot)
                    assert isinstance(app.focused, Input)
                    app.screen.post_message(events.Paste(TEXT))
                else:
                    await pilot.press(key)
                look(app)

        await see()
        yield app, see
        assert app.is_running
    assert "b3duZWQ=" not in "".join(written)
    assert ACTED == []


async def test_home_and_its_dialogs(tmp_path):
    """Names of runs, of folders that a path may lead to, and what is typed."""
    write_runs(tmp_path / "runs")
    write_data(tmp_path / NAME)
    async with opened() as (app, see):
        assert MARKUP[:10] in text_of(app)
        await see("down", "slash", "paste", "ctrl+u", "escape")
        await see("o", "paste", "enter", "o", "a", "tab", "escape")
        await see("r", "escape", "question_mark", "escape", "y", "ctrl+p", "escape", "x")


async def test_the_training_screen_and_its_dialogs(tmp_path):
    """Events, log, prompts and what is typed."""
    folder = RunFolder(write_runs(tmp_path / "runs") / NAME)
    async with opened((120, 40)) as (app, see):
        with folder.locked():
            app.open_screen("train", folder)
            await see("comma", "full_stop", "TrainScreen")
            assert MARKUP in text_of(app)
            await see("v", "SampleDialog", "right", "down", "escape", "l", "LogDialog", "end", "escape")
            await see("P", "PromptDialog", "tab", "down", "enter", "paste", "enter", "TrainScreen")
            await see("X", "ChoiceDialog", "escape", "E", "TextDialog", "escape")
            await see("slash", "paste", "escape", "c", "left", "b", "B", "t", "TrainScreen")


async def test_runs_and_their_dialogs(tmp_path):
    """Names, settings, samples and what is typed."""
    async with opened() as (app, see):
        app.open_screen("runs", write_runs(tmp_path / "runs"))
        await see("space", "down", "space", "right", "comma")
        await see("n", "paste", "enter", "X", "escape", "y", "r", "escape", "slash", "paste")
        await see("RunsScreen")


async def test_the_wizard_on_settings_that_are_all_wrong(tmp_path):
    """Model, options and review of a run.toml whose every word is hostile."""
    run_toml = write_settings(tmp_path, is_valid=False)
    async with opened((120, 40)) as (app, see):
        app.open_wizard(run_toml)
        await see("WizardScreen", "1", "down", "p", "paste", "ctrl+u", "a", "escape", "2", "3", "4", "down", "f", "y")
        await see("slash", "paste", "ctrl+u", *"title", "enter", "enter", "paste", "enter", "WizardScreen")
        await see("P", "ChoiceDialog", "escape", "5", "down", "d", "d", "y", "w", "WizardScreen")


async def test_the_wizard_s_pictures_and_buckets(tmp_path):
    """Names and captions in lists, panes, the viewer and the options of a folder."""
    run_toml = write_settings(tmp_path, is_valid=True)
    async with opened((120, 40)) as (app, see):
        app.open_wizard(run_toml)
        await see("2", "tab", "down", "t", "v", "PictureViewer", "space", "right", "right", "escape")
        assert MARKUP[:20] in text_of(app)
        await see(
            "e", "SubsetDialog", "down", "enter", "paste", "escape", "escape", "a", "PathPrompt", "paste", "enter"
        )
        await see("slash", "paste", "ctrl+u", "escape", "3", "down", "s", "enter", "enter", "WizardScreen")


async def test_captions(tmp_path):
    """Names and texts in list, pane and field."""
    data = write_data(tmp_path / NAME)
    async with opened() as (app, see):
        app.push_screen(CaptioningScreen(data))
        await see("CaptioningScreen", "e", "escape", "down", "e", "down", "down", "e", "escape", "down")
        await see("s", "paste", "escape", "m", "PathPrompt", "escape", "space", "z", "CaptioningScreen")


def test_every_input_is_one_that_draws_no_controls():
    """Textual's own draws zero-width characters."""
    sources = Path(sdtui.__file__).parent.rglob("*.py")

    assert [path.name for path in sources if "yield Input(" in path.read_text("utf-8")] == []


async def test_resume_menu_and_the_question_on_leaving(tmp_path):
    """Names of runs, and of states and their files with what is wrong in them."""
    folder = RunFolder(write_runs(tmp_path / "runs") / NAME)
    state = folder.path / "state" / "step-00000030"
    state.mkdir(parents=True)
    manifest = {"format": 1, "step": 30, "time": TIME, "files": {NAME: {"size": 1, "sha256": "0"}}}
    (state / "MANIFEST.json").write_bytes(_manifest_bytes(manifest))
    (folder.path / "state" / "step-00000040").mkdir()
    (folder.path / "state" / "step-00000040" / "MANIFEST.json").write_text(json.dumps({"format": TEXT, "files": {}}))
    async with opened() as (app, see):
        app.resume_run(folder.path)
        await see("ChoiceDialog")
        assert MARKUP[:20] in text_of(app)
        await see("down")
        assert "is missing" in text_of(app)
        await see("up", "enter")
        app.engine = SimpleNamespace(is_running=True, folder=folder, control=None)
        await see("HomeScreen", "ctrl+q", "ChoiceDialog", "down", "escape", "HomeScreen")


async def test_doctor_and_ways_to_fit(tmp_path, monkeypatch):
    """What the environment and a driver call themselves, and where we are."""
    (tmp_path / NAME).mkdir()
    monkeypatch.chdir(tmp_path / NAME)
    card = Card(name=TEXT, total_bytes=12 << 30, free_bytes=12 << 30, capability=(8, 6))
    monkeypatch.setattr(hardware, "graphics_cards", lambda: (card,))
    monkeypatch.setattr(memory_meter, "card", lambda: card)
    for name in ("TERM", "TERM_PROGRAM", "TERM_PROGRAM_VERSION", "COLORTERM", "LANG", "TMUX", "STY", "SSH_TTY"):
        monkeypatch.setenv(name, TEXT.replace("\0", ""))
    async with opened((120, 40)) as (app, see):
        app.open_screen("doctor")
        await see("down", "down", "end", "DoctorScreen")
        assert MARKUP[:20] in text_of(app)
        await see("y", "escape")
        heavy = Settings().replace(train_batch_size=8, use_ema=True, resolution=(768, 768))
        app.push_screen(FitDialog(memory_meter.fit_of(heavy, None)))
        await see("FitDialog", "down", "escape", "HomeScreen")

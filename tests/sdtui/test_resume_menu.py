"""The resume menu: states newest first, damaged ones with their reason, and a run that goes on from the chosen one."""

import shutil

import pytest

from engine.headless import run_engine
from engine.run import RunFolder
from engine.settings_io import load_run
from sdtui.screens.choice import ChoiceDialog
from sdtui.screens.resume_menu import state_choices
from tests.engine.run_support import new_folder, pictures, tiny_model, write_run
from tests.reliability.state_support import copy_run

from .screen_support import press, shown, text_of, until


@pytest.fixture(scope="module")
def finished():
    """A run of four steps with states of steps 2 and 4."""
    values = {"pictures": pictures(), "model": tiny_model(), "max_train_steps": 4}
    path = write_run(new_folder(), save_state=True, save_every_n_steps=2, **values)
    run_engine(load_run(path))
    return path.parent / "out"


def test_states_are_listed_newest_first_with_the_damaged_ones_below(finished):
    """A damaged one has its reason and can't be chosen."""
    folder = copy_run(finished)
    (folder / "state" / "step-00000004" / "unet.safetensors").unlink()

    choices = state_choices(folder)

    assert [choice.value for choice in choices] == ["step-00000002", "changed", "", "start"]
    assert choices[2].text == "unet.safetensors is missing"


async def test_a_run_goes_on_from_the_state_that_is_chosen(finished):
    """r on the Runs screen, Enter on the newest state; the training screen shows it, with what came before."""
    folder = copy_run(finished)
    shutil.rmtree(folder / "state" / "step-00000004")
    (folder / "last.safetensors").unlink()
    async with shown("runs", folder.parent) as (app, pilot):
        await press(pilot, "r")
        await until(pilot, lambda: isinstance(app.screen, ChoiceDialog))
        assert "step 2" in text_of(app)
        await press(pilot, "enter")
        await until(pilot, lambda: type(app.screen).__name__ == "TrainScreen")
        app.engine.thread.join()

    assert app.engine.exit_code == 0
    started = [event for event in RunFolder(folder).events() if event.kind == "started"]
    assert started[-1].resumed_from == 2


async def test_a_damaged_state_is_refused_with_a_word(finished):
    """It stays in the menu, so that one knows."""
    folder = copy_run(finished)
    for step in (2, 4):
        (folder / "state" / f"step-0000000{step}" / "unet.safetensors").unlink()
    async with shown("runs", folder.parent) as (app, pilot):
        await press(pilot, "r")
        await until(pilot, lambda: isinstance(app.screen, ChoiceDialog))
        await press(pilot, "enter")
        assert "this state is damaged" in text_of(app)
        assert app.engine is None

"""The memory forecast in the wizard, on a card that is only named."""

import pytest

from engine.hardware import Card
from engine.memory.verdict import GIB
from engine.settings import Settings
from sdtui import memory_meter
from sdtui.screens.fit_dialog import FitDialog
from sdtui.widgets.key_footer import KeyFooter
from sdtui.widgets.step_bar import StepBar
from tests.sdtui.page_support import wizard_on
from tests.sdtui.screen_support import matches_snapshot, press, settle, until


@pytest.fixture
def small_card(monkeypatch):
    """A card of 12 GiB."""
    card = Card(name="small", total_bytes=12 * GIB, free_bytes=12 * GIB, capability=(8, 6))
    monkeypatch.setattr(memory_meter, "card", lambda: card)


def test_the_words_move_with_the_settings(small_card):
    """Needed and free, and a word where it does not fit."""
    light = Settings().replace(mixed_precision="bf16", gradient_checkpointing=True, optimizer_type="AdamW8bit")

    assert memory_meter.memory_words(light.replace(cache_latents=True), None).endswith("/12G")
    assert memory_meter.memory_words(Settings(), None).endswith("/12G TOO MUCH")


HEAVY = {"train_batch_size": 8, "use_ema": True, "resolution": "768,768"}


async def open_ways(app, pilot):
    """Press the key that the footer shows."""
    assert ("m", "m", "Fit") in app.screen.query_one(KeyFooter).shown(80)
    await press(pilot, "m")
    await until(pilot, lambda: isinstance(app.screen, FitDialog))
    await pilot.pause()


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_the_ways_to_fit_are_listed(tmp_path, small_card, size):
    """Single changes and combinations, by what they cost; the marked one's loss and flags stand below."""
    async with wizard_on("options", tmp_path, HEAVY, size) as (app, pilot, _page):
        await open_ways(app, pilot)
        await press(pilot, "down")

        assert matches_snapshot(app, f"ways-to-fit-{size[0]}x{size[1]}")


@pytest.mark.parametrize("key", ["1", "enter", "2"])
async def test_one_key_takes_a_way(tmp_path, small_card, key):
    """Then the run fits; one undo takes it back."""
    async with wizard_on("options", tmp_path, HEAVY) as (app, pilot, page):
        assert "TOO MUCH" in app.screen.query_one(StepBar)._meter
        ways = memory_meter.fit_of(page.draft.settings, page.plan).ways
        await open_ways(app, pilot)
        await press(pilot, key)

        changed = page.draft.settings.flat()
        assert all(changed[name] == value for name, value in ways[key == "2"].values)
        assert "TOO MUCH" not in app.screen.query_one(StepBar)._meter
        app.screen.action_undo()
        await settle(pilot)
        assert "TOO MUCH" in app.screen.query_one(StepBar)._meter


async def test_no_way_is_taken_by_closing_and_none_is_offered_where_it_fits(tmp_path, small_card):
    """A sentence says that it fits."""
    light = {"mixed_precision": "bf16", "gradient_checkpointing": True, "optimizer_type": "AdamW8bit"}
    async with wizard_on("options", tmp_path, HEAVY) as (app, pilot, page):
        before = page.draft.settings
        await open_ways(app, pilot)
        await press(pilot, "escape")
        assert page.draft.settings == before

        page.change({**light, **dict.fromkeys(HEAVY)})
        await settle(pilot)
        await press(pilot, "m")
        assert not isinstance(app.screen, FitDialog)
        assert memory_meter.fit_of(page.draft.settings, page.plan).text.startswith("training fits: ")


async def test_a_run_that_does_not_fit_is_a_problem_of_its_own(tmp_path, small_card, monkeypatch):
    """Beside the field, as a warning: a forecast must not keep a run from starting."""
    monkeypatch.setattr("engine.hardware.graphics_cards", lambda: (memory_meter.card(),))
    async with wizard_on("options", tmp_path, HEAVY) as (app, pilot, page):
        found = {problem.code: problem for problem in app.screen.problems}["memory"]
        assert (found.severity, found.about) == ("warning", "gradient_checkpointing")
        page.change(dict(memory_meter.values_of(memory_meter.fit_of(page.draft.settings, page.plan).ways[0])))
        await settle(pilot)
        assert "memory" not in {problem.code for problem in app.screen.problems}

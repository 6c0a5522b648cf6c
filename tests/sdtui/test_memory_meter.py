"""The memory forecast in the wizard, on a card that is only named."""

import pytest

from engine.hardware import Card
from engine.memory.verdict import GIB
from engine.settings import Settings
from sdtui import memory_meter
from sdtui.widgets.step_bar import StepBar
from tests.sdtui.page_support import wizard_on
from tests.sdtui.screen_support import settle


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


async def test_one_key_makes_the_run_fit(tmp_path, small_card):
    """In Options; one undo takes it back."""
    async with wizard_on("options", tmp_path, {"train_batch_size": 2}) as (app, pilot, page):
        assert "TOO MUCH" in app.screen.query_one(StepBar)._meter
        page.action_fit_memory()
        await app.workers.wait_for_complete()
        await settle(pilot)

        assert "TOO MUCH" not in app.screen.query_one(StepBar)._meter
        app.screen.action_undo()
        await settle(pilot)
        assert "TOO MUCH" in app.screen.query_one(StepBar)._meter

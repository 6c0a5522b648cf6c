"""What the wizard writes trains without a screen to what it trained with one."""

import shutil
import threading

import pytest

from engine import headless
from engine.headless import run_engine
from engine.settings_io import load_run
from tests.engine.run_support import Run, pictures, same, tiny_model
from tests.sdtui.page_support import wizard_on
from tests.sdtui.screen_support import press, settle, until

PROMPT = "a red thing --w 64 --h 64 --s 1"


@pytest.fixture
def gate(monkeypatch):
    """Trainings in this process begin once it is opened, so that a test can press keys before their first step."""
    opened = threading.Event()

    def wait_and_run(*arguments, **named):
        opened.wait()
        return run_engine(*arguments, **named)

    monkeypatch.setattr(headless, "run_engine", wait_and_run)
    return opened


@pytest.fixture(autouse=True)
def _own_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("SDTUI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


async def test_the_wizard_s_run_toml_trains_headless_to_the_same_weights(tmp_path, gate):
    """Tensor for tensor: the file that Review saves, and the one in the folder of the run that was started there.

    A picture that is asked for meanwhile changes nothing.
    """
    values = {
        "pretrained_model_name_or_path": tiny_model(), "train_data_dir": pictures(), "resolution": (128, 64),
        "enable_bucket": True, "min_bucket_reso": 64, "max_bucket_reso": 128, "train_batch_size": 2,
        "max_train_steps": 2, "learning_rate": 1e-3, "noise_offset": 0.05, "shuffle_caption": True,
    }  # fmt: skip
    async with wizard_on("review", tmp_path, values) as (app, pilot, _page):
        await press(pilot, "w")
        target = app.screen.draft.target
        saved = shutil.copy(target, target.with_name("saved.toml"))
        await press(pilot, "s")
        await until(pilot, lambda: type(app.screen).__name__ == "TrainScreen")
        await press(pilot, "P", *PROMPT, "enter")
        gate.set()
        app.engine.thread.join()
        assert (app.engine.exit_code, app.engine.error) == (0, ""), app.engine.error
        await settle(pilot)

    here = Run(0, target.parent)
    drawn = [(event.step, event.prompt) for event in here.of("sampled")]
    assert drawn == [(0, "a red thing")]
    for number, path in enumerate((saved, target)):
        folder = tmp_path / f"headless-{number}"
        assert run_engine(load_run(path, [f"output_dir={folder}"])) == 0
        again = Run(0, folder)
        assert again.losses == here.losses
        assert same(again.weights(), here.weights())

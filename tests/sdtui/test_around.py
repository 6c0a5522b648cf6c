"""Problems of model, plan and machine stand beside their setting, follow each change, and are fixed with one key."""

from dataclasses import replace

import pytest

from engine.hardware import Card
from engine.models.inspect import inspect_model
from engine.plan import make_plan
from engine.settings import Settings
from sdtui import model_probe
from sdtui.around import Around
from sdtui.draft import new_draft
from sdtui.fixes import fix_for
from tests.sdtui.page_support import wizard_on, write_pictures
from tests.sdtui.screen_support import press, settle, text_of

MODEL = "pretrained_model_name_or_path"
OLD = Card(name="RTX 2080", total_bytes=8 << 30, free_bytes=8 << 30, capability=(7, 5))


@pytest.fixture(autouse=True)
def _own_data(monkeypatch, tmp_path):
    monkeypatch.setenv("SDTUI_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def drafted(tmp_path, golden):
    """A draft, and its surroundings: a model, seven pictures, an old card."""
    folder = write_pictures(tmp_path / "p", [(512, 512)] * 7)
    draft = new_draft(tmp_path, tmp_path / "drafts")
    draft.change({MODEL: str(golden / "tiny_sd1"), "train_data_dir": str(folder), "cache_latents": True})
    plan = make_plan(draft.settings, cache_dir=tmp_path / "cache")
    around = Around(plan=plan, info=inspect_model(golden / "tiny_sd1"), cards=(OLD,))
    draft.look_around = around.problems
    return draft, around


def codes(draft, around):
    return {problem.code for problem in around.problems(draft)}


def test_each_change_is_judged_at_once_and_each_state_once(drafted):
    """Also by rules on a plan that was made before the change."""
    draft, around = drafted
    before = around.problems(draft)
    assert around._problems is around.problems(draft)[len(around.file_problems) :] or before == around.problems(draft)

    draft.change({"max_train_steps": "3", "mixed_precision": "bf16", "v2": True, "zero_terminal_snr": True})

    found = codes(draft, around)
    assert {"few-epochs", "bf16-on-old-card", "v2-mismatch", "zero-snr-epsilon"} <= found
    assert draft.problem_of("mixed_precision").code == "bf16-on-old-card"
    draft.undo()
    assert around.problems(draft) == before


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"max_train_steps": "3"}, "max_train_steps"),
        ({"mixed_precision": "bf16"}, "mixed_precision"),
        ({"v2": True}, "v2"),
        ({"save_every_n_steps": "9999"}, "save_every_n_steps"),
    ],
)
def test_a_fix_is_offered_and_works(drafted, values, name):
    """The change that the rule proposes."""
    draft, around = drafted
    draft.change(values)
    problem = draft.problem_of(name)

    draft.change(fix_for(draft, problem))

    assert problem.code not in codes(draft, around)


def test_what_is_not_known_yet_is_not_judged(tmp_path):
    """Neither model nor plan nor card."""
    draft = new_draft(tmp_path, tmp_path / "drafts")
    assert Around().problems(draft) == ()


def test_a_model_that_can_not_be_read_is_an_error(tmp_path):
    """In the engine's words; one on a hub is judged as a full-sized one."""
    around = Around()
    around.look(Settings().replace(pretrained_model_name_or_path=str(tmp_path / "none.safetensors")))
    (problem,) = around.file_problems
    assert (problem.severity, problem.setting) == ("error", MODEL)

    around.look(Settings().replace(pretrained_model_name_or_path="owner/name"))
    draft = new_draft(tmp_path, tmp_path / "drafts")
    draft.change({"learning_rate": "1e-3"})
    assert (around.file_problems, codes(draft, around)) == ((), {"unusual-rate"})


async def test_f_fixes_a_problem_of_the_plan_beside_its_field(tmp_path, golden):
    """On the Options page, before and after the plan is made anew."""
    folder = write_pictures(tmp_path / "p", [(512, 512)] * 7)
    values = {MODEL: golden / "tiny_sd1", "train_data_dir": folder, "max_train_steps": 3}
    async with wizard_on("options", tmp_path, values, (120, 40)) as (app, pilot, page):
        await settle(pilot)
        page.show_setting("max_train_steps")
        await settle(pilot)
        assert "43% of the pictures" in text_of(app)
        await press(pilot, "f")
        await settle(pilot)
        assert app.screen.draft.value("max_train_steps") == 7
        assert "few-epochs" not in {problem.code for problem in app.screen.problems}


async def test_m_measures_what_the_model_predicts(tmp_path, golden, monkeypatch):
    """Another process answers; the answer becomes a setting, which undo takes back."""
    answers = [("v_prediction", "the model predicts v"), ("undecided", "not decided")]
    monkeypatch.setattr(model_probe, "ask_probe", lambda _run: answers.pop(0))
    folder = write_pictures(tmp_path / "p", [(512, 512)])
    values = {MODEL: golden / "tiny_sd1", "train_data_dir": folder}
    async with wizard_on("model", tmp_path, values) as (app, pilot, _page):
        await settle(pilot)
        await press(pilot, "m")
        await settle(pilot)
        assert app.screen.draft.value("v_parameterization") is True
        await press(pilot, "m")
        await settle(pilot)
        assert "not decided" in text_of(app)
        await press(pilot, "z")
        assert app.screen.draft.value("v_parameterization") is None


def test_a_probe_that_fails_says_why(tmp_path, monkeypatch):
    """The last line of the process, which runs no module of the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "argparse.py").write_text("raise SystemExit('a file of the current folder was run')")
    (tmp_path / "run.toml").write_text("pretrained_model_name_or_path = 'none.safetensors'\n")

    verdict, text = model_probe.ask_probe(tmp_path / "run.toml")

    assert verdict == ""
    assert "none.safetensors" in text


def test_a_card_that_has_bf16_is_no_problem(drafted):
    """The machine's rules take the first card."""
    draft, around = drafted
    draft.change({"mixed_precision": "bf16"})
    around.cards = (replace(OLD, capability=(8, 6)),)
    assert "bf16-on-old-card" not in codes(draft, around)

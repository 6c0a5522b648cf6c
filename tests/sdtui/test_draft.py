"""The draft: every value checked, placed and undoable; its TOML keeps what the user wrote."""

import tomllib
from pathlib import Path

import pytest

from engine.errors import EngineError, ProblemsError
from engine.settings import Settings
from sdtui.draft import new_draft, open_draft
from sdtui.fixes import fix_for
from sdtui.presets import PRESETS
from tests.sdtui.fake_run import FakeRun

FILE = """\
# my settings
[optimizer]
learning_rate = 1e-4 # fast
[training]
seed = 42
[saving]
output_dir = "out"
"""


@pytest.fixture
def draft(tmp_path):
    return new_draft(tmp_path, tmp_path / "drafts")


@pytest.fixture
def opened(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(FILE)
    return open_draft(path, tmp_path / "drafts")


def codes(draft):
    return [(problem.code, problem.where) for problem in draft.problems]


def test_a_new_draft_gets_the_first_free_run_folder(tmp_path):
    """A first run needs no thought about folders, and never lands in an old one."""
    (tmp_path / "runs" / "run-01").mkdir(parents=True)

    draft = new_draft(tmp_path, tmp_path / "drafts")

    assert str(tmp_path / "runs" / "run-02") == draft.settings.saving.output_dir
    assert draft.origin("output_dir") == "auto"
    assert draft.target == tmp_path / "runs" / "run-02" / "run.toml"


def test_problems_name_the_setting_they_are_about(draft):
    assert codes(draft) == [("no-model", "pretrained_model_name_or_path"), ("no-pictures-named", "train_data_dir")]


def test_a_change_is_checked_and_its_origin_known(draft):
    assert draft.change({"learning_rate": "5e-6", "cache_latents": True}) == {"learning_rate", "cache_latents"}

    assert draft.settings.optimizer.learning_rate == 5e-6
    assert draft.settings.memory.cache_latents is True
    assert draft.origin("learning_rate") == "you"
    assert draft.origin("seed") == "default"


@pytest.mark.parametrize("values", [{"learning_rate": "fast"}, {"seed": "-1", "clip_skip": "2"}, {"nonsense": "1"}])
def test_a_refused_value_changes_nothing(draft, values):
    before = draft.settings
    with pytest.raises(ProblemsError, match=next(iter(values))):
        draft.change(values)

    assert draft.settings == before
    assert draft.undo_label == ""


def test_undo_and_redo_walk_through_labelled_changes(draft):
    draft.change({"seed": "1"})
    draft.change({"seed": "2"}, label="another seed")

    assert draft.undo() == {"seed"}
    assert (draft.value("seed"), draft.undo_label, draft.redo_label) == (1, "seed 1", "another seed")
    draft.undo()
    assert (draft.value("seed"), draft.undo()) == (42, frozenset())
    draft.redo()
    assert draft.redo() == {"seed"}
    assert (draft.value("seed"), draft.redo()) == (2, frozenset())


def test_a_change_after_undo_forgets_what_was_undone(draft):
    draft.change({"seed": "1"})
    draft.undo()
    draft.change({"clip_skip": "2"})

    assert draft.redo_label == ""


def test_comments_spelling_and_defaults_of_the_file_stay(opened):
    opened.change({"clip_skip": "2"})

    text = opened.text()
    for line in ("# my settings", "learning_rate = 1e-4 # fast", "seed = 42", "clip_skip = 2", 'output_dir = "out"'):
        assert line in text


def test_reset_takes_the_key_out_of_the_file(opened):
    opened.change({"seed": None, "learning_rate": None})

    assert tomllib.loads(opened.text()) == {"optimizer": {}, "training": {}, "saving": {"output_dir": "out"}}


def test_an_absolute_path_of_the_file_stays_absolute(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(f'[dataset]\ntrain_data_dir = "{tmp_path}" # here\n[saving]\noutput_dir = "out"\n')

    assert path.read_text() == open_draft(path, tmp_path / "drafts").text()


def test_places_name_file_and_line(opened):
    assert opened.place("learning_rate").endswith("run.toml:3")
    assert opened.loaded.places["learning_rate"].endswith("run.toml:3")


def test_unknown_keys_and_bad_values_of_a_file_are_problems_not_failures(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('[optimizer]\nlearning_rat = 1e-5\noptimizer_type = "Adamw8bi"\n[training]\nseed = "x"\n')

    draft = open_draft(path, tmp_path / "drafts")

    assert codes(draft)[:3] == [("unknown-key", "learning_rat"), ("bad-value", "optimizer_type"), ("bad-value", "seed")]
    renamed = fix_for(draft, draft.problems[0])
    assert renamed == {"learning_rat": None, "learning_rate": 1e-5}
    draft.change(renamed)
    assert draft.settings.optimizer.learning_rate == 1e-5
    assert fix_for(draft, draft.problems[0]) == {"optimizer_type": "AdamW8bit"}


def test_a_started_run_is_opened_as_a_copy(tmp_path):
    """The record of what a run was stays as it is."""
    folder = tmp_path / "runs" / "hearts-01"
    folder.mkdir(parents=True)
    FakeRun().write(folder)
    (folder / "run.toml").write_text('[saving]\noutput_dir = "."\n')

    draft = open_draft(folder / "run.toml", tmp_path / "drafts")

    assert draft.target == tmp_path / "runs" / "hearts-02" / "run.toml"
    assert "copy" in draft.note


@pytest.mark.parametrize(
    "text", ["learning_rate = 1e-5\n", "[arguments]\nlearning_rate = 1e-5\n", "[model]\nlearning_rate = 1e-5\n"]
)
def test_a_file_in_another_layout_is_read_but_never_written(tmp_path, text):
    path = tmp_path / "kohya.toml"
    path.write_text(text)

    draft = open_draft(path, tmp_path / "drafts")

    assert draft.settings.optimizer.learning_rate == 1e-5
    assert draft.target != path
    assert path.read_text() == text


def test_the_drafts_own_file_brings_everything_back(opened):
    opened.change({"clip_skip": "2", "learning_rate": None})
    opened.draft_path.parent.mkdir()
    opened.draft_path.write_text(opened.draft_text())

    again = open_draft(opened.draft_path, opened.draft_path.parent)

    assert again.settings == opened.settings
    assert again.target == opened.target


def test_a_change_outside_keeps_what_was_set_here(opened):
    opened.change({"seed": "7"})

    opened.take_file(FILE.replace("1e-4", "2e-4"))

    assert (opened.value("learning_rate"), opened.value("seed")) == (2e-4, 7)
    opened.undo()
    assert opened.value("learning_rate") == 1e-4


def test_an_edited_text_replaces_all_and_keeps_its_comments(opened):
    opened.take_text(FILE.replace("seed = 42", "seed = 8 # eight"))

    assert opened.value("seed") == 8
    assert opened.origin("seed") == "you"
    assert opened.origin("learning_rate") == "file"
    assert "seed = 8 # eight" in opened.text()


@pytest.mark.parametrize("text", ["[", "x = ", "\x00"])
def test_text_that_is_not_toml_is_refused_whole(opened, text):
    with pytest.raises(EngineError, match="not valid TOML"):
        opened.take_text(text)
    assert opened.undo_label == ""


def test_a_missing_file_is_said_in_one_sentence(tmp_path):
    with pytest.raises(EngineError, match="no such file"):
        open_draft(tmp_path / "none.toml", tmp_path)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_presets_apply_without_a_problem_and_undo_in_one_step(draft, preset):
    before = codes(draft)
    draft.change(preset.values, label=f"preset {preset.title}", origin="preset")

    assert codes(draft) == before
    assert {name for name in preset.values if draft.origin(name) == "preset"} <= {*preset.values}
    draft.undo()
    assert draft.changed() == {"output_dir"}


FIXABLE = [
    {"lr_warmup_steps": "10"},
    {"color_aug": True, "cache_latents": True},
    {"random_crop": True, "cache_latents_to_disk": True},
    {"sdpa": True, "xformers": True},
    {"adaptive_noise_scale": "0.1"},
    {"noise_offset_random_strength": True},
    {"min_timestep": "500", "max_timestep": "100"},
    {"v_parameterization": False, "scale_v_pred_loss_like_noise_pred": True},
    {"v_parameterization": True, "v_pred_like_loss": "1"},
    {"v2": True, "clip_skip": "2"},
    {"lr_scheduler_power": "2"},
    {"learning_rate_te": "1e-6"},
    {"huber_c": "0.5"},
    {"ema_decay": "0.5"},
    {"enable_bucket": True, "bucket_reso_steps": "40"},
    {"noise_offset": "0.1", "multires_noise_iterations": "6"},
]


@pytest.mark.parametrize("values", FIXABLE, ids="-".join)
def test_a_mechanical_fix_makes_its_problem_go_away(draft, values):
    """What is offered with one key works, and brings no new error."""
    needed = set(codes(draft))
    draft.change(values)
    found = [problem for problem in draft.problems if (problem.code, problem.where) not in needed]
    assert found

    for problem in found:
        changes = fix_for(draft, problem)
        if changes:
            draft.change(changes)

    assert set(codes(draft)) == needed


def test_no_fix_is_offered_where_a_person_must_decide(draft):
    assert [fix_for(draft, problem) for problem in draft.problems] == [None, None]


def test_a_draft_without_changes_is_the_defaults(draft):
    assert Settings().replace(output_dir=draft.settings.saving.output_dir) == draft.settings
    assert Path(draft.name).name == "run-01"

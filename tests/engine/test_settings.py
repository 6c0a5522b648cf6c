"""Settings come from run.toml, --set and flags; every problem is named at once, nothing is ignored in silence."""

import argparse
import math
import tomllib
from pathlib import Path

import pytest

from engine.errors import EngineError, ProblemsError
from engine.flags import add_setting_flags, settings_from_flags
from engine.settings import SECTION_OF, SECTIONS, Settings
from engine.settings_io import REFUSED, WITHOUT_EFFECT, load_run, run_toml


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def messages(error: ProblemsError) -> str:
    return "\n".join(map(str, error.problems))


def test_every_problem_is_reported_at_once_with_its_line(tmp_path):
    """File, line, key, value, expectation and nearest key; strings are no numbers, true is no integer."""
    path = write(
        tmp_path,
        '[model]\nclip_skp = 2\n[optimizer]\nlearning_rate = "5e-6"\n[training]\ntrain_batch_size = true\n'
        'mixed_precision = "fp61"\nmax_grad_norm = nan\nresolution = "512,x"\nmax_train_steps = 0\n',
    )

    with pytest.raises(ProblemsError) as caught:
        load_run(path)

    lines = messages(caught.value).splitlines()
    assert len(lines) == 7
    for line, words in zip(
        lines,
        [
            ("run.toml:2", "clip_skp", "clip_skip"),
            ("run.toml:4", "learning_rate", "'5e-6'", "number"),
            ("run.toml:6", "train_batch_size", "True", "integer"),
            ("run.toml:7", "mixed_precision", "'fp61'", "bf16"),
            ("run.toml:8", "max_grad_norm", "nan", "finite"),
            ("run.toml:9", "resolution", "'512,x'"),
            ("run.toml:10", "max_train_steps", "0", "greater"),
        ],
        strict=True,
    ):
        assert all(word in line for word in words), line


def test_sections_are_flattened_like_sd_scripts_config_file(tmp_path):
    """A flat file, foreign section names and ours say the same."""
    flat = load_run(write(tmp_path, 'learning_rate = 1e-5\nresolution = "512,768"\n')).settings
    foreign = load_run(write(tmp_path, "[whatever]\nlearning_rate = 1e-5\nresolution = [512, 768]\n")).settings

    assert flat == foreign
    assert flat.dataset.resolution == (512, 768)


def test_set_wins_over_the_file(tmp_path):
    """`--set` takes a key with or without its section, numbers as TOML writes them, and plain words."""
    path = write(tmp_path, "learning_rate = 1e-5\n")

    settings = load_run(path, ["optimizer.learning_rate=3e-6", "lr_scheduler=cosine", "max_train_steps=7"]).settings

    assert settings.optimizer.learning_rate == 3e-6
    assert settings.optimizer.lr_scheduler == "cosine"
    assert settings.training.max_train_steps == 7


def test_set_without_equals_is_refused(tmp_path):
    """The message shows the right form."""
    with pytest.raises(EngineError, match="key=value"):
        load_run(write(tmp_path, ""), ["learning_rate"])


@pytest.mark.parametrize("path", ["a\\u0000b", "~nobody-of-that-name/x", "a" * 300, "a/" * 3000])
@pytest.mark.parametrize("name", ["pretrained_model_name_or_path", "output_dir"])
def test_a_path_that_no_file_can_have_is_a_problem(tmp_path, name, path):
    """A sentence with key and place, and no traceback."""
    with pytest.raises(ProblemsError, match=rf"run.toml:1: {name} = .*(character|user|longer)"):
        load_run(write(tmp_path, f'{name} = "{path}"\n'))


def test_a_model_above_the_file_reads_back_as_the_same_path(tmp_path):
    """Without `..`, and a link keeps its name: the hub's cache links to files without a suffix."""
    (tmp_path / "blob").touch()
    (tmp_path / "model.safetensors").symlink_to("blob")
    (tmp_path / "runs").mkdir()
    path = tmp_path / "runs" / "run.toml"
    path.write_text('pretrained_model_name_or_path = "../model.safetensors"\n')

    assert load_run(path).settings.model.pretrained_model_name_or_path == str(tmp_path / "model.safetensors")


def test_relative_paths_count_from_the_file(tmp_path):
    """A folder with its run.toml can be moved; a hub id stays what it is."""
    (tmp_path / "model").mkdir()
    path = write(tmp_path, 'pretrained_model_name_or_path = "model"\nvae = "org/name"\noutput_dir = "out"\n')

    settings = load_run(path).settings

    assert settings.model.pretrained_model_name_or_path == str(tmp_path / "model")
    assert settings.model.vae == "org/name"
    assert settings.saving.output_dir == str(tmp_path / "out")


def test_written_toml_reads_back_as_the_same_settings(tmp_path):
    """The headless rerun is the run; paths in the file count from its folder."""
    values = {
        "pretrained_model_name_or_path": str(tmp_path / "model"),
        "output_dir": str(tmp_path),
        "resolution": (384, 640),
        "optimizer_args": ("weight_decay=0.1",),
        "learning_rate": 1.5e-6,
        "v2": True,
    }
    (tmp_path / "model").mkdir()
    settings = Settings().replace(**values)

    text = run_toml(settings, folder=tmp_path)
    again = load_run(write(tmp_path, text)).settings

    assert str(tmp_path) not in text
    assert again == settings
    assert tomllib.loads(text)["dataset"]["resolution"] == "384,640"


def test_rewriting_keeps_the_users_comments(tmp_path):
    """Only what changed changes."""
    text = "# mine\n[optimizer]\nlearning_rate = 1e-5 # keep\nlr_scheduler = 'constant'\n"
    settings = load_run(write(tmp_path, text), ["max_train_steps=9"]).settings

    assert run_toml(settings, folder=tmp_path, existing=text) == text + "\n[training]\nmax_train_steps = 9\n"


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_taken_over_is_refused_by_name(tmp_path, name):
    """Accepting an option and not using it is the worst answer."""
    with pytest.raises(ProblemsError, match=f"{name} is refused"):
        load_run(write(tmp_path, f"{name} = 1\n"))


@pytest.mark.parametrize("name", sorted(WITHOUT_EFFECT))
def test_what_has_no_effect_is_said(tmp_path, name):
    """Harmless established flags are accepted, with the reason why they do nothing."""
    loaded = load_run(write(tmp_path, f"{name} = true\n"))

    assert [problem.severity for problem in loaded.warnings] == ["info"]
    assert WITHOUT_EFFECT[name] in loaded.warnings[0].message


def flags(*words: str) -> Settings:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_setting_flags(parser)
    return settings_from_flags(parser, words).settings


def test_classic_flags_are_read_as_sd_scripts_reads_them():
    """Both `--name value` and `--name=value`, switches without a value, shorthands and any case."""
    settings = flags(
        "--pretrained_model_name_or_path=m.safetensors", "--learning_rate", "5e-6", "--max_train_steps=10000",
        "--use_8bit_adam", "--gradient_checkpointing", "--mixed_precision=fp16", "--save_every_n_epochs=4",
        "--optimizer_args", "weight_decay=0.01", "betas=.9,.99", "--v2", "--lr_scheduler", "COSINE",
    )  # fmt: skip

    assert settings.optimizer.learning_rate == 5e-6
    assert settings.optimizer.optimizer_type == "AdamW8bit"
    assert settings.optimizer.optimizer_args == ("weight_decay=0.01", "betas=.9,.99")
    assert settings.optimizer.lr_scheduler == "cosine"
    assert settings.memory.gradient_checkpointing is True
    assert settings.model.v2 is True
    assert settings.model.v_parameterization is None
    assert settings.saving.save_every_n_epochs == 4


def test_a_config_file_is_read_below_the_flags(tmp_path):
    """As in sd-scripts, the command line wins."""
    path = write(tmp_path, "[optimizer]\nlearning_rate = 1e-5\nmax_grad_norm = 0.5\n")

    settings = flags(f"--config_file={path}", "--learning_rate=2e-5")

    assert settings.optimizer.learning_rate == 2e-5
    assert settings.optimizer.max_grad_norm == 0.5


def test_unknown_flags_and_bad_values_are_named_together():
    """One round of corrections is enough."""
    with pytest.raises(ProblemsError) as caught:
        flags("--learning_rat=1e-5", "--max_train_steps=ten", "--fp8_base")

    text = messages(caught.value)
    assert "--learning_rat is not a flag; did you mean 'learning_rate'?" in text
    assert "max_train_steps = 'ten'" in text
    assert "fp8_base is refused: 8 bits have too few digits" in text


def test_every_setting_has_a_name_of_its_own_help_and_a_finite_default():
    """A flat command line needs unique names; forms and documentation need the help."""
    names = [name for section in SECTIONS.values() for name in section.model_fields]

    assert len(names) == len(set(names)) == len(SECTION_OF)
    for section in SECTIONS.values():
        for name, field in section.model_fields.items():
            assert field.description, name
            assert not isinstance(field.default, float) or math.isfinite(field.default)


def test_settings_are_frozen_and_replace_checks():
    """Derived numbers belong to the plan; a changed value is checked like a given one."""
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.optimizer.learning_rate = 1.0
    with pytest.raises(ValueError, match="greater than 0"):
        settings.replace(learning_rate=-1.0)

    assert settings.replace(learning_rate=1e-5).optimizer.learning_rate == 1e-5

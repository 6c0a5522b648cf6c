"""The two command lines of sd-scripts' documentation, as they stand there: parsed, checked, planned and trained."""

import json
import shlex

import pytest

from engine.cli import main
from engine.models.convert import convert
from engine.settings_io import load_run

from .run_support import SIZES, tiny_model, write_pictures

METADATA_LINE = """
accelerate launch --num_cpu_threads_per_process 1 fine_tune.py
    --pretrained_model_name_or_path=model.ckpt
    --in_json meta_lat.json
    --train_data_dir=train_data
    --output_dir=fine_tuned
    --shuffle_caption
    --train_batch_size=1 --learning_rate=5e-6 --max_train_steps=10000
    --use_8bit_adam --xformers --gradient_checkpointing
    --mixed_precision=bf16
    --save_every_n_epochs=4
"""
DATASET_LINE = """
accelerate launch --num_cpu_threads_per_process 1 fine_tune.py
    --pretrained_model_name_or_path=model.ckpt
    --output_dir=fine_tuned
    --output_name=fine_tuned_model
    --dataset_config=dataset.toml
    --save_model_as=safetensors
    --learning_rate=5e-6
    --max_train_steps=10000
    --use_8bit_adam
    --xformers
    --gradient_checkpointing
    --mixed_precision=fp16
"""


def words_of(line):
    words = shlex.split(line)
    return words[words.index("fine_tune.py") + 1 :]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder as the documentation assumes it: model.ckpt, train_data, meta_lat.json and dataset.toml."""
    write_pictures(tmp_path / "train_data")
    convert(str(tiny_model()), tmp_path / "model.ckpt")
    metadata = {
        f"{number}.png": {"caption": f"a picture {number}", "tags": "red, blue", "train_resolution": [512, 512]}
        for number in range(len(SIZES))
    }
    (tmp_path / "meta_lat.json").write_text(json.dumps(metadata))
    (tmp_path / "dataset.toml").write_text(
        "[general]\nshuffle_caption = true\nkeep_tokens = 1\n[[datasets]]\nresolution = 64\nbatch_size = 2\n"
        '[[datasets.subsets]]\nimage_dir = "train_data"\nmetadata_file = "meta_lat.json"\n'
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", [METADATA_LINE, DATASET_LINE], ids=["in_json", "dataset_config"])
def test_a_classic_line_is_parsed_checked_and_planned(folder, line, capsys):
    """As written; what this machine can't do is said by `check`, and nothing else is wrong."""
    assert main(["fine_tune", *words_of(line), "--config_file=run.toml", "--output_config"]) == 0
    settings = load_run(folder / "run.toml").settings
    assert settings.optimizer.optimizer_type == "AdamW8bit"
    assert (settings.optimizer.learning_rate, settings.training.max_train_steps) == (5e-6, 10_000)
    assert (settings.memory.xformers, settings.memory.gradient_checkpointing) == (True, True)

    capsys.readouterr()
    main(["check", "run.toml", "--json"])
    errors = [problem for problem in json.loads(capsys.readouterr().out) if problem["severity"] == "error"]
    assert {problem["setting"] for problem in errors} <= {"xformers", "mixed_precision"}
    main(["plan", "run.toml", "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert (len(plan["images"]), plan["steps"]) == (len(SIZES), 10_000)


@pytest.mark.parametrize("line", [METADATA_LINE, DATASET_LINE], ids=["in_json", "dataset_config"])
def test_a_classic_line_trains_after_the_substitutions_that_the_refusals_name(folder, line, capsys):
    """No xformers operator and no fp16 on a CPU: each refusal says what to write instead."""
    words = [word.replace("10000", "2") for word in words_of(line)] + ["--resolution=64"]
    told = ""
    for _ in range(3):
        code = main(["fine_tune", *words])
        told += capsys.readouterr().err
        if code == 0:
            break
        if "--xformers" in words and "xformers" in told:
            words[words.index("--xformers")] = "--sdpa"
            assert "sdpa" in told
        else:
            words = ["--mixed_precision=bf16" if word == "--mixed_precision=fp16" else word for word in words]
            assert "mixed_precision=bf16" in told

    assert code == 0, told
    name = "last" if "in_json" in line else "fine_tuned_model"
    assert (folder / "fine_tuned" / f"{name}.safetensors").exists()

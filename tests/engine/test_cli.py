"""The headless command line: verbs, exit codes, JSON on stdout and nothing else there."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from engine.cli import LATER, main
from engine.events import read_events
from engine.settings_io import load_run

from .run_support import GOLDEN, TEXT, go, pictures, tiny_model, write_pictures, write_run


@pytest.fixture
def run_toml(tmp_path):
    return write_run(tmp_path, pictures=pictures(), model=tiny_model())


def test_train_trains_and_exits_0(run_toml, capsys):
    """`--set` may be given several times, with or without a section."""
    words = ["train", str(run_toml), "--set", "max_train_steps=1", "--set", "saving.output_name=cat"]

    code = main(words)

    shown = capsys.readouterr()
    assert code == 0
    assert shown.out == ""
    assert "finished 1 steps" in shown.err
    assert (run_toml.parent / "out" / "cat.safetensors").exists()


def test_plan_json_is_one_document_with_the_keys_of_the_contract(run_toml, capsys):
    """Every picture's fate; nothing is started."""
    assert main(["plan", str(run_toml), "--json"]) == 0

    plan = json.loads(capsys.readouterr().out)
    assert {
        "images", "buckets", "steps", "epochs", "batches_per_epoch", "seconds", "memory", "disk", "problems"
    } <= plan.keys()  # fmt: skip
    assert plan["images"][1] == {
        "key": "1.png", "size": [70, 66], "bucket": [64, 64], "resized": [68, 64], "crop": [2, 0, 66, 64],
        "cut_fraction": pytest.approx(4 / 68), "caption": "a dog", "tokens": 2, "truncated_tokens": 0, "repeats": 1,
            "held_out": False,
    }  # fmt: skip
    assert plan["buckets"] == [
        {"size": [64, 64], "images": 4, "batches": 2},
        {"size": [64, 128], "images": 1, "batches": 1},
        {"size": [128, 64], "images": 2, "batches": 1},
    ]
    assert (plan["steps"], plan["epochs"], plan["batches_per_epoch"]) == (2, 1, 4)
    assert {problem["code"] for problem in plan["problems"]} == {"no-caption", "empty-caption", "few-epochs"}
    assert not (run_toml.parent / "out").exists()


def test_plan_tells_people_what_matters(run_toml, capsys):
    """On stderr."""
    assert main(["plan", str(run_toml), "--set", "save_every_n_steps=1"]) == 0

    shown = capsys.readouterr()
    assert shown.out == ""
    assert "7 pictures, 4 batches in an epoch" in shown.err
    assert "64x128" in shown.err.replace(" ", "")
    assert "4 captions" not in shown.err


def test_plan_of_the_golden_set_counts_truncated_tokens(tmp_path, capsys):
    """Tokens beyond the window are told for each caption."""
    folder = write_pictures(tmp_path / "p")
    (folder / "0.caption").write_text("word " * 100)
    path = write_run(tmp_path, pictures=folder, model=tiny_model())

    main(["plan", str(path), "--json"])
    cut = json.loads(capsys.readouterr().out)["images"][0]
    main(["plan", str(path), "--json", "--set", "max_token_length=150"])
    whole = json.loads(capsys.readouterr().out)["images"][0]

    assert (cut["tokens"], cut["truncated_tokens"]) == (75, 25)
    assert (whole["tokens"], whole["truncated_tokens"]) == (100, 0)


def test_plan_with_contradictions_exits_2_and_shows_them(run_toml, capsys):
    """The document is still there to look at."""
    code = main(["plan", str(run_toml), "--json", "--set", "min_timestep=9", "--set", "max_timestep=5"])

    problems = json.loads(capsys.readouterr().out)["problems"]
    assert code == 2
    assert "timesteps" in {problem["code"] for problem in problems}


def test_check_exits_0_where_only_warnings_are(run_toml, capsys):
    """Counted for people, listed for programs."""
    assert main(["check", str(run_toml)]) == 0
    assert "0 errors, 3 remarks" in capsys.readouterr().err
    assert main(["check", str(run_toml), "--json"]) == 0
    assert {problem["severity"] for problem in json.loads(capsys.readouterr().out)} == {"warning"}


def test_check_of_a_file_that_can_not_be_read_is_json_too(tmp_path, capsys):
    """Exit 2."""
    assert main(["check", str(tmp_path / "none.toml"), "--json"]) == 2

    (problem,) = json.loads(capsys.readouterr().out)
    assert problem["severity"] == "error"
    assert "none.toml" in problem["message"]


FLAGS = ["--max_train_steps=2", "--learning_rate=1e-3", "--cache_latents", "--save_precision=fp16"]


def test_fine_tune_with_a_data_set_file(tmp_path, capsys):
    """The first classic form; shorthands and flags without effect are understood."""
    path = GOLDEN / "dataset" / "dataset_config_bs1.toml"
    words = [
        f"--pretrained_model_name_or_path={tiny_model()}",
        f"--dataset_config={path}",
        f"--output_dir={tmp_path}/o",
    ]

    code = main(["fine_tune", *words, *FLAGS, "--use_safetensors", "--lowram", "--output_name", "x", "--seed", "1"])

    assert code == 0, capsys.readouterr().err
    assert load_file(tmp_path / "o" / "x.safetensors")[f"{TEXT}text_model.final_layer_norm.weight"].dtype == torch.half
    assert load_run(tmp_path / "o" / "run.toml").settings.training.seed == 1


def test_fine_tune_with_metadata(tmp_path, capsys, monkeypatch):
    """The second classic form, with relative paths from the working folder and a config file below the flags."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures")
    meta = {f"{number}.png": {"caption": f"picture {number}", "tags": "a, b"} for number in range(7)}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    (tmp_path / "config.toml").write_text("[optimizer_arguments]\nlearning_rate = 1.0\nmax_grad_norm = 0.5\n")
    words = ["--in_json=meta.json", "--train_data_dir", "pictures", "--output_dir=o", "--config_file=config.toml"]
    buckets = ["--resolution=64,64", "--enable_bucket", "--min_bucket_reso=64", "--train_batch_size=2"]

    code = main(["fine_tune", f"--pretrained_model_name_or_path={tiny_model()}", *words, *buckets, *FLAGS])

    assert code == 0, capsys.readouterr().err
    settings = load_run(tmp_path / "o" / "run.toml").settings
    assert (settings.optimizer.learning_rate, settings.optimizer.max_grad_norm) == (1e-3, 0.5)
    assert read_events(tmp_path / "o" / "events.jsonl")[-1].kind == "finished"


def test_convert_and_verify(tmp_path, capsys):
    """Folder to file and back, compared; a damaged file fails its certificate."""
    file, folder = tmp_path / "m.safetensors", tmp_path / "m"

    assert main(["convert", str(tiny_model()), str(file), "--save_precision", "fp16"]) == 0
    assert main(["convert", str(file), str(folder)]) == 0
    capsys.readouterr()
    assert main(["verify", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    file.write_bytes(file.read_bytes()[:-10])
    assert main(["verify", str(file)]) == 2
    assert "m.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("verb", LATER)
def test_verbs_that_are_not_there_say_so(verb, capsys):
    """By name, exit 2, with what to do instead."""
    assert main([verb, "x"]) == 2
    assert f"{verb}: {LATER[verb]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [[], ["nonsense"], ["train"], ["train", "a.toml", "--wat"], ["plan", "a", "b"]], ids=str
)
def test_wrong_usage_exits_2(words, capsys):
    """With a hint on stderr."""
    try:
        code = main(words)
    except SystemExit as error:  # argparse's own way out
        code = error.code

    shown = capsys.readouterr()
    assert code == 2
    assert shown.out == ""
    assert shown.err


def test_a_bug_is_a_sentence_and_exit_1(monkeypatch, run_toml, capsys):
    """SDTUI_DEBUG shows the trace to who asks."""

    def bug(*_args):
        raise ZeroDivisionError("oh\x1b[2J")

    monkeypatch.setattr("engine.check_verbs.load_run", bug)

    assert main(["plan", str(run_toml)]) == 1
    assert r"internal error, ZeroDivisionError: oh\x1b[2J" in capsys.readouterr().err
    monkeypatch.setenv("SDTUI_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["plan", str(run_toml)])


@pytest.mark.parametrize(("reason", "code"), [("", 130), ("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupt_before_the_start_has_the_codes_of_signals(monkeypatch, run_toml, capsys, reason, code):
    """Nothing was started, so nothing is saved."""

    def interrupt(*_args):
        raise KeyboardInterrupt(*([reason] if reason else []))

    monkeypatch.setattr("engine.cli.load_run", interrupt)

    assert main(["train", str(run_toml)]) == code
    assert "nothing was started" in capsys.readouterr().err


def test_json_into_a_closed_pipe_ends_quietly(run_toml):
    """As in `plan --json | head`."""
    command = [sys.executable, "-m", "engine", "plan", str(run_toml), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        shown = process.stderr.read()
        process.wait(timeout=60)

    assert b"Traceback" not in shown
    assert b"Exception" not in shown


def test_a_classic_v2_flag_is_read_as_sd_scripts_reads_it(tmp_path, capsys):
    """Without --v_parameterization it means a base model, and that is said."""
    go(tmp_path / "a", max_train_steps=1)
    words = [f"--pretrained_model_name_or_path={tiny_model()}", f"--train_data_dir={pictures()}", "--v2"]

    code = main(["fine_tune", *words, f"--output_dir={tmp_path / 'o'}", "--resolution=64"])

    shown = capsys.readouterr().err
    assert code == 2
    assert "read as a model that predicts noise" in shown
    assert "v2 = true" in shown


def test_output_config_writes_the_flags_and_trains_nothing(tmp_path, capsys):
    """As a file that `train` and --config_file read, without keys; never over another file."""
    target = tmp_path / "written.toml"
    words = ["fine_tune", f"--config_file={tmp_path / 'written'}", "--output_config", "--learning_rate=3e-6",
             "--wandb_api_key=secret", "--use_8bit_adam", "--output_dir", str(tmp_path / "out")]  # fmt: skip

    assert main(words) == 0

    settings = load_run(target).settings
    assert (settings.optimizer.learning_rate, settings.optimizer.optimizer_type) == (3e-6, "AdamW8bit")
    assert settings.saving.output_dir == str(tmp_path / "out")
    assert "secret" not in target.read_text()
    assert not (tmp_path / "out").exists()
    assert main(words) == 2
    assert main(["fine_tune", "--output_config"]) == 2
    told = capsys.readouterr().err
    assert "is there already; name another --config_file" in told
    assert "add --config_file run.toml" in told

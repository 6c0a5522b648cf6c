"""`check` and `plan`: everything at once, with places and fixes; and no false alarm on good runs."""

import json
import shutil

import pytest

from engine.cli import main
from engine.events import Finished, Saved, Step
from engine.hardware import Card
from engine.headless import cache_dir_for
from engine.settings import Settings
from engine.settings_io import load_run
from engine.speed import SpeedLog, device_name, key_of, known_speed
from sdtui.demo import write_project

from .run_support import go, pictures, tiny_model, write_run

CARDS = {
    "none": (),
    "old": (Card(name="Titan V", total_bytes=12 << 30, free_bytes=12 << 30, capability=(7, 0)),),
    "new": (Card(name="RTX 3060", total_bytes=12 << 30, free_bytes=12 << 30, capability=(8, 6)),),
}
# What sd-scripts' documentation gives for 12 GB.
CLASSIC = """
pretrained_model_name_or_path = "runwayml/stable-diffusion-v1-5"
dataset_config = "dataset.toml"
output_dir = "out"
output_name = "last"
save_model_as = "safetensors"
max_train_steps = 10000
learning_rate = 5e-6
optimizer_type = "AdamW8bit"
use_8bit_adam = true
xformers = true
gradient_checkpointing = true
mixed_precision = "fp16"
save_every_n_epochs = 4
"""


@pytest.fixture
def run_toml(tmp_path):
    return write_run(tmp_path, pictures=pictures(), model=tiny_model(), max_train_steps=8)


def checked(path, capsys, *words):
    """Return the exit code and the findings, by code."""
    code = main(["check", str(path), "--json", *words])
    return code, {problem["code"]: problem for problem in json.loads(capsys.readouterr().out)}


@pytest.fixture(params=CARDS)
def card(request, monkeypatch):
    """A machine without a card, with an old and with a new one."""
    monkeypatch.setattr("engine.inspection.graphics_cards", lambda: CARDS[request.param])
    return request.param


def test_no_false_alarm_on_the_starter_project(tmp_path, capsys, card):
    """Neither error nor warning; what is said of the machine says so."""
    write_project(tmp_path)

    code, found = checked(tmp_path / "run.toml", capsys)

    assert code == 0
    assert {problem["severity"] for problem in found.values()} <= {"info"}


def test_no_false_alarm_on_the_classic_settings_for_12_gb(tmp_path, capsys, card):
    """Whatever the machine has: without a card, what needs one is a remark about this machine."""
    shutil.copytree(pictures(), tmp_path / "p")
    for number in range(7):
        (tmp_path / "p" / f"{number}.caption").write_text(f"picture {number}")
    (tmp_path / "dataset.toml").write_text(
        "[general]\nenable_bucket = true\n[[datasets]]\nresolution = 512\nbatch_size = 1\n"
        "[[datasets.subsets]]\nimage_dir = 'p'\nnum_repeats = 10\n"
    )
    (tmp_path / "run.toml").write_text(CLASSIC)

    code, found = checked(tmp_path / "run.toml", capsys)

    assert code == 0
    assert {problem["severity"] for problem in found.values()} <= {"info"}
    machine = {code for code, problem in found.items() if "this machine" in problem["message"]}
    expected = {"none": {"fp16-without-card", "xformers-without-card"}, "old": set(), "new": {"fp16-on-new-card"}}
    assert machine == expected[card]


def test_errors_of_settings_files_pictures_and_plan_come_together(run_toml, capsys):
    """An error in one does not hide the others; each has its place, and its fix as a change of settings."""
    text = run_toml.read_text() + "lr_warmup_steps = 5\nv2 = true\nsave_every_n_steps = 100\ncaption_suffix = 'x'\n"
    run_toml.write_text(text)
    (run_toml.parent / "out").mkdir()
    (run_toml.parent / "out" / "last.safetensors").touch()

    code, found = checked(run_toml, capsys)

    assert code == 2
    severities = {name: found[name]["severity"] for name in ("constant-warmup", "v2-mismatch", "output")}
    assert set(severities.values()) == {"error"}
    line = text.splitlines().index("lr_warmup_steps = 5") + 1
    assert found["constant-warmup"]["where"] == f"{run_toml}:{line}"
    assert found["beyond-the-run"]["set"] == {"save_every_n_steps": 4}
    assert found["v2-mismatch"]["set"] == {"v2": None}
    assert "Source:" in found["v2-mismatch"]["reason"]


def test_what_training_refuses_check_names(run_toml, capsys):
    """A wrong v2, in the same words and before anything heavy is loaded."""
    assert checked(run_toml, capsys, "--set", "v2=true")[0] == 2
    assert main(["train", str(run_toml), "--set", "v2=true"]) == 2
    assert "v2 = true, but the model is a Stable Diffusion 1.x model" in capsys.readouterr().err
    assert not (run_toml.parent / "out").exists()


def test_what_the_file_tells_counts_where_settings_are_silent(run_toml, capsys):
    """An SD 1.x file predicts noise, so that options for v-prediction are found out."""
    _, found = checked(run_toml, capsys, "--set", "zero_terminal_snr=true")
    assert "zero-snr-epsilon" in found


def test_the_printed_fix_mends_the_problem(run_toml, capsys):
    """Pasted behind the command; `KEY=` is the default."""
    main(["check", str(run_toml), "--set", "lr_scheduler_power=2", "--set", "min_snr_gamma=99"])
    shown = capsys.readouterr().err
    assert "--set lr_scheduler_power=" in shown
    assert "--set min_snr_gamma=5" in shown
    assert max(map(len, shown.replace(str(run_toml.parent), "").splitlines())) < 100

    _, found = checked(run_toml, capsys, "--set", "lr_scheduler_power=2", "--set", "lr_scheduler_power=")
    assert "idle-option" not in found


def test_a_card_can_be_named(tmp_path, capsys):
    """By its compute capability, as the forecast of memory takes it."""
    write_project(tmp_path)
    path, bf16 = tmp_path / "run.toml", ("--set", "mixed_precision=bf16")
    assert "bf16-on-old-card" in checked(path, capsys, *bf16, "--gpu_arch", "sm_75")[1]
    assert "bf16-on-old-card" not in checked(path, capsys, *bf16, "--gpu_arch", "8.6")[1]
    assert main(["check", str(path), "--gpu_arch", "fast"]) == 2
    assert "8.6" in capsys.readouterr().err


def test_every_way_to_fit_is_printed_as_flags(tmp_path, capsys):
    """Those of the error, each with its cost; pasted behind the command, any of them mends it."""
    path, card = tmp_path / "run.toml", ("--gpu_memory_gib", "12")
    heavy = ("--set", "use_ema=true", "--set", "train_batch_size=4", "--set", "resolution=512,512")
    path.write_text(
        f"pretrained_model_name_or_path = 'runwayml/stable-diffusion-v1-5'\ntrain_data_dir = '{pictures()}'\n"
        "output_dir = 'out'\n"
    )

    code, found = checked(path, capsys, *heavy, *card)
    assert (code, found["memory"]["severity"]) == (2, "error")
    ways = found["memory"]["ways"]
    assert len(ways) > 2
    assert max(len(way["set"]) for way in ways) > min(len(way["set"]) for way in ways)
    main(["check", str(path), *heavy, *card])
    lines = [line.split() for line in capsys.readouterr().err.splitlines() if line.lstrip().startswith("--set")]
    for way, line in zip(ways, lines[: len(ways)], strict=True):
        assert len(line) == 2 * len(way["set"])
        assert "needed" in way["cost"]
        _, mended = checked(path, capsys, *heavy, *line, *card)
        assert mended.get("memory", {"severity": "none"})["severity"] != "error"


def test_a_plan_knows_the_time_after_a_run_of_its_kind(tmp_path, capsys):
    """Measured by the run itself, for its buckets and batch sizes; other kinds say why there is no answer."""
    go(tmp_path, max_train_steps=6)
    path = tmp_path / "run.toml"
    loaded = load_run(path)

    main(["plan", str(path), "--json", "--set", "output_dir=other", "--set", "max_train_steps=4000"])
    known = json.loads(capsys.readouterr().out)
    main(["plan", str(path), "--json", "--set", "output_dir=other", "--set", "use_ema=true"])
    unknown = json.loads(capsys.readouterr().out)

    assert 4000 * 0.001 < known["seconds"] < 4000 * 60
    assert "measured on" in known["seconds_reason"]
    assert unknown["seconds"] is None
    assert "no run with" in unknown["seconds_reason"]
    (key,) = json.loads((cache_dir_for(loaded) / "speed.json").read_text())
    assert key.startswith(device_name())


def step(number, bucket, images, seconds):
    return Step(
        step=number, loss=1.0, learning_rate=1.0, grad_norm=1.0, images=images, seconds=seconds, wait_seconds=0.0,
        bucket=bucket, peak_memory_bytes=0, epoch=1,
    )  # fmt: skip


def test_speed_is_the_median_without_the_first_steps_and_grows_with_pixels(tmp_path):
    """Kept across runs; a bucket that was never seen is placed by its pixels."""
    log = SpeedLog(cache_dir=tmp_path, key="k")
    for number, seconds in enumerate([9.0, 9.0, 1.0, 1.0, 5.0]):
        log.emit(step(number, (64, 64), 2, seconds))
    log.emit(step(6, (64, 64), 4, 2.0))
    log.emit(Saved(step=6, path="a", bytes=1, seconds=3.0, epoch=1))
    log.emit(Finished(step=6, path="a", seconds=1.0, loss=1.0))
    log.close()

    speed = known_speed(tmp_path, "k")
    assert (speed.step((64, 64), 2), speed.step((64, 64), 4), speed.save) == (1.0, 2.0, 3.0)
    assert speed.step((64, 128), 3) == pytest.approx(3.0)
    SpeedLog(cache_dir=tmp_path, key="k").close()
    assert known_speed(tmp_path, "k") == speed
    (tmp_path / "speed.json").write_text('{"k": 5}')
    assert known_speed(tmp_path, "k") is None


def test_the_key_names_what_decides_the_speed():
    """Other settings share it."""
    settings = Settings()
    key = key_of(settings, None, "card")
    assert key == key_of(settings.replace(learning_rate=1e-4), None, "card")
    assert key != key_of(settings.replace(mixed_precision="bf16"), None, "card")

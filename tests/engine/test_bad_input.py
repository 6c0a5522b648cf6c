"""Bad input of every kind: exit 2, one sentence that names the file and the remedy, and nothing changed."""

import hashlib
import json
import pickle
import shutil
import struct
import zlib

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from engine.cli import main

from .run_support import Run, tiny_model, write_pictures, write_run


def tree(folder):
    """Return every file under a folder with a hash of its bytes, and every folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
        if "cache" not in path.relative_to(folder).parts[:1]
    }


@pytest.fixture
def case(tmp_path):
    """A folder with a good run.toml, dataset.toml and pictures of its own."""
    write_pictures(tmp_path / "pictures")
    write_run(tmp_path, pictures=tmp_path / "pictures", model=tiny_model())
    return tmp_path


def refused(case, capsys, *named, words=None):
    """Train, and check that it was refused in a sentence that names all of `named`, with nothing changed."""
    before = tree(case)

    code = main(words or ["train", str(case / "run.toml")])

    shown = capsys.readouterr()
    assert code == 2, shown.err
    assert shown.out == ""
    assert "Traceback" not in shown.err
    assert "internal error" not in shown.err
    last = shown.err.strip().splitlines()[-1]  # Lines before it tell of progress or of other errors.
    assert all(name in last for name in named), last
    assert tree(case) == before
    return shown.err


def with_model(case, path):
    write_run(case, pictures=case / "pictures", model=path)


def test_a_missing_model(case, capsys):
    """The path as given, and what to do."""
    with_model(case, case / "none.safetensors")

    refused(case, capsys, "none.safetensors", "check the path")


def test_a_lora_is_no_model(case, capsys):
    """Said by its kind."""
    path = case / "style.safetensors"
    stem = "lora_unet_down_blocks_0_attentions_0_proj_in"
    save_file({f"{stem}.lora_down.weight": torch.zeros(4, 16), f"{stem}.lora_up.weight": torch.zeros(16, 4)}, path)
    with_model(case, path)

    refused(case, capsys, "style.safetensors", "LoRA")


def test_sdxl_is_no_sd_1(case, capsys):
    """Said by its kind."""
    path = case / "xl.safetensors"
    names = [
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
        "model.diffusion_model.label_emb.0.0.weight",
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
        "first_stage_model.encoder.conv_in.weight",
    ]
    save_file({name: torch.zeros(8, 2048) for name in names}, path)
    with_model(case, path)

    refused(case, capsys, "xl.safetensors", "XL")


def test_a_truncated_safetensors(case, capsys):
    """A download that broke off."""
    path = case / "cut.safetensors"
    assert main(["convert", str(tiny_model()), str(path)]) == 0
    capsys.readouterr()
    path.write_bytes(path.read_bytes()[:-1000])
    with_model(case, path)

    refused(case, capsys, "cut.safetensors", "again")


class Evil:
    """Runs code when it is unpickled by a careless reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_with_code_is_never_run(case, capsys):
    """What it would call is named."""
    path = case / "evil.ckpt"
    torch.save({"state_dict": {}, "extra": Evil(case / "ran")}, path)
    with_model(case, path)

    refused(case, capsys, "evil.ckpt", "open")
    assert not (case / "ran").exists()


def test_a_bare_pickle_with_code_is_never_run(case, capsys):
    """Without a zip around it."""
    path = case / "evil.ckpt"
    path.write_bytes(pickle.dumps(Evil(case / "ran")))
    with_model(case, path)

    refused(case, capsys, "evil.ckpt")
    assert not (case / "ran").exists()


def test_a_missing_vae(case, capsys):
    """Named like the model."""
    write_run(case, pictures=case / "pictures", model=tiny_model(), vae=str(case / "none.vae.pt"))

    refused(case, capsys, "none.vae.pt")


def huge_png():
    """Return a valid header of a picture of 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


@pytest.mark.parametrize(
    ("data", "word"),
    [(b"", "empty"), (b"not a picture", ""), (huge_png(), "pixels")],
    ids=["zero-byte", "corrupt", "huge"],
)
def test_a_picture_that_can_not_be_one(case, capsys, data, word):
    """Found by the scan."""
    (case / "pictures" / "bad.png").write_bytes(data)

    shown = refused(case, capsys, "bad.png", word)

    assert "warning:" not in shown


def truncated_jpeg(case):
    path = case / "pictures" / "cut.jpg"
    Image.open(case / "pictures" / "0.png").resize((256, 256)).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:-4000])


def test_a_truncated_jpeg_is_found_before_the_first_step(case, capsys):
    """While its latents are cached."""
    truncated_jpeg(case)

    refused(case, capsys, "cut.jpg")


def test_a_truncated_jpeg_that_is_not_cached_fails_the_run(case, capsys):
    """Exit 1: its header is whole, so only the step that needs it finds it."""
    truncated_jpeg(case)
    write_run(case, pictures=case / "pictures", model=tiny_model(), cache_latents=False, max_train_epochs=1)
    before = tree(case / "pictures")

    code = main(["train", str(case / "run.toml")])

    run = Run(code, case / "out")
    assert code == 1
    assert run.events[-1].kind == "failed"
    assert "cut.jpg" in run.events[-1].message
    assert "Traceback" not in capsys.readouterr().err
    assert tree(case / "pictures") == before


def test_a_caption_in_another_encoding(case, capsys):
    """Latin-1 is no UTF-8, and is not guessed."""
    (case / "pictures" / "0.caption").write_bytes("caf\xe9".encode("latin-1"))

    refused(case, capsys, "0.caption", "UTF-8")


def test_unknown_keys_and_wrong_types_are_named_together(case, capsys):
    """With file, line, and the nearest key."""
    with (case / "run.toml").open("a") as file:
        file.write('learning_rat = 1e-5\nseed = "one"\n')
    lines = (case / "run.toml").read_text().splitlines()

    shown = refused(case, capsys)

    assert f"run.toml:{len(lines) - 1}: learning_rat is not a setting; did you mean 'learning_rate'?" in shown
    assert f"run.toml:{len(lines)}: seed = 'one'" in shown


def test_toml_that_is_none(case, capsys):
    """The line is named."""
    (case / "run.toml").write_text("seed = 1\nseed = \n")

    refused(case, capsys, "run.toml", "2")


def test_a_missing_run_file(case, capsys):
    """As any other."""
    refused(case, capsys, "none.toml", words=["train", str(case / "none.toml")])


def test_an_empty_data_set(case, capsys):
    """A folder without pictures."""
    shutil.rmtree(case / "pictures")
    (case / "pictures").mkdir()

    refused(case, capsys, str(case / "pictures"))


def test_a_missing_folder_of_pictures(case, capsys):
    """Named with its dataset.toml."""
    shutil.rmtree(case / "pictures")

    refused(case, capsys, "pictures")


def test_errors_of_the_data_set_file(case, capsys):
    """With file and line."""
    path = case / "dataset.toml"
    path.write_text(path.read_text() + "shufle_caption = true\n")

    refused(case, capsys, "dataset.toml", "shufle_caption", "did you mean 'shuffle_caption'")


def test_a_missing_data_set_file(case, capsys):
    """As any other."""
    (case / "dataset.toml").unlink()

    refused(case, capsys, "dataset.toml")


def test_metadata_that_is_no_json(case, capsys):
    """For `in_json`."""
    (case / "meta.json").write_text('{"a": ')
    values = {"in_json": "meta.json", "train_data_dir": "pictures", "dataset_config": None}
    write_run(case, pictures=case / "pictures", model=tiny_model(), **values)

    refused(case, capsys, "meta.json")


def test_an_output_folder_that_can_not_be_made(case, capsys):
    """A file in the way stands for every reason."""
    (case / "out").write_text("mine")

    refused(case, capsys, "out", "choose")


def test_missing_prompts(case, capsys):
    """Before anything is loaded."""
    write_run(case, pictures=case / "pictures", model=tiny_model(), sample_prompts="none.txt", sample_at_first=True)

    refused(case, capsys, "none.txt")


def test_contradictory_settings(case, capsys):
    """Named with the line they stand in."""
    with (case / "run.toml").open("a") as file:
        file.write("adaptive_noise_scale = 0.1\n")

    refused(case, capsys, "run.toml:", "adaptive_noise_scale", "set noise_offset")


def test_optimizer_arguments_that_it_has_not(case, capsys):
    """Found before anything is encoded."""
    write_run(case, pictures=case / "pictures", model=tiny_model(), optimizer_args=["weight_decai=1"])

    shown = refused(case, capsys, "weight_decai", "did you mean 'weight_decay'")

    assert "encoding" not in shown


def test_a_model_that_is_not_what_it_is_said_to_be(case, capsys):
    """`v2` for an SD 1.x file."""
    write_run(case, pictures=case / "pictures", model=tiny_model(), v2=True)

    refused(case, capsys, "v2 = true")


def test_a_model_with_misshapen_tensors(case, capsys):
    """Its shapes are compared before training."""
    model = case / "model"
    shutil.copytree(tiny_model(), model)
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["mid_block.resnets.0.conv1.weight"] = torch.zeros(3, 3)
    save_file(tensors, path)
    with_model(case, model)

    refused(case, capsys, "mid_block.resnets.0.conv1.weight")


def test_control_characters_in_names_are_shown_not_sent(case, capsys):
    """A file name can't move the cursor of a terminal."""
    with_model(case, case / "a\x1b[2Jb.safetensors")

    shown = refused(case, capsys, r"\x1b[2J")

    assert "\x1b" not in shown


CLASSIC = ["--resolution=64", "--max_train_steps=2", "--enable_bucket", "--min_bucket_reso=64", "--cache_latents"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--pretrained_model_name_or_path=none.safetensors"], "none.safetensors"),
        (["--learning_rat=1"], "did you mean 'learning_rate'"),
        (["--train_batch_size=two"], "train_batch_size = 'two'"),
        (["--fp8_base"], "fp8_base is refused"),
        (["stray"], "stray belongs to no flag"),
        (["--in_json=none.json"], "none.json"),
        (["--color_aug"], "color_aug"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_classic_flags_are_refused_the_same_way(case, capsys, monkeypatch, words, named):
    """Through `fine_tune`."""
    monkeypatch.chdir(case)
    given = [f"--pretrained_model_name_or_path={tiny_model()}", "--train_data_dir=pictures", "--output_dir=out"]

    refused(case, capsys, named, words=["fine_tune", *given, *words, *CLASSIC])


def test_check_names_every_problem_of_the_files(case, capsys):
    """Model, prompts and folder in one go, as JSON."""
    (case / "out").write_text("mine")
    (case / "pictures" / "bad.png").write_bytes(b"")
    values = {"sample_prompts": "none.txt", "sample_at_first": True}
    write_run(case, pictures=case / "pictures", model=case / "none.ckpt", **values)

    code = main(["check", str(case / "run.toml"), "--json"])

    problems = json.loads(capsys.readouterr().out)
    text = json.dumps([problem for problem in problems if problem["severity"] == "error"])
    assert code == 2
    assert all(name in text for name in ("none.ckpt", "none.txt", "bad.png"))
    assert all(problem.keys() >= {"code", "severity", "where", "message", "fix"} for problem in problems)


def test_the_good_case_is_good(case, capsys):
    """What the table starts from trains, and leaves the pictures alone."""
    before = tree(case / "pictures")

    assert main(["train", str(case / "run.toml")]) == 0

    assert tree(case / "pictures") == before

    capsys.readouterr()

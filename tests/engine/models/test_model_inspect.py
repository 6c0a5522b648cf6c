"""What a file is gets told from names and shapes, without torch, and what is needed instead."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch

from engine.errors import EngineError
from engine.models.convert import convert
from engine.models.inspect import file_sha256, inspect_model
from engine.models.source import open_source
from engine.models.verify import verify

from .models_support import TINY_SD1, fake_model, header_file, write_tensors

UNET = "model.diffusion_model."
COMPLETE = {
    f"{UNET}input_blocks.0.0.weight": (32, 4, 3, 3),
    f"{UNET}input_blocks.1.1.proj_in.weight": (32, 32, 1, 1),
    f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 768),
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": (768,),
    "first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3),
}


def changed(changes):
    return {name: shape for name, shape in {**COMPLETE, **changes}.items() if shape is not None}


@pytest.mark.parametrize(
    ("shapes", "what", "remedy"),
    [
        (
            {"lora_unet_down_blocks_0.lora_down.weight": (4, 8), "lora_unet_down_blocks_0.alpha": ()},
            "a LoRA",
            "changes",
        ),
        ({"unet.up_blocks.0.to_q.lora_A.weight": (4, 8)}, "a LoRA", "changes another model"),
        ({"encoder.conv_in.weight": (8, 3, 3, 3), "decoder.conv_in.weight": (8, 4, 3, 3)}, "a VAE alone", "--vae"),
        ({"first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3)}, "a VAE alone", "--vae"),
        ({"emb_params": (1, 768)}, "a textual inversion embedding", "SD 1.x or 2.x model"),
        ({"text_model.final_layer_norm.bias": (8,)}, "a text encoder alone", "SD 1.x or 2.x model"),
        ({"down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)}, "a UNet alone", "diffusers folder"),
        ({"control_model.input_blocks.0.0.weight": (8, 4, 3, 3)}, "a ControlNet", "SD 1.x or 2.x model"),
        ({"conditioner.embedders.0.model.x": (1,), f"{UNET}out.0.bias": (1,)}, "XL refiner", "SD 1.x or 2.x model"),
        (
            {"conditioner.embedders.0.x": (1,), "conditioner.embedders.1.x": (1,)},
            "Stable Diffusion XL",
            "can't be trained",
        ),
        ({"model.diffusion_model.joint_blocks.0.x": (1,)}, "Stable Diffusion 3 or Flux", "SD 1.x or 2.x model"),
        ({"double_blocks.0.img_attn.qkv.weight": (1,)}, "Stable Diffusion 3 or Flux", "SD 1.x or 2.x model"),
        (changed({f"{UNET}input_blocks.0.0.weight": (32, 9, 3, 3)}), "an inpainting model", "SD 1.x or 2.x model"),
        (changed({f"{UNET}input_blocks.0.0.weight": (32, 8, 3, 3)}), "instruction-following", "SD 1.x or 2.x model"),
        (changed({f"{UNET}input_blocks.0.0.weight": (32, 6, 3, 3)}), "6 input channels", "SD 1.x or 2.x model"),
        (changed({"first_stage_model.encoder.conv_in.weight": None}), "without vae", "name one with --vae"),
        (
            changed({"cond_stage_model.transformer.text_model.final_layer_norm.bias": None}),
            "without text encoder",
            "complete model",
        ),
        ({"fc.weight": (3, 3)}, "no image model that is known", "SD 1.x or 2.x model"),
    ],
)
def test_other_kinds_of_file_are_named_and_refused_for_training(tmp_path, shapes, what, remedy):
    """It says what the file is and what is needed; convert and load refuse, verify reports."""
    path = fake_model(tmp_path / "x.safetensors", shapes)
    info = inspect_model(path)

    assert what in info.what
    assert remedy in info.obstacle
    with pytest.raises(EngineError, match=r"x\.safetensors: is (an?|no) "):
        info.require_trainable()
    with pytest.raises(EngineError, match=r"x\.safetensors"):
        convert(path, tmp_path / "out")
    assert not verify(path).ok
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("width", [768, 1024])
def test_pickled_embeddings_and_hypernetworks_are_named(tmp_path, width):
    """They come as .pt files with keys of their own."""
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(1, width)}}, tmp_path / "e.pt")
    torch.save({width: ({"linear.0.bias": torch.ones(1)}, {}), "step": 5}, tmp_path / "h.pt")

    assert inspect_model(tmp_path / "e.pt").what == "a textual inversion embedding"
    assert inspect_model(tmp_path / "h.pt").what == "a hypernetwork"


@pytest.mark.parametrize(
    ("changes", "family", "prediction"),
    [
        ({}, "sd1", "epsilon"),
        ({"cond_stage_model.transformer.text_model.final_layer_norm.bias": None,
          "cond_stage_model.model.ln_final.bias": (1024,)}, "sd2", None),
        ({"cond_stage_model.transformer.text_model.final_layer_norm.bias": None,
          f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 1024)}, "sd2", None),
        ({"cond_stage_model.transformer.text_model.final_layer_norm.bias": None,
          f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 16),
          f"{UNET}input_blocks.1.1.proj_in.weight": (32, 32)}, "sd2", None),
        ({f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 16)}, "sd1", "epsilon"),
        ({f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 2048)}, "sdxl", None),
    ],
)  # fmt: skip
def test_the_family_follows_from_the_text_encoder_then_from_shapes(tmp_path, changes, family, prediction):
    """SD 1.x predicts noise unless it says otherwise; what a bare SD 2.x file predicts is not known."""
    info = inspect_model(fake_model(tmp_path / "x.safetensors", changed(changes)))

    assert family == info.family
    assert prediction == info.prediction_type


@pytest.mark.parametrize(
    ("metadata", "prediction"),
    [
        ({"modelspec.prediction_type": "v"}, "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, "epsilon"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction"),
        ({"sdtui.config": json.dumps({"scheduler": {"prediction_type": "v_prediction"}})}, "v_prediction"),
        ({"modelspec.prediction_type": "nonsense"}, None),
        ({"sdtui.config": json.dumps({"scheduler": {"prediction_type": ["v"]}})}, None),
    ],
)
def test_the_prediction_type_is_found_in_what_the_file_says(tmp_path, metadata, prediction):
    """Never guessed."""
    shapes = changed({"cond_stage_model.transformer.text_model.final_layer_norm.bias": None,
                      "cond_stage_model.model.ln_final.bias": (1024,)})  # fmt: skip
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}

    assert inspect_model(write_tensors(tmp_path / "x.safetensors", tensors, metadata)).prediction_type == prediction


def test_a_yaml_beside_an_sd2_file_tells_that_it_predicts_v(tmp_path):
    """Other programs want one there for 768-v models."""
    shapes = changed({f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 1024),
                      "cond_stage_model.transformer.text_model.final_layer_norm.bias": None})  # fmt: skip
    path = fake_model(tmp_path / "x.safetensors", shapes)
    (tmp_path / "x.yaml").write_text('model:\n  params:\n    parameterization: "v"\n')

    assert inspect_model(path).prediction_type == "v_prediction"


def test_a_folder_is_described(tiny_sd2):
    """Counts, precision and parts of a diffusers folder of each family."""
    sd1, sd2 = inspect_model(TINY_SD1), inspect_model(tiny_sd2)

    assert (sd1.family, sd1.layout, sd1.prediction_type) == ("sd1", "diffusers", "epsilon")
    assert (sd2.family, sd2.layout, sd2.prediction_type) == ("sd2", "diffusers", "v_prediction")
    assert sd1.precision == "fp16"
    assert sd1.dtypes == {"F16": 996}
    assert sd1.parameters == {"unet": 2424260, "text_encoder": 802800, "vae": 1067079}
    assert sd1.holds == ("unet", "text_encoder", "vae")
    assert sd1.num_bytes == sum(file.stat().st_size for file in TINY_SD1.rglob("*.safetensors"))


def test_what_else_a_file_holds_is_told(tmp_path):
    """EMA weights and position_ids of the wrong type deserve a word."""
    extra = {"model_ema.decay": (), "cond_stage_model.transformer.text_model.embeddings.position_ids": (1, 77)}
    info = inspect_model(fake_model(tmp_path / "x.safetensors", changed(extra)))

    assert info.holds == ("unet", "text_encoder", "vae", "ema", "extra")
    assert any("EMA" in warning for warning in info.warnings)
    assert any("position_ids" in warning for warning in info.warnings)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"<!DOCTYPE html><html>not found</html>", "neither .safetensors nor a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n", "git lfs pull"),
        (b"PK\x03\x04 and then nothing", "refused"),
    ],
)
@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt"])
def test_files_that_hold_no_tensors_are_refused(tmp_path, content, words, name):
    """Failed downloads of every kind."""
    (tmp_path / name).write_bytes(content)

    with pytest.raises(EngineError, match=words) as caught:
        inspect_model(tmp_path / name)
    assert name in str(caught.value)


def test_a_file_is_known_by_its_content_not_by_its_name(tmp_path):
    """A .ckpt renamed, and a header whose length begins with the first byte of a pickle."""
    torch.save({"state_dict": {"emb_params": torch.ones(1)}}, tmp_path / "really_pickle.safetensors")
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({"emb_params": entry}).ljust(0x80).encode()

    assert inspect_model(tmp_path / "really_pickle.safetensors").num_tensors == 1
    assert inspect_model(header_file(tmp_path / "odd.ckpt", header)).num_tensors == 1


def test_missing_paths_and_foreign_folders_are_named(tmp_path):
    """One sentence with the remedy."""
    with pytest.raises(EngineError, match="no such model file or folder"):
        open_source(tmp_path / "nothing")
    with pytest.raises(EngineError, match=r"neither model_index\.json nor a unet folder"):
        open_source(tmp_path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "", None])
def test_shards_outside_the_folder_are_refused(tmp_path, name):
    """A path in a JSON file must stay under its root."""
    (tmp_path / "unet").mkdir()
    index = tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.bias": name}}))
    if name is None:
        index.write_text("{}")

    with pytest.raises(EngineError, match="outside its folder"):
        open_source(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "{", "nonsense", "[" * 100_000, "{" + " " * 1_000_001 + "}"])
def test_configs_that_are_no_tables_are_refused(tmp_path, text):
    """In folders and in metadata alike."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(text)
    path = write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1)}, {"sdtui.config": text})

    for broken in (tmp_path, path):
        with pytest.raises(EngineError, match="its config is not a JSON table"):
            open_source(broken)


def test_a_checksum_reports_its_progress(tmp_path):
    """For gigabytes, a bar."""
    (tmp_path / "x").write_bytes(b"abc" * 3_000_000)
    heard = []
    found = file_sha256(tmp_path / "x", lambda done, total: heard.append((done, total)))

    assert hashlib.sha256(b"abc" * 3_000_000).hexdigest() == found
    assert heard[-1] == (9_000_000, 9_000_000)
    with pytest.raises(EngineError, match="can't be read"):
        file_sha256(tmp_path / "missing")


def test_inspecting_loads_no_torch(tmp_path):
    """The wizard shows a model before torch is there, .ckpt files among them."""
    torch.save({"state_dict": {"emb_params": torch.ones(1)}}, tmp_path / "x.ckpt")
    code = (
        "import sys, pathlib, engine.models, engine.models.metadata, engine.models.hub, engine.models.saving\n"
        "from engine.models.inspect import inspect_model\n"
        f"for path in {[str(TINY_SD1), str(tmp_path / 'x.ckpt')]!r}: inspect_model(pathlib.Path(path))\n"
        "sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Stable Diffusion 1.x and 2.x are saved in every form, with nothing lost."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file

from engine.errors import EngineError
from engine.models.safetensors_io import open_safetensors
from engine.models.sd import StableDiffusion
from engine.models.source import open_source
from engine.models.verify import verify

from .models_support import TINY_SD1, output_of, probe, shared_model, single_file, target

FORMATS = ["safetensors", "ckpt", "diffusers", "diffusers_safetensors"]


@pytest.fixture(params=["sd1", "sd2"])
def tiny(request, tiny_sd2):
    return TINY_SD1 if request.param == "sd1" else tiny_sd2


@pytest.mark.parametrize(
    ("save_model_as", "precision"), [*((name, None) for name in FORMATS), ("ckpt", "float"), ("diffusers", "bf16")]
)
def test_every_format_comes_back_as_the_same_model(tmp_path, tiny, save_model_as, precision):
    """Family, prediction type, heads and output survive."""
    model = shared_model(tiny)
    path = target(tmp_path, save_model_as)
    model.save(path, save_model_as, save_precision=precision)
    again = StableDiffusion.load(str(path))

    assert verify(path).ok
    assert (model.family, model.prediction_type) == (again.family, again.prediction_type)
    assert again.configs["text_encoder"]["num_attention_heads"] == 4
    assert again.tokenizer.pad == (0 if model.v2 else 49407)
    tolerance = 0.05 if precision == "bf16" else 0  # The values of the tiny model are exact in fp16.
    assert torch.allclose(output_of(model), output_of(again), rtol=0, atol=tolerance)
    text_ids = torch.arange(77)[None]
    with torch.no_grad():
        difference = model.text_encoder(text_ids)[0] - again.text_encoder(text_ids)[0]
    assert difference.abs().max() <= tolerance


@pytest.mark.parametrize("save_model_as", FORMATS)
def test_diffusers_opens_what_was_saved_offline(tmp_path, tiny, save_model_as):
    """StableDiffusionPipeline, from a single file or a folder, gives our UNet's output to 1e-5."""
    from diffusers import StableDiffusionPipeline

    model = shared_model(tiny)
    path = target(tmp_path, save_model_as)
    model.save(path, save_model_as, save_precision="float")
    if path.is_dir():
        pipeline = StableDiffusionPipeline.from_pretrained(path, local_files_only=True)
    else:
        model.save(tmp_path / "config", "diffusers_safetensors")
        pipeline = StableDiffusionPipeline.from_single_file(str(path), config=str(tmp_path / "config"))
    with torch.no_grad():
        theirs = pipeline.unet(*probe()).sample
        text_ids = torch.arange(77)[None]
        text = pipeline.text_encoder(text_ids)[0] - model.text_encoder(text_ids)[0]

    assert (theirs - output_of(model)).abs().max() <= 1e-5
    assert text.abs().max() <= 1e-5
    assert pipeline.scheduler.config.prediction_type == model.prediction_type
    assert pipeline.tokenizer.pad_token_id == model.tokenizer.pad


def test_an_sd2_single_file_becomes_a_correct_folder(tmp_path, tiny_sd2):
    """Projections of 2.x stay matrices, and the config says so (sd-scripts mixes the two up)."""
    shared_model(tiny_sd2).save(tmp_path / "x.ckpt", "ckpt")
    StableDiffusion.load(str(tmp_path / "x.ckpt")).save(tmp_path / "folder", "diffusers_safetensors")
    config = json.loads((tmp_path / "folder" / "unet" / "config.json").read_text())
    weights = load_file(tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors")

    assert config["use_linear_projection"] is True
    assert weights["mid_block.attentions.0.proj_in.weight"].shape == (64, 64)
    assert config["upcast_attention"] is True  # 2.1 768-v overflows in fp16 without
    assert (tmp_path / "folder" / "text_encoder" / "config.json").exists()
    assert all(name.startswith("text_model.") for name in load_file(tmp_path / "folder/text_encoder/model.safetensors"))


EXTRA = {
    "model_ema.diffusion_modelout2bias": torch.full((4,), 0.5, dtype=torch.bfloat16),
    "model_ema.decay": torch.tensor(0.999),
    "alphas_cumprod": torch.linspace(1, 0, 7, dtype=torch.float64),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77.0).half()[None],
    "poisoned_by_others": torch.tensor([float("nan")]),
}


@pytest.mark.parametrize("save_model_as", ["safetensors", "ckpt"])
def test_a_single_file_keeps_what_its_source_had_besides(tmp_path, save_model_as):
    """EMA, buffers and unknown keys, in their own types whatever save_precision; position_ids become int64."""
    model = StableDiffusion.load(str(single_file(tmp_path, TINY_SD1, EXTRA)))
    model.save(target(tmp_path, save_model_as), save_model_as, save_precision="float")
    saved = open_source(target(tmp_path, save_model_as)).parts["other"]

    assert EXTRA.keys() == saved.keys()
    ids = saved.pop("cond_stage_model.transformer.text_model.embeddings.position_ids")
    assert ids.dtype == "I64"
    assert torch.equal(ids.tensor(), torch.arange(77)[None])
    for name, tensor in saved.items():
        assert torch.equal(tensor.tensor(), EXTRA[name]) or name == "poisoned_by_others"
        assert tensor.tensor().dtype == EXTRA[name].dtype


def test_the_24th_block_of_sd2_comes_from_the_source(tmp_path, tiny_sd2):
    """Also its text_projection and logit_scale, which nothing here uses."""
    extra = {
        "cond_stage_model.model.transformer.resblocks.23.ln_1.bias": torch.full((16,), 3.0),
        "cond_stage_model.model.logit_scale": torch.tensor(4.6),
    }
    model = StableDiffusion.load(str(single_file(tmp_path, tiny_sd2, extra)))
    model.save(tmp_path / "saved.safetensors", "safetensors", save_precision="fp16")
    saved = load_file(tmp_path / "saved.safetensors")

    for name, tensor in extra.items():
        assert torch.equal(saved[name], tensor)


def test_frozen_parts_are_written_as_the_source_had_them(tmp_path):
    """Rounding the frozen text encoder and VAE in memory does not reach the saved file; trained weights do."""
    source = single_file(tmp_path, TINY_SD1, precision="float")
    model = StableDiffusion.load(str(source))
    before = load_file(source)
    model.text_encoder.to(torch.bfloat16)
    model.vae.to(torch.bfloat16)
    with torch.no_grad():
        model.unet.conv_out.bias.add_(0.25)
    model.save(tmp_path / "saved.safetensors", "safetensors")
    after = load_file(tmp_path / "saved.safetensors")

    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"model.diffusion_model.out.2.bias"}
    assert torch.equal(before[changed.pop()] + 0.25, after["model.diffusion_model.out.2.bias"])


def test_a_trained_text_encoder_is_written_from_memory(tmp_path):
    """Whatever requires gradients counts as trained."""
    model = StableDiffusion.load(str(TINY_SD1))
    model.text_encoder.requires_grad_(requires_grad=True)
    with torch.no_grad():
        model.text_encoder.state_dict()[next(n for n in model.text_encoder.state_dict() if "final" in n)].fill_(0.5)
    model.save(tmp_path / "x.safetensors", "safetensors")

    key = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
    assert set(load_file(tmp_path / "x.safetensors")[key].tolist()) == {0.5}


def test_averaged_weights_can_be_written_instead(tmp_path):
    """EMA: given by part and name, the module itself untouched."""
    model = StableDiffusion.load(str(TINY_SD1))
    weights = {"unet": {"conv_out.bias": torch.full((4,), 9.0)}}
    model.save(tmp_path / "x.safetensors", "safetensors", weights=weights)

    assert load_file(tmp_path / "x.safetensors")["model.diffusion_model.out.2.bias"].tolist() == [9.0] * 4
    assert model.unet.conv_out.bias[0] != 9


def test_a_ckpt_counts_on_from_its_source(tmp_path):
    """epoch and global_step are added to those of the file that training started from, as sd-scripts does."""
    shared_model(TINY_SD1).save(tmp_path / "a.ckpt", "ckpt", counts=(2, 30))
    StableDiffusion.load(str(tmp_path / "a.ckpt")).save(tmp_path / "b.ckpt", "ckpt", counts=(1, 5))
    loaded = torch.load(tmp_path / "b.ckpt", weights_only=True)

    assert (loaded["epoch"], loaded["global_step"]) == (3, 35)


def test_metadata_is_written_and_usual_models_need_no_config(tmp_path):
    """What was given stands in the header; our own entry holds only what shapes don't tell."""
    shared_model(TINY_SD1).save(tmp_path / "x.safetensors", "safetensors", metadata={"a": "b"})
    metadata = open_safetensors(tmp_path / "x.safetensors").metadata

    assert json.loads(metadata.pop("sdtui.config")) == {"text_encoder": {"num_attention_heads": 4}}
    assert metadata == {"a": "b"}


@pytest.mark.parametrize("save_model_as", FORMATS)
def test_a_poisoned_model_is_never_saved(tmp_path, save_model_as):
    """NaN in a weight: the message names it, and the good save of before is untouched."""
    model = StableDiffusion.load(str(TINY_SD1))
    path = target(tmp_path, save_model_as)
    model.save(path, save_model_as)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with torch.no_grad():
        model.unet.conv_out.bias[1] = float("nan")

    with pytest.raises(EngineError, match="holds NaN or infinite"):
        model.save(path, save_model_as)
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("save_model_as", FORMATS)
def test_saving_over_an_older_save_replaces_it(tmp_path, save_model_as):
    """Also where it is the very source that is mapped."""
    path = target(tmp_path, save_model_as)
    shared_model(TINY_SD1).save(path, save_model_as)
    model = StableDiffusion.load(str(path))
    with torch.no_grad():
        model.unet.conv_out.bias.fill_(0.5)
    model.save(path, save_model_as)
    model.save(path, save_model_as)

    assert StableDiffusion.load(str(path)).unet.conv_out.bias.tolist() == [0.5] * 4
    assert [path] == list(tmp_path.iterdir())


def test_a_source_changed_in_place_is_not_read_any_more(tmp_path, caplog):
    """Its bytes mean something else; the model is saved from memory, and the log says what is missing."""
    source = single_file(tmp_path, TINY_SD1, EXTRA)
    model = StableDiffusion.load(str(source))
    with source.open("r+b") as file:
        file.seek(-8, 2)
        file.write(b"\xff" * 8)
        file.flush()
    source.touch()
    with caplog.at_level(logging.WARNING):
        model.save(tmp_path / "saved.safetensors", "safetensors", save_precision="float")

    assert "was changed since training began" in caplog.text
    assert verify(tmp_path / "saved.safetensors").ok
    assert open_source(tmp_path / "saved.safetensors").parts["other"] == {}


def test_a_source_that_was_deleted_can_still_be_read(tmp_path):
    """It is mapped; nothing is lost."""
    source = single_file(tmp_path, TINY_SD1, EXTRA)
    model = StableDiffusion.load(str(source))
    source.unlink()
    model.save(tmp_path / "saved.safetensors", "safetensors")

    assert open_source(tmp_path / "saved.safetensors").parts["other"].keys() == EXTRA.keys()


def test_an_unknown_format_is_refused(tmp_path):
    """With the choices."""
    with pytest.raises(EngineError, match="choose one of ckpt, safetensors"):
        shared_model(TINY_SD1).save(tmp_path / "x", "gguf")

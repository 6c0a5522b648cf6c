"""Stable Diffusion 1.x and 2.x load from every form, and what is wrong with a file is told."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from engine.errors import EngineError
from engine.models import FAMILIES
from engine.models.inspect import inspect_model
from engine.models.modules import expected_shapes, loaded_module
from engine.models.safetensors_io import open_safetensors
from engine.models.sd import StableDiffusion
from engine.models.source import open_source
from engine.models.verify import verify

from .models_support import TINY_SD1, output_of, shared_model, single_file, target, write_tensors


def test_float_weights_stay_mapped(tmp_path):
    """A float32 file is not copied: the module's weights are the file's pages."""
    source = single_file(tmp_path, TINY_SD1, precision="float")
    model = StableDiffusion.load(str(source))
    raw = model.source.parts["unet"]["conv_in.weight"].tensor()

    assert raw.data_ptr() == model.unet.conv_in.weight.data_ptr()
    assert all(not tensor.is_meta for tensor in model.text_encoder.buffers())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_take_the_precision_that_is_asked_for(dtype):
    """Converted one by one."""
    model = StableDiffusion.load(str(TINY_SD1), dtype=dtype)

    assert {parameter.dtype for parameter in model.unet.parameters()} == {dtype}


def test_only_the_unet_is_to_be_trained_at_first():
    """The text encoder is frozen unless asked for, the VAE always."""
    model = shared_model(TINY_SD1)

    assert all(parameter.requires_grad for parameter in model.unet.parameters())
    assert not any(p.requires_grad for module in (model.text_encoder, model.vae) for p in module.parameters())


def test_pictures_become_latents():
    """A distribution of unscaled latents, an eighth of the size."""
    model = shared_model(TINY_SD1)
    pixels = torch.randint(0, 256, (2, 32, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    mean, std = model.encode_images(pixels)
    posterior = model.vae.encode(pixels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist

    assert mean.shape == std.shape == (2, 4, 4, 8)
    assert torch.equal(mean, posterior.mean)
    assert torch.equal(std, posterior.std)
    assert model.latent_scale == 0.18215


def test_old_checkpoints_load(tmp_path):
    """No text_model. in the names, position_ids in float, a Lightning-style .ckpt without metadata."""
    model = shared_model(TINY_SD1)
    model.save(tmp_path / "new.safetensors", "safetensors", save_precision="fp16")
    old = {name.replace(".text_model.", "."): t for name, t in load_file(tmp_path / "new.safetensors").items()}
    old["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(77.0)[None]
    torch.save({"state_dict": old, "global_step": 470000}, tmp_path / "old.ckpt")

    assert torch.equal(output_of(StableDiffusion.load(str(tmp_path / "old.ckpt"))), output_of(model))


def test_both_layouts_of_clip_text_model_are_filled(tmp_path):
    """transformers before 5.6 has the weights one level deeper."""

    class Nested(nn.Module):
        def __init__(self, flat):
            super().__init__()
            self.text_model = flat

    tensors = open_source(TINY_SD1).parts["text_encoder"]
    model = shared_model(TINY_SD1)
    flat = loaded_module("text_encoder", model.configs["text_encoder"], tensors, torch.float32)

    assert expected_shapes("text_encoder", flat) == expected_shapes("text_encoder", Nested(flat))
    assert tensors.keys() == expected_shapes("text_encoder", flat).keys()


def test_a_folder_in_the_flat_layout_loads(tmp_path):
    """transformers of today writes text encoders without text_model. in their names."""
    shutil.copytree(TINY_SD1, tmp_path / "flat")
    path = tmp_path / "flat" / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    write_tensors(path, {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()})

    assert verify(tmp_path / "flat").ok


def test_sharded_and_fp16_variants_of_folders_load(tmp_path):
    """As hub downloads come."""
    folder = tmp_path / "sharded"
    shutil.copytree(TINY_SD1, folder)
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    shards = {"a.safetensors": names[:100], "b.safetensors": names[100:]}
    for shard, held in shards.items():
        write_tensors(folder / "unet" / shard, {name: tensors[name] for name in held})
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    whole.with_suffix(".safetensors.index.json").write_text(json.dumps(index))
    whole.unlink()
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    vae.rename(vae.with_name("diffusion_pytorch_model.fp16.safetensors"))

    assert verify(folder).ok


@pytest.mark.parametrize("form", ["file", "ckpt", "bare", "folder", "root"])
def test_another_vae_is_taken_from_any_form(tmp_path, form):
    """A whole model, a VAE alone in single-file names, a VAE folder, a model's root."""
    donor = StableDiffusion.load(str(TINY_SD1))
    donor.vae.requires_grad_(requires_grad=True)
    with torch.no_grad():
        donor.vae.quant_conv.bias.fill_(2.0)
    kind = {"file": "safetensors", "ckpt": "ckpt", "bare": "safetensors"}.get(form, "diffusers")
    donor.save(target(tmp_path, kind), kind)
    path = target(tmp_path, kind)
    if form == "bare":
        tensors = {n.removeprefix("first_stage_model."): t for n, t in load_file(path).items() if "first_stage" in n}
        path = write_tensors(tmp_path / "vae.safetensors", tensors)
    path = path / "vae" if form == "folder" else path
    model = StableDiffusion.load(str(TINY_SD1), vae=str(path))
    model.save(tmp_path / "out.safetensors", "safetensors")

    assert set(model.vae.quant_conv.bias.tolist()) == {2.0}
    assert set(load_file(tmp_path / "out.safetensors")["first_stage_model.quant_conv.bias"].tolist()) == {2.0}


def test_a_vae_supplies_what_a_model_lacks(tmp_path):
    """A file without a VAE can be trained once one is named."""
    path = single_file(tmp_path, TINY_SD1)
    tensors = {name: tensor for name, tensor in load_file(path).items() if "first_stage" not in name}
    path = write_tensors(tmp_path / "pruned.safetensors", tensors, open_safetensors(path).metadata)

    with pytest.raises(EngineError, match="without vae: name one with --vae"):
        StableDiffusion.load(str(path))
    assert StableDiffusion.load(str(path), vae=str(TINY_SD1)).family == "sd1"
    with pytest.raises(EngineError, match="holds no VAE"):
        StableDiffusion.load(str(TINY_SD1), vae=str(path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model.diffusion_model.out.2.bias"), "conv_out.bias is missing"),
        (lambda t: t.update({"model.diffusion_model.middle_block.1.extra": torch.ones(1)}), "extra is unexpected"),
        (lambda t: t.update({"model.diffusion_model.out.0.bias": torch.ones(31)}), r"shape \[31\] instead of \[32\]"),
        (lambda t: t.pop("model.diffusion_model.input_blocks.0.0.weight"), "no image model"),
        (lambda t: t.pop("first_stage_model.post_quant_conv.weight"), "post_quant_conv.weight is missing"),
        (lambda t: [t.pop(name) for name in list(t) if ".mlp." in name], "fc1.weight is missing"),
        (lambda t: t.update({"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight":
                             torch.ones(3)}), "a shape is wrong"),
    ],
)  # fmt: skip
def test_incomplete_and_misshapen_models_are_refused(tmp_path, change, words):
    """The message lists what is wrong, and the file is named by load or verify."""
    path = single_file(tmp_path, TINY_SD1)
    tensors = dict(load_file(path))
    change(tensors)
    write_tensors(tmp_path / "bad.safetensors", tensors, open_safetensors(path).metadata)

    with pytest.raises(EngineError, match=words):
        StableDiffusion.load(str(tmp_path / "bad.safetensors"))
    report = verify(tmp_path / "bad.safetensors")
    assert not report.ok


@pytest.mark.parametrize(
    "stated",
    [
        {"unet": {"norm_num_groups": 7}},
        {"unet": {"norm_num_groups": 0}},
        {"unet": {"attention_head_dim": "many"}},
        {"unet": {"act_fn": "os.system"}},
        {"text_encoder": {"num_attention_heads": 5}},
        {"text_encoder": {"hidden_act": "os.system"}},
    ],
)
def test_configs_that_make_no_sense_are_refused(tmp_path, stated):
    """A config is input from outside."""
    path = single_file(tmp_path, TINY_SD1)
    bad = write_tensors(tmp_path / "bad.safetensors", load_file(path), {"sdtui.config": json.dumps(stated)})

    with pytest.raises(EngineError, match="can't be built"):
        StableDiffusion.load(str(bad))


def test_sizes_in_a_config_are_not_believed(tmp_path):
    """The tensors have the say, so a config can't ask for a billion layers."""
    path = single_file(tmp_path, TINY_SD1)
    stated = {"text_encoder": {"num_attention_heads": 4, "num_hidden_layers": 10**9, "hidden_size": 10**9}}
    odd = write_tensors(tmp_path / "odd.safetensors", load_file(path), {"sdtui.config": json.dumps(stated)})

    assert StableDiffusion.load(str(odd)).configs["text_encoder"]["num_hidden_layers"] == 4


def test_the_family_must_be_what_the_user_says(tiny_sd2):
    """v2 is checked, never believed."""
    with pytest.raises(EngineError, match=r"v2 = true, but it is a Stable Diffusion 1\.x model"):
        StableDiffusion.load(str(TINY_SD1), v2=True)
    with pytest.raises(EngineError, match=r"v2 = false, but it is a Stable Diffusion 2\.x model"):
        StableDiffusion.load(str(tiny_sd2), v2=False)
    assert FAMILIES["sd2"](str(tiny_sd2), v2=True).v2


def test_the_prediction_type_is_asked_for_where_nothing_tells(tmp_path, tiny_sd2):
    """An SD 2.x file may be of either type; the user's word counts, and a contradiction is told."""
    path = single_file(tmp_path, tiny_sd2)
    bare = write_tensors(tmp_path / "bare.safetensors", load_file(path))

    assert inspect_model(bare).prediction_type is None
    with pytest.raises(EngineError, match="set v_parameterization = true for a 768-v model, false for a base"):
        StableDiffusion.load(str(bare))
    assert StableDiffusion.load(str(bare), v_parameterization=True).scheduler["prediction_type"] == "v_prediction"
    assert StableDiffusion.load(str(bare), v_parameterization=False).prediction_type == "epsilon"
    contradicted = StableDiffusion.load(str(tiny_sd2), v_parameterization=False)
    assert contradicted.prediction_type == "epsilon"
    assert "v_prediction" in contradicted.warnings[0]
    assert StableDiffusion.load(str(TINY_SD1), v_parameterization=True).prediction_type == "v_prediction"

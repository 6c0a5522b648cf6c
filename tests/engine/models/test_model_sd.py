"""Stable Diffusion 1.x and 2.x load from every form and are saved in every form, with nothing lost."""

import json
import logging
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

from .models_support import TINY_SD1, output_of, probe, shared_model, write_tensors

FORMATS = ["safetensors", "ckpt", "diffusers", "diffusers_safetensors"]


@pytest.fixture(params=["sd1", "sd2"])
def tiny(request, tiny_sd2):
    return TINY_SD1 if request.param == "sd1" else tiny_sd2


def target(folder, save_model_as, stem="saved"):
    return folder / (stem if save_model_as.startswith("diffusers") else f"{stem}.{save_model_as}")


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


def single_file(tmp_path, tiny, extra=None, precision="fp16"):
    """Write a single file with more in it than the model."""
    shared_model(tiny).save(tmp_path / "plain.safetensors", "safetensors", save_precision=precision)
    opened = open_safetensors(tmp_path / "plain.safetensors")
    tensors = {name: tensor.tensor() for name, tensor in opened.tensors.items()}
    return write_tensors(tmp_path / "source.safetensors", {**tensors, **(extra or {})}, opened.metadata)


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


# ---- Loading


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

"""Names and shapes agree with sd-scripts' own, to the last key, and come back unchanged."""

import hashlib
import re

import pytest
import torch

from engine.errors import EngineError
from engine.models.keys import (
    from_single_file,
    normalised_text,
    normalised_vae,
    to_single_file,
    vae_from_any,
    vae_to_file,
)
from engine.models.safetensors_io import open_safetensors

from .models_support import STEMS, TINY_SD1, golden_json


def meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def described(tensors):
    return {name: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for name, tensor in tensors.items()}


def tiny_parts():
    return {part: open_safetensors(TINY_SD1 / part / f"{stem}.safetensors").tensors for part, stem in STEMS.items()}


def text_sd2(layers=23, width=4):
    shapes = {
        "text_model.embeddings.token_embedding.weight": [9, width],
        "text_model.embeddings.position_embedding.weight": [7, width],
        "text_model.final_layer_norm.weight": [width],
        "text_model.final_layer_norm.bias": [width],
    }
    for layer in range(layers):
        root = f"text_model.encoder.layers.{layer}."
        for letter in "kvq":
            shapes |= {f"{root}self_attn.{letter}_proj.weight": [width, width]}
            shapes |= {f"{root}self_attn.{letter}_proj.bias": [width]}
        for name in ("self_attn.out_proj", "layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2"):
            shapes |= {f"{root}{name}.weight": [width, width], f"{root}{name}.bias": [width]}
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_full_size_sd1_has_the_golden_names_shapes_types_and_order():
    """1130 keys, as sd-scripts writes them from a diffusers source."""
    expected = golden_json("ckpt_keys.json")["v1"]
    found = described(to_single_file({part: meta(s) for part, s in expected["diffusers"].items()}, family="sd1"))

    assert expected["sd"] == found
    assert list(expected["sd"]) == list(found)


def test_full_size_sd1_comes_back():
    """from_single_file inverts to_single_file, and leaves nothing over."""
    shapes = golden_json("ckpt_keys.json")["v1"]["diffusers"]
    back = from_single_file(to_single_file({part: meta(s) for part, s in shapes.items()}, family="sd1"))

    assert back.pop("other") == {}
    assert shapes == {part: {name: list(t.shape) for name, t in tensors.items()} for part, tensors in back.items()}


def test_tiny_sd1_has_the_golden_values():
    """Every tensor of the single file holds the float32 bytes that sd-scripts put there."""
    expected = golden_json("ckpt_tiny_values.json")["tiny_sd1"]
    found = {
        key: {
            "shape": list(tensor.shape),
            "sha": hashlib.sha256(tensor.tensor().float().numpy().tobytes()).hexdigest()[:24],
        }
        for key, tensor in to_single_file(tiny_parts(), family="sd1").items()
    }

    assert {key: {"shape": row["shape"], "sha": row["sha"]} for key, row in expected.items()} == found


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_tiny_values_survive_the_way_there_and_back(family):
    """Both families return the very values, 1x1 projections in whichever of their two shapes."""
    parts = tiny_parts()
    back = from_single_file(to_single_file(parts, family=family))

    for part, tensors in parts.items():
        assert tensors.keys() == back[part].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor.tensor().flatten(), back[part][name].tensor().flatten()), name


def test_sd2_projections_of_the_unet_are_matrices_and_of_the_vae_convolutions():
    """The two families differ in the UNet's proj_in and proj_out only."""
    sd2 = to_single_file(tiny_parts(), family="sd2")

    assert sd2["model.diffusion_model.middle_block.1.proj_in.weight"].shape == (64, 64)
    assert sd2["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)
    assert len(sd2) == 982  # as golden/metadata.json counts them


def test_sd2_text_joins_q_k_v_and_fills_in_the_unused_block():
    """Order q, k, v whatever the module's order; block 23 is a copy of 22; projection and scale as sd-scripts'."""
    text = text_sd2()
    found = to_single_file({"text_encoder": text}, family="sd2")
    root = "cond_stage_model.model.transformer.resblocks."
    joined = [text[f"text_model.encoder.layers.5.self_attn.{letter}_proj.weight"] for letter in "qkv"]

    assert torch.equal(torch.cat(joined), found[f"{root}5.attn.in_proj_weight"])
    for name in [key for key in found if key.startswith(f"{root}22.")]:
        copy = found[name.replace(".22.", ".23.")]
        assert torch.equal(found[name], copy)
        assert found[name].data_ptr() != copy.data_ptr()
    assert list(found)[-2:] == ["cond_stage_model.model.text_projection", "cond_stage_model.model.logit_scale"]
    assert described(found)["cond_stage_model.model.text_projection"] == [[1024, 1024], "float32"]
    assert described(found)["cond_stage_model.model.logit_scale"] == [[], "int64"]
    assert len(found) == 4 + 24 * 12 + 2


def test_sd2_block_23_of_the_file_is_kept_apart_and_put_back():
    """SD 2.x uses 23 of its 24 blocks; the last one is carried along, not replaced by a copy."""
    file = to_single_file({"text_encoder": text_sd2()}, family="sd2")
    name = "cond_stage_model.model.transformer.resblocks.23.ln_1.bias"
    file[name] = torch.full((4,), 7.0)
    parts = from_single_file(file)
    again = to_single_file(parts, family="sd2")

    assert len(parts["text_encoder"]) == 4 + 23 * 16
    assert torch.equal(again[name], torch.full((4,), 7.0))
    assert file.keys() == again.keys()


def test_both_layouts_of_the_text_model_give_the_same_file():
    """transformers since 5.6 drops the first word of every name."""
    text = text_sd2(layers=2)
    flat = {name.removeprefix("text_model."): tensor for name, tensor in text.items()}

    for family in ("sd1", "sd2"):
        assert described(to_single_file({"text_encoder": text}, family=family)) == described(
            to_single_file({"text_encoder": flat}, family=family)
        )


def test_text_names_of_2022_and_position_ids_are_normalised():
    """Old files lack text_model.; position_ids, of whatever type, belong to no part but stay in the file."""
    old = {
        "cond_stage_model.transformer.embeddings.position_ids": torch.arange(77.0)[None],
        "cond_stage_model.transformer.final_layer_norm.bias": torch.zeros(4),
    }
    parts = from_single_file(old)

    assert list(parts["text_encoder"]) == ["text_model.final_layer_norm.bias"]
    assert list(parts["other"]) == ["cond_stage_model.transformer.embeddings.position_ids"]
    assert normalised_text({"embeddings.position_ids": old.popitem()[1]}) == {}


def test_vae_names_of_2022_are_understood():
    """query, key, value and proj_attn became to_q, to_k, to_v and to_out.0."""
    today = tiny_parts()["vae"]
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    pattern = r"(?<=attentions\.0\.)(to_q|to_k|to_v|to_out\.0)(?=\.)"
    old = {re.sub(pattern, lambda match: words[match[1]], name): tensor for name, tensor in today.items()}

    assert old.keys() != today.keys()
    assert normalised_vae(old).keys() == today.keys()
    assert vae_to_file(old).keys() == vae_to_file(today).keys()
    assert vae_from_any(old).keys() == vae_from_any(vae_to_file(today)).keys() == today.keys()


@pytest.mark.parametrize(("levels", "layers"), [(1, 1), (2, 1), (3, 3), (4, 2)])
def test_any_number_of_levels_and_layers_maps(levels, layers):
    """Tiny models have fewer blocks; the numbering of the file follows from them."""
    from diffusers import UNet2DConditionModel

    attention = levels - 1
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(32,) * levels,
            layers_per_block=layers,
            down_block_types=("CrossAttnDownBlock2D",) * attention + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attention,
            cross_attention_dim=16,
        )
    state = unet.state_dict()
    file = to_single_file({"unet": state}, family="sd1")

    assert len(file) == len(state)
    assert from_single_file(file)["unet"].keys() == state.keys()


def test_what_is_no_part_stays_under_its_own_name():
    """EMA copies, schedule buffers and the unknown pass through."""
    extra = {"model_ema.decay": torch.ones(()), "betas": torch.ones(3), "model.diffusion_model.mystery": torch.ones(1)}

    assert from_single_file(extra)["other"] == extra
    assert to_single_file({"other": extra}, family="sd1") == extra


def test_a_tensor_without_a_place_is_refused_by_name():
    """Nothing is dropped in silence."""
    with pytest.raises(EngineError, match="add_embedding"):
        to_single_file({"unet": {"add_embedding.linear_1.weight": torch.ones(1)}}, family="sd1")
    with pytest.raises(EngineError, match="adapter"):
        to_single_file({"text_encoder": {"adapter.weight": torch.ones(1)}}, family="sd2")

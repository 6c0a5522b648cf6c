"""The architecture of a model, from the shapes of its tensors and from what its file says. Torch-free.

A single file has no configs. Widths and depths follow from shapes; the number of attention heads does not and is the
family's rule, unless the file says otherwise under `sdtui.config`, which our own saves write where it is needed.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from engine.errors import EngineError, safe_text
from engine.models.keys import Family
from engine.models.lazy import LazyTensor
from engine.resources import family_config

Tensors = Mapping[str, LazyTensor]
Config = dict[str, Any]
CONFIG_KEY = "sdtui.config"
MAX_CONFIG_BYTES = 1_000_000

# What shapes do not tell and yet decides a result. Sizes are never taken from a config: the tensors have the say.
_UNSEEN: dict[str, set[str]] = {
    "unet": {
        "act_fn", "attention_head_dim", "center_input_sample", "downsample_padding", "dropout", "flip_sin_to_cos",
        "freq_shift", "mid_block_scale_factor", "norm_eps", "norm_num_groups", "num_attention_heads",
        "resnet_out_scale_factor", "sample_size", "upcast_attention",
    },
    "vae": {
        "act_fn", "force_upcast", "norm_num_groups", "sample_size", "scaling_factor",
    },
    "text_encoder": {
        "attention_dropout", "bos_token_id", "eos_token_id", "hidden_act", "layer_norm_eps", "num_attention_heads",
        "pad_token_id", "projection_dim",
    },
    "scheduler": {
        "beta_end", "beta_schedule", "beta_start", "clip_sample", "num_train_timesteps", "prediction_type",
        "rescale_betas_zero_snr", "set_alpha_to_one", "steps_offset", "timestep_spacing", "trained_betas",
    },
}  # fmt: skip
# Carried by diffusers folders, but of no account to training or sampling with a single file.
_IDLE = {
    "sample_size", "force_upcast", "bos_token_id", "eos_token_id", "pad_token_id", "projection_dim",
    "clip_sample", "set_alpha_to_one", "steps_offset", "timestep_spacing",
}  # fmt: skip


def model_config(part: str, tensors: Tensors, family: Family, stated: Mapping[str, Any]) -> Config:
    """Return the config of "unet", "vae" or "text_encoder": sizes from the tensors, the rest as stated or published.

    Raises:
        EngineError: A tensor that every such part has is missing or has the wrong rank.
    """
    sizes = {"unet": _unet_sizes, "vae": _vae_sizes, "text_encoder": _text_sizes}[part]
    try:
        inferred = {**family_config(family, part), **sizes(tensors, family)}
    except (KeyError, IndexError, ValueError) as error:
        cause = f"{safe_text(str(error.args[0]))} is missing" if isinstance(error, KeyError) else "a shape is wrong"
        raise EngineError(f"the {part.replace('_', ' ')} is incomplete: {cause}; get the model again") from error
    return {**inferred, **_unseen(part, stated)}


def scheduler_config(family: Family, stated: Mapping[str, Any]) -> Config:
    """Return the noise schedule: the published one, with what is stated."""
    return {**family_config(family, "scheduler"), **_unseen("scheduler", stated)}


def _unseen(part: str, stated: Mapping[str, Any]) -> Config:
    return {key: value for key, value in stated.items() if key in _UNSEEN[part] and value is not None}


def overrides_of(part: str, config: Mapping[str, Any], published: Mapping[str, Any]) -> Config:
    """Return what a single file must state of a config, since neither its shapes nor its family tell it."""
    return {
        key: config[key]
        for key in sorted(_UNSEEN[part] - _IDLE)
        if key in config and config[key] is not None and _plain(config[key]) != _plain(published.get(key))
    }


def stated_configs(metadata: Mapping[str, str], path: Path) -> dict[str, Config]:
    """Return what a file states under `sdtui.config`, by part.

    Raises:
        EngineError: It is not what we write there.
    """
    stated = parsed_config(metadata[CONFIG_KEY], path) if CONFIG_KEY in metadata else {}
    if not all(isinstance(config, dict) for config in stated.values()):
        _refuse(path)
    return stated


def read_config(path: Path) -> Config:
    """Read a config.json.

    Raises:
        EngineError: It is missing, too large or not a JSON table.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
        return parsed_config(raw.decode("utf-8-sig"), path)
    except UnicodeDecodeError:
        _refuse(path)
    except OSError as error:
        shown = safe_text(str(path))
        raise EngineError(f"{shown}: can't be read: {error.strerror or error}; copy the whole model folder") from error


def parsed_config(text: str, path: Path) -> Config:
    """Parse a JSON table of sane size.

    Raises:
        EngineError: It is something else.
    """
    try:
        config = json.loads(text) if len(text) <= MAX_CONFIG_BYTES else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        _refuse(path)
    return config


def _refuse(path: Path) -> NoReturn:
    raise EngineError(f"{safe_text(str(path))}: its config is not a JSON table; get the model again from its source")


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple | list) else value


def _unet_sizes(tensors: Tensors, family: Family) -> Config:
    levels = _indices(tensors, r"down_blocks\.(\d+)\.")
    widths = [tensors[f"down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in levels]
    down = ["CrossAttnDownBlock2D" if _has(tensors, f"down_blocks.{n}.attentions.") else "DownBlock2D" for n in levels]
    up = ["CrossAttnUpBlock2D" if _has(tensors, f"up_blocks.{n}.attentions.") else "UpBlock2D" for n in levels]
    sizes: Config = {
        "block_out_channels": widths,
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": len(_indices(tensors, r"down_blocks\.0\.resnets\.(\d+)\.")),
        "in_channels": tensors["conv_in.weight"].shape[1],
        "out_channels": tensors["conv_out.weight"].shape[0],
        "transformer_layers_per_block": len(_indices(tensors, r".*\.transformer_blocks\.(\d+)\.")),
        "cross_attention_dim": context_width(tensors),
    }
    if family == "sd2":  # Heads of 64 channels; SD 1.x has 8 heads at every width.
        sizes["attention_head_dim"] = [max(1, width // 64) for width in widths]
    return sizes


def context_width(tensors: Tensors) -> int:
    """Return the width of the text states that the UNet attends to: 768 for SD 1.x, 1024 for 2.x, 2048 for SDXL."""
    widths = (tensor.shape[1] for name, tensor in tensors.items() if name.endswith("attn2.to_k.weight"))
    return next(widths, 0)


def _vae_sizes(tensors: Tensors, _family: Family) -> Config:
    levels = _indices(tensors, r"encoder\.down_blocks\.(\d+)\.")
    widths = [tensors[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in levels]
    return {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "layers_per_block": len(_indices(tensors, r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")),
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": tensors["decoder.conv_out.weight"].shape[0],
        "latent_channels": tensors["post_quant_conv.weight"].shape[0],
    }


def _text_sizes(tensors: Tensors, _family: Family) -> Config:
    vocabulary, width = tensors["text_model.embeddings.token_embedding.weight"].shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": tensors["text_model.embeddings.position_embedding.weight"].shape[0],
        "num_hidden_layers": len(_indices(tensors, r"text_model\.encoder\.layers\.(\d+)\.")),
        "intermediate_size": tensors["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_attention_heads": max(1, width // 64),
    }


def _indices(names: Iterable[str], pattern: str) -> list[int]:
    compiled = re.compile(pattern)
    return sorted({int(match[1]) for name in names if (match := compiled.match(name))})


def _has(names: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)

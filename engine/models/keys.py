"""The names of SD 1.x and 2.x tensors in single files and in diffusers folders, mapped both ways.

Pure: values are only reshaped, split and joined, so torch tensors and `LazyTensor`s pass alike. Any number of levels,
layers and channels maps. Parts and their prefixes in a single file:

    unet          model.diffusion_model.
    vae           first_stage_model.
    text_encoder  cond_stage_model.transformer. (SD 1.x) or cond_stage_model.model. (SD 2.x, OpenCLIP's own layout)
    other         everything else, under its full name: EMA copies, schedule buffers, the 24th block of SD 2.x

Within a part the names are diffusers'; those of the text encoder always begin with `text_model.`, whichever layout of
CLIPTextModel (transformers before and since 5.6) they come from.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeVar

from engine.errors import EngineError, safe_text
from engine.models.lazy import TensorLike, concatenate

Family = Literal["sd1", "sd2"]
T = TypeVar("T", bound=TensorLike)
Parts = dict[str, dict[str, T]]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX_SD1 = "cond_stage_model.transformer."
TEXT_PREFIX_SD2 = "cond_stage_model.model."
_TEXT_ROOT = "text_model."
_SD2_TEXT_LAYERS = 23  # The file has 24: SD 2.x conditions on the last but one, so the last is only carried along.
SD2_PROJECTION = 1024

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_VAE_ATTENTION_BEFORE_2023 = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_SD2_TEXT_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_SD2_TEXT_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def to_single_file(
    parts: Mapping[str, Mapping[str, T]], *, family: Family, projection_width: int = SD2_PROJECTION
) -> dict[str, T]:
    """Return the tensors of a single file, in the order sd-scripts writes them.

    Args:
        parts: Any of "unet", "text_encoder", "vae" by diffusers' names ("text_model." may be missing), and "other" by
            full name, which is added last.
        family: "sd2" joins q, k, v into OpenCLIP's in_proj and fills in what diffusers leaves out: block 23 (as a copy
            of block 22), text_projection (ones, square) and logit_scale (1, int64), unless "other" has them.
        projection_width: Side of that text_projection; sd-scripts writes 1024 whatever the text encoder's width.

    Returns:
        Single-file name -> tensor. Shapes as in parts, except: 1x1 projections of the UNet are [c, c, 1, 1] for sd1
        and [c, c] for sd2; those of the VAE's attention are [c, c, 1, 1].

    Raises:
        EngineError: A name has no place in a single file.
    """
    other = parts.get("other", {})
    merged = {UNET_PREFIX + name: tensor for name, tensor in _unet_to_file(parts.get("unet", {}), family).items()}
    text = normalised_text(parts.get("text_encoder", {}))
    if family == "sd1":
        merged |= {TEXT_PREFIX_SD1 + name: tensor for name, tensor in text.items()}
    elif text:
        complete = _with_last_block(_sd2_text_to_file(text), projection_width)
        merged |= {TEXT_PREFIX_SD2 + name: tensor for name, tensor in complete.items()}
    merged |= {VAE_PREFIX + name: tensor for name, tensor in vae_to_file(parts.get("vae", {})).items()}
    return {**merged, **other}


def from_single_file(tensors: Mapping[str, T]) -> Parts[T]:
    """Return the parts "unet", "text_encoder", "vae" by diffusers' names and "other" by full name.

    The family follows from the prefix of the text encoder. Joined q, k, v are split; the VAE's attention becomes
    [c, c]; `position_ids` and what no part needs stay in "other". A file of another kind ends up there whole.
    """
    unet = _under(tensors, UNET_PREFIX)
    vae = _under(tensors, VAE_PREFIX)
    text_sd2 = _under(tensors, TEXT_PREFIX_SD2)
    parts: Parts[T] = {"unet": {}, "text_encoder": {}, "vae": {}, "other": {}}
    claimed: set[str] = set()

    def claim(part: str, prefix: str, mapped: Mapping[str, tuple[str, T]]) -> None:
        for name, (key, tensor) in mapped.items():
            parts[part][name] = tensor
            claimed.add(prefix + key)

    claim("unet", UNET_PREFIX, _unet_from_file(unet))
    claim("vae", VAE_PREFIX, _vae_from_file(vae))
    if text_sd2:
        claim("text_encoder", TEXT_PREFIX_SD2, _sd2_text_from_file(text_sd2))
    else:
        claim("text_encoder", TEXT_PREFIX_SD1, _sd1_text_from_file(_under(tensors, TEXT_PREFIX_SD1)))
    parts["other"] = {key: tensor for key, tensor in tensors.items() if key not in claimed}
    return parts


def normalised_text(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return a text encoder's tensors under names that begin with "text_model.", without position_ids.

    Since transformers 5.6 CLIPTextModel is flat: its names lack that first word, in memory and in folders it writes.
    """
    return {
        name if name.startswith(_TEXT_ROOT) else _TEXT_ROOT + name: tensor
        for name, tensor in tensors.items()
        if not name.endswith("position_ids") and not name.startswith("text_projection")
    }


def normalised_vae(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return a VAE's tensors under diffusers' names of today; its attention was named otherwise before 2023."""
    return {_today(name): tensor for name, tensor in tensors.items()}


def _today(name: str) -> str:
    head, found, tail = name.partition(".attentions.0.")
    layer, dot, kind = tail.rpartition(".")
    return head + found + _VAE_ATTENTION_BEFORE_2023.get(layer, layer) + dot + kind


def vae_to_file(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return a VAE's tensors under the names of a single file, without prefix."""
    tensors = normalised_vae(tensors)
    levels = _count(tensors, r"decoder\.up_blocks\.(\d+)\.")
    return {
        _vae_key(name, levels): _as_convolution(tensor) if _is_vae_projection(name) else tensor
        for name, tensor in tensors.items()
    }


def vae_from_any(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return a VAE by diffusers' names from a full model, or from a VAE alone in either naming; empty if none."""
    own = _under(tensors, VAE_PREFIX) or dict(tensors)
    if any(".down_blocks." in name for name in own):
        return normalised_vae({name: tensor for name, tensor in own.items() if _is_vae_name(name)})
    return {name: tensor for name, (_, tensor) in _vae_from_file(own).items()}


def _is_vae_name(name: str) -> bool:
    return name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))


def _under(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _count(names: Iterable[str], pattern: str) -> int:
    """Return one more than the largest index that the pattern captures, else 0."""
    compiled = re.compile(pattern)
    return max((int(match[1]) + 1 for name in names if (match := compiled.match(name))), default=0)


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    """Return the name with its leading words replaced by the table, or None if no entry fits."""
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return None


def _inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in table.items()}


def _as_convolution(tensor: T) -> T:
    return tensor.reshape((*tensor.shape, 1, 1)) if len(tensor.shape) == 2 else tensor


def _as_linear(tensor: T) -> T:
    return tensor.reshape(tuple(tensor.shape[:2])) if tuple(tensor.shape[2:]) == (1, 1) else tensor


# ---- UNet: blocks are numbered through in the file, by level in diffusers. n = layers of a level + its sampler.


def _unet_to_file(tensors: Mapping[str, T], family: Family) -> dict[str, T]:
    stride = _count(tensors, r"down_blocks\.\d+\.resnets\.(\d+)\.") + 1
    with_attention = {name.split(".")[1] for name in tensors if re.match(r"up_blocks\.\d+\.attentions\.", name)}
    shaped = _as_convolution if family == "sd1" else _as_linear
    mapped = {}
    for name, tensor in tensors.items():
        key = _renamed(name, _UNET_ENDS) or _unet_block_key(name, stride, with_attention)
        if key is None:
            raise EngineError(f"the UNet's tensor {safe_text(name)} has no place in a single file of SD 1.x or 2.x")
        mapped[key] = shaped(tensor) if re.search(r"\.proj_(in|out)\.weight$", name) else tensor
    return mapped


def _unet_block_key(name: str, stride: int, with_attention: set[str]) -> str | None:
    match = re.fullmatch(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(resnets|attentions|\w+samplers)\.(\d+)\.(.+)", name)
    if not match:
        return None
    side, level, kind, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    inner = _renamed(rest, _RESNET) if kind == "resnets" else rest
    if inner is None:
        return None
    branch = 0 if kind == "resnets" else 1
    if side is None:
        return f"middle_block.{2 * index + branch}.{inner}"
    if kind == "downsamplers":
        block, branch, inner = stride * (level + 1), 0, inner.replace("conv.", "op.")
    elif kind == "upsamplers":
        block, branch = stride * level + stride - 1, 2 if str(level) in with_attention else 1
    else:
        block = stride * level + index + (1 if side == "down" else 0)
    return f"{'input' if side == 'down' else 'output'}_blocks.{block}.{branch}.{inner}"


def _unet_from_file(tensors: Mapping[str, T]) -> dict[str, tuple[str, T]]:
    samplers = [int(match[1]) for name in tensors if (match := re.match(r"input_blocks\.(\d+)\.0\.op\.", name))]
    stride = min(samplers, default=_count(tensors, r"input_blocks\.(\d+)\."))
    ends = _inverse(_UNET_ENDS)
    mapped = {}
    for key, tensor in tensors.items():
        name = _renamed(key, ends) or _unet_block_name(key, stride)
        if name is not None:
            mapped[name] = (key, tensor)
    return mapped


def _unet_block_name(key: str, stride: int) -> str | None:
    match = re.fullmatch(r"(input_blocks|output_blocks)\.(\d+)\.(\d)\.(.+)", key)
    if not match:
        return _unet_middle_name(key)
    side, block, branch, rest = match[1], int(match[2]), int(match[3]), match[4]
    down = side == "input_blocks"
    level, index = divmod(block - 1 if down else block, stride)
    root = f"{'down' if down else 'up'}_blocks.{level}"
    if rest.startswith("op."):
        return f"{root}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if rest.startswith("conv."):
        return f"{root}.upsamplers.0.{rest}"
    if branch == 1:
        return f"{root}.attentions.{index}.{rest}"
    inner = _renamed(rest, _inverse(_RESNET))
    return f"{root}.resnets.{index}.{inner}" if inner and branch == 0 else None


def _unet_middle_name(key: str) -> str | None:
    match = re.fullmatch(r"middle_block\.(\d+)\.(.+)", key)
    if not match:
        return None
    index, is_attention = divmod(int(match[1]), 2)
    if is_attention:
        return f"mid_block.attentions.{index}.{match[2]}"
    inner = _renamed(match[2], _inverse(_RESNET))
    return inner and f"mid_block.resnets.{index}.{inner}"


# ---- VAE: the decoder's levels are numbered from the other end in the file.


def _is_vae_projection(name: str) -> bool:
    return bool(re.search(r"\.attentions\.0\.to_(q|k|v|out\.0)\.weight$", name))


_VAE_BLOCK_TO_FILE: list[tuple[str, Callable[[re.Match[str], int], str]]] = [
    (r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.", lambda m, _: f"encoder.down.{m[1]}.block.{m[2]}."),
    (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", lambda m, _: f"encoder.down.{m[1]}.downsample."),
    (r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.", lambda m, n: f"decoder.up.{n - 1 - int(m[1])}.block.{m[2]}."),
    (r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda m, n: f"decoder.up.{n - 1 - int(m[1])}.upsample."),
    (r"(encoder|decoder)\.mid_block\.resnets\.(\d+)\.", lambda m, _: f"{m[1]}.mid.block_{int(m[2]) + 1}."),
    (r"(encoder|decoder)\.mid_block\.attentions\.0\.", lambda m, _: f"{m[1]}.mid.attn_1."),
    (r"(encoder|decoder)\.conv_norm_out\.", lambda m, _: f"{m[1]}.norm_out."),
]
_VAE_BLOCK_FROM_FILE: list[tuple[str, Callable[[re.Match[str], int], str]]] = [
    (r"encoder\.down\.(\d+)\.block\.(\d+)\.", lambda m, _: f"encoder.down_blocks.{m[1]}.resnets.{m[2]}."),
    (r"encoder\.down\.(\d+)\.downsample\.", lambda m, _: f"encoder.down_blocks.{m[1]}.downsamplers.0."),
    (r"decoder\.up\.(\d+)\.block\.(\d+)\.", lambda m, n: f"decoder.up_blocks.{n - 1 - int(m[1])}.resnets.{m[2]}."),
    (r"decoder\.up\.(\d+)\.upsample\.", lambda m, n: f"decoder.up_blocks.{n - 1 - int(m[1])}.upsamplers.0."),
    (r"(encoder|decoder)\.mid\.block_(\d+)\.", lambda m, _: f"{m[1]}.mid_block.resnets.{int(m[2]) - 1}."),
    (r"(encoder|decoder)\.mid\.attn_1\.", lambda m, _: f"{m[1]}.mid_block.attentions.0."),
    (r"(encoder|decoder)\.norm_out\.", lambda m, _: f"{m[1]}.conv_norm_out."),
]


def _vae_key(name: str, levels: int) -> str:
    key = _block_renamed(name, _VAE_BLOCK_TO_FILE, levels).replace(".conv_shortcut.", ".nin_shortcut.")
    return _attention_renamed(key, ".mid.attn_1.", _VAE_ATTENTION)


def _vae_from_file(tensors: Mapping[str, T]) -> dict[str, tuple[str, T]]:
    levels = _count(tensors, r"decoder\.up\.(\d+)\.")
    mapped = {}
    for key, tensor in tensors.items():
        if not _is_vae_name(key):
            continue
        name = _block_renamed(key, _VAE_BLOCK_FROM_FILE, levels).replace(".nin_shortcut.", ".conv_shortcut.")
        name = _attention_renamed(name, ".mid_block.attentions.0.", _inverse(_VAE_ATTENTION))
        mapped[name] = (key, _as_linear(tensor) if _is_vae_projection(name) else tensor)
    return mapped


def _block_renamed(name: str, table: list[tuple[str, Callable[[re.Match[str], int], str]]], levels: int) -> str:
    for pattern, rename in table:
        match = re.match(pattern, name)
        if match:
            return rename(match, levels) + name[match.end() :]
    return name


def _attention_renamed(name: str, root: str, table: Mapping[str, str]) -> str:
    head, found, tail = name.partition(root)
    return head + found + (_renamed(tail, table) or tail)


# ---- Text encoder


def _sd1_text_from_file(tensors: Mapping[str, T]) -> dict[str, tuple[str, T]]:
    """Files of 2022 lack `text_model.`; position_ids belong to no part."""
    return {
        key if key.startswith(_TEXT_ROOT) else _TEXT_ROOT + key: (key, tensor)
        for key, tensor in tensors.items()
        if not key.endswith("position_ids")
    }


def _sd2_text_to_file(tensors: Mapping[str, T]) -> dict[str, T]:
    plain: dict[str, T] = {}
    joined: dict[str, T] = {}
    for full_name, tensor in tensors.items():
        name = full_name.removeprefix(_TEXT_ROOT)
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)
        attention = match and re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", match[2])
        if match and attention:
            if attention[1] == "q":
                three = [tensors[full_name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
                joined[f"transformer.resblocks.{match[1]}.attn.in_proj_{attention[2]}"] = concatenate(three)
            continue
        inner = match and _renamed(match[2], _SD2_TEXT_BLOCK)
        key = f"transformer.resblocks.{match[1]}.{inner}" if match and inner else _SD2_TEXT_ENDS.get(name)
        if key is None:
            raise EngineError(f"the text encoder's tensor {safe_text(full_name)} has no place in a single SD 2.x file")
        plain[key] = tensor
    return plain | joined


def _with_last_block(text: dict[str, T], projection_width: int) -> dict[str, T]:
    """Add what the format has and SD 2.x never uses, so that programs which look for it find it."""
    last = f"transformer.resblocks.{_SD2_TEXT_LAYERS - 1}."
    unused = f"transformer.resblocks.{_SD2_TEXT_LAYERS}."
    copies = {key.replace(last, unused): tensor.clone() for key, tensor in text.items() if key.startswith(last)}
    like = next(iter(text.values()))
    projection = like.new_ones((projection_width, projection_width))
    return {**text, **copies, "text_projection": projection, "logit_scale": like.new_ones(()).long()}


def _sd2_text_from_file(tensors: Mapping[str, T]) -> dict[str, tuple[str, T]]:
    ends, block = _inverse(_SD2_TEXT_ENDS), _inverse(_SD2_TEXT_BLOCK)
    mapped: dict[str, tuple[str, T]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", key)
        if match is None:
            if key in ends:
                mapped[_TEXT_ROOT + ends[key]] = (key, tensor)
            continue
        if int(match[1]) >= _SD2_TEXT_LAYERS:
            continue
        root = f"{_TEXT_ROOT}encoder.layers.{match[1]}."
        joined = re.fullmatch(r"attn\.in_proj_(weight|bias)", match[2])
        if joined:
            for letter, value in zip("qkv", tensor.chunk(3), strict=True):
                mapped[f"{root}self_attn.{letter}_proj.{joined[1]}"] = (key, value)
        elif inner := _renamed(match[2], block):
            mapped[root + inner] = (key, tensor)
    return mapped

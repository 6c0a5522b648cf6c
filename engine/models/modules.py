"""Building the networks from unread tensors, without a second copy of the weights.

They are made on torch's meta device, where nothing has values, and then given the file's tensors: those stay mapped
where the precision is the file's own, and are converted one by one where it isn't.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from engine.errors import EngineError, safe_text
from engine.models.configs import Config
from engine.models.keys import normalised_text
from engine.models.lazy import LazyTensor

_WORDS = {"unet": "UNet", "vae": "VAE", "text_encoder": "text encoder"}


def empty_module(part: str, config: Config) -> nn.Module:
    """Return the network of "unet", "vae" or "text_encoder" on the meta device.

    Raises:
        EngineError: The config can't be built.
    """
    from huggingface_hub.errors import StrictDataclassError

    stated = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with torch.device("meta"):
            return _build(part, stated)
    # What libraries raise on configs that make no sense is theirs to choose; all of these were seen.
    except (
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
        StrictDataclassError,
    ) as error:
        cause = safe_text(f"{type(error).__name__}: {error}", 160)
        raise EngineError(f"the config of the {_WORDS[part]} can't be built ({cause}); get the model again") from error


def _build(part: str, config: Config) -> nn.Module:
    if part == "text_encoder":
        from transformers import CLIPTextConfig, CLIPTextModel

        return cast("nn.Module", CLIPTextModel(CLIPTextConfig(**config)))
    from diffusers import AutoencoderKL, UNet2DConditionModel

    kind: Any = UNet2DConditionModel if part == "unet" else AutoencoderKL
    return cast("nn.Module", kind.from_config(config))


def loaded_module(part: str, config: Config, tensors: Mapping[str, LazyTensor], dtype: torch.dtype) -> nn.Module:
    """Return the network with its weights, in evaluation mode, on the CPU.

    Raises:
        EngineError: Tensors are missing, unexpected or misshapen.
    """
    module = empty_module(part, config)
    wanted = module.state_dict()
    shapes = expected_shapes(part, module)
    refuse_mismatch(part, tensors, shapes)
    # In transformers since 5.6 the text encoder's own names are flat.
    own_names = dict(zip(shapes, wanted, strict=True))
    state = {own_names[name]: _value(tensors[name], shape, dtype) for name, shape in shapes.items()}
    module.load_state_dict(state, assign=True)
    _rebuild_buffers(module)
    return module.eval()


def expected_shapes(part: str, module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return every tensor's name, as `engine.models.keys` has it, and shape; in the module's order."""
    state: Mapping[str, Tensor] = module.state_dict()
    if part == "text_encoder":
        state = normalised_text(state)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _value(tensor: LazyTensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return tensor.tensor().to(dtype).reshape(shape).contiguous()


def architecture_shapes(part: str, config: Config) -> dict[str, tuple[int, ...]]:
    """Return what `expected_shapes` says of the network of a config.

    Raises:
        EngineError: The config can't be built.
    """
    return dict(_architecture_shapes(part, json.dumps(config, sort_keys=True)))


@lru_cache(maxsize=6)
def _architecture_shapes(part: str, config: str) -> dict[str, tuple[int, ...]]:
    return expected_shapes(part, empty_module(part, json.loads(config)))


def refuse_mismatch(part: str, tensors: Mapping[str, LazyTensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare a part with what its config needs.

    Raises:
        EngineError: They differ; the message lists a few of the differences.
    """
    found = differences(tensors, shapes)
    if found:
        raise EngineError(
            f"the {_WORDS[part]} does not fit its architecture: {listed(found)}; the file is incomplete, or no SD 1.x"
            " or 2.x model: get it again from its source"
        )


def differences(tensors: Mapping[str, LazyTensor], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return in words what is missing, unexpected or misshapen; a 1x1 convolution and a matrix count as one shape."""
    found = [f"{safe_text(name)} is missing" for name in shapes if name not in tensors]
    found += [f"{safe_text(name)} is unexpected" for name in tensors if name not in shapes]
    for name, shape in shapes.items():
        if name in tensors and _squeezed(tensors[name].shape) != _squeezed(shape):
            found.append(f"{safe_text(name)} has shape {list(tensors[name].shape)} instead of {list(shape)}")
    return found


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)


def listed(found: Sequence[str], limit: int = 3) -> str:
    """Return the first few of many findings in one line."""
    rest = f" and {len(found) - limit} more" if len(found) > limit else ""
    return ", ".join(found[:limit]) + rest


def _rebuild_buffers(module: nn.Module) -> None:
    """Give buffers that no file holds their values: CLIP's position ids are all there are."""
    for name, buffer in list(module.named_buffers()):
        if not buffer.is_meta:
            continue
        assert name.endswith("position_ids"), name
        owner_name, _, short = name.rpartition(".")
        owner: Any = module.get_submodule(owner_name)
        owner.register_buffer(short, torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False)
    assert not any(parameter.is_meta for parameter in module.parameters())

"""How attention is computed, and activations given up for memory.

Dimension key: B images, H heads, L queries, M keys, D width of a head.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.errors import EngineError, safe_text
from engine.settings import MemorySettings


def set_attention(unet: nn.Module, memory: MemorySettings, device: torch.device) -> None:
    """Choose the UNet's attention: torch's fused one (SDPA) unless xformers or mem_eff_attn is set.

    Raises:
        EngineError: xformers is missing or can't compute a training step of this UNet on the device.
    """
    from diffusers.models.attention_processor import AttnProcessor2_0, XFormersAttnProcessor

    processor: object = AttnProcessor2_0()
    if memory.mem_eff_attn:
        processor = SlicedAttention()
    elif memory.xformers:
        dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[memory.mixed_precision]
        for width in sorted(_head_widths(unet)):
            _try_xformers(width, dtype, device)
        processor = XFormersAttnProcessor()
    unet.set_attn_processor(processor)  # type: ignore[operator]


def enable_gradient_checkpointing(unet: nn.Module, text_encoder: nn.Module | None = None) -> None:
    """Keep only the inputs of each block and compute the rest again in the backward pass; gradients stay the same."""
    unet.enable_gradient_checkpointing()  # type: ignore[operator]
    if text_encoder is not None:
        switch_on_checkpointing(text_encoder)


def switch_on_checkpointing(text_encoder: nn.Module) -> None:
    """Switch gradient checkpointing on in a model of transformers."""
    # It is being renamed: deprecated from 5.24 on, the only name in 5.3.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable = next(getattr(text_encoder, name) for name in names if hasattr(text_encoder, name))
    enable({"use_reentrant": False})  # The reentrant kind drops gradients where a block's inputs need none.


def _head_widths(unet: nn.Module) -> set[int]:
    from diffusers.models.attention_processor import Attention

    return {module.inner_dim // module.heads for module in unet.modules() if isinstance(module, Attention)}


def _try_xformers(width: int, dtype: torch.dtype, device: torch.device) -> None:
    """Run one forward and backward pass: whether xformers has an operator shows only on the device itself."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About Triton and compiled extensions; the attempt itself is the answer.
            from xformers.ops import memory_efficient_attention

        states_BLHD = torch.zeros(1, 8, 2, width, dtype=dtype, device=device, requires_grad=True)
        memory_efficient_attention(states_BLHD, states_BLHD, states_BLHD).sum().backward()
    except ImportError as error:
        raise EngineError(
            f"xformers can't be loaded ({safe_text(str(error))}): pip install 'sdtui[cuda]', or set sdpa = true"
        ) from error
    except (NotImplementedError, RuntimeError, ValueError, OSError) as error:
        cause = safe_text(" ".join(str(error).split()))
        raise EngineError(
            f"xformers has no attention for {dtype} with heads of {width} on {device} ({cause}): "
            "set sdpa = true instead"
        ) from error


class SlicedAttention:
    """Attention one head of one image at a time, whose scores are not kept for the backward pass.

    Holds one L x M matrix instead of B * H of them, also in training, where diffusers' sliced attention keeps all.
    For devices on which torch's fused attention has no kernel; elsewhere that one is faster and as lean.
    """

    def __call__(
        self,
        attn: Any,  # noqa: ANN401 - diffusers' Attention, which has no types
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        """Return the attention's output for hidden states (B, L, H * D) and what they attend to."""
        assert attention_mask is None, "Stable Diffusion masks nothing"
        attended = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        states = attn.to_q(hidden_states), attn.to_k(attended), attn.to_v(attended)
        heads = zip(*(attn.head_to_batch_dim(part).split(1) for part in states), strict=True)
        outputs = [checkpoint(_attend, attn, *head, use_reentrant=False, preserve_rng_state=False) for head in heads]
        project, dropout = attn.to_out
        output: Tensor = dropout(project(attn.batch_to_head_dim(torch.cat(outputs))))
        return output


def _attend(attn: Any, query_1LD: Tensor, key_1MD: Tensor, value_1MD: Tensor) -> Tensor:  # noqa: ANN401
    return torch.bmm(attn.get_attention_scores(query_1LD, key_1MD), value_1MD)

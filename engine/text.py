"""Token ids to the states that condition the UNet: clip skip, chunks joined, weights applied.

Dimension key: B captions, N chunks of 77, L joined positions (77, 152 or 227), D width of the text encoder.
"""

from typing import TYPE_CHECKING, Any

import torch

from engine.tokens import CHUNK_TOKENS, ClipTokenizer, load_tokenizer, token_ids, weighted_token_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

__all__ = ["encode", "load_tokenizer", "token_ids", "token_tensors", "weighted_token_ids"]


def token_tensors(
    captions: "Sequence[str]", tokenizer: ClipTokenizer, max_token_length: int | None = None, *, weighted: bool = False
) -> "tuple[Tensor, Tensor | None]":
    """Return the captions' ids, (B, N, 77) int64, and where `weighted` their weights, (B, N, 77) float32, else None."""
    if not weighted:
        return torch.tensor([token_ids(caption, tokenizer, max_token_length) for caption in captions]), None
    both = [weighted_token_ids(caption, tokenizer, max_token_length) for caption in captions]
    return torch.tensor([ids for ids, _ in both]), torch.tensor([weights for _, weights in both])


def encode(
    text_encoder: "nn.Module", ids_BN77: "Tensor", clip_skip: int | None = None, *, weights_BN77: "Tensor | None" = None
) -> "Tensor":
    """Return the conditioning of captions, (B, L, D), in the text encoder's own dtype.

    Args:
        text_encoder: A CLIPTextModel, of either layout that transformers has given it.
        ids_BN77: From `token_tensors`, or `token_ids` of several captions as one tensor.
        clip_skip: None or 1 takes the last layer, 2 the one before it, and so on; each through the final layer norm.
        weights_BN77: A factor on each position, without renormalisation.
    """
    batch, chunks, width = ids_BN77.shape
    states = _layer_states(text_encoder, ids_BN77.reshape(batch * chunks, width), clip_skip)
    states_BLD = _join(states.reshape(batch, chunks * width, -1), chunks)
    return states_BLD if weights_BN77 is None else _weigh(states_BLD, weights_BN77)


def _layer_states(text_encoder: "nn.Module", ids: "Tensor", clip_skip: int | None) -> "Tensor":
    ids = ids.to(next(text_encoder.parameters()).device)
    if clip_skip is None or clip_skip <= 1:
        last: Tensor = text_encoder(ids).last_hidden_state
        return last
    layers = text_encoder(ids, output_hidden_states=True).hidden_states
    assert clip_skip < len(layers), f"clip_skip {clip_skip} of {len(layers) - 1} layers"
    inner: Any = getattr(text_encoder, "text_model", text_encoder)  # transformers 5.6 dropped the inner model.
    normed: Tensor = inner.final_layer_norm(layers[-clip_skip])
    return normed


def _join(states_BLD: "Tensor", chunks: int) -> "Tensor":
    """Keep one begin and one end for all chunks: N * 77 positions become N * 75 + 2."""
    if chunks == 1:
        return states_BLD
    width = CHUNK_TOKENS + 2
    middles = [states_BLD[:, start + 1 : start + 1 + CHUNK_TOKENS] for start in range(0, chunks * width, width)]
    return torch.cat([states_BLD[:, :1], *middles, states_BLD[:, -1:]], dim=1)


def _weigh(states_BLD: "Tensor", weights_BN77: "Tensor") -> "Tensor":
    weights_BL = weights_BN77[:, :, 1:-1].flatten(1).to(states_BLD)
    weighted = states_BLD[:, 1:-1] * weights_BL[:, :, None]
    return torch.cat([states_BLD[:, :1], weighted, states_BLD[:, -1:]], dim=1)

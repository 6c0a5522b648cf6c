"""Token ids to states: as sd-scripts conditions its UNet, to 1e-5, for both layouts of CLIPTextModel."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel

from engine.text import encode, token_tensors
from engine.tokens import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
STATES = GOLDEN / "hidden_states.safetensors"


def _text_encoder(version: str) -> CLIPTextModel:
    model = CLIPTextModel.from_pretrained(GOLDEN / "tiny_sd1" / "text_encoder").eval()
    if version == "v1":
        return model
    gelu = CLIPTextModel(CLIPTextConfig.from_pretrained(GOLDEN / "tiny_sd2_configs" / "text_encoder")).eval()
    gelu.load_state_dict(model.state_dict())
    return gelu


def _names() -> list[str]:
    with safe_open(STATES, "pt") as file:
        return list(file.keys())


@pytest.mark.parametrize("name", _names())
def test_states_equal_those_of_sd_scripts(name: str):
    """Clip skip, joined chunks and weighted captions, SD 1.x and 2.x."""
    version, length, case = name.split("/")
    is_weighted = case == "weighted"
    with safe_open(STATES, "pt") as file:
        expected_BLD = file.get_tensor(name)
        captions = json.loads(file.metadata()["weighted_captions" if is_weighted else "captions"])
    clip_skip = None if is_weighted or case.endswith("None") else int(case[-1])
    tokenizer = load_tokenizer(v2=version == "v2")
    ids_BN77, weights_BN77 = token_tensors(captions, tokenizer, int(length), weighted=is_weighted)

    with torch.no_grad():
        states_BLD = encode(_text_encoder(version), ids_BN77, clip_skip, weights_BN77=weights_BN77)

    torch.testing.assert_close(states_BLD, expected_BLD, atol=1e-5, rtol=0)


def test_text_encoder_with_an_inner_model_gives_the_same():
    """transformers below 5.6 keeps the layers in `.text_model`."""

    class Nested(torch.nn.Module):
        def __init__(self, inner: CLIPTextModel) -> None:
            super().__init__()
            self.text_model = inner

        def forward(self, ids: torch.Tensor, **options: bool):
            return self.text_model(ids, **options)

    ids_BN77, _ = token_tensors(["a cat"], load_tokenizer(v2=False))
    flat = _text_encoder("v1")
    inner = getattr(flat, "text_model", flat)

    with torch.no_grad():
        assert torch.equal(encode(flat, ids_BN77, 2), encode(Nested(inner), ids_BN77, 2))


def test_gradients_reach_the_text_encoder():
    model = _text_encoder("v1")
    ids_BN77, weights_BN77 = token_tensors(["a (cat:1.2)"], load_tokenizer(v2=False), 150, weighted=True)

    encode(model, ids_BN77, 2, weights_BN77=weights_BN77).sum().backward()

    assert next(model.parameters()).grad is not None


def test_more_layers_skipped_than_there_are_is_our_bug():
    ids_BN77, _ = token_tensors(["a cat"], load_tokenizer(v2=False))

    with pytest.raises(AssertionError, match="clip_skip 9 of 4 layers"):
        encode(_text_encoder("v1"), ids_BN77, 9)

"""Kinds of attention agree; what a device can't do is refused before training."""

import sys

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from transformers import CLIPTextConfig, CLIPTextModel

from engine.attention import enable_gradient_checkpointing, set_attention
from engine.errors import EngineError
from engine.settings import MemorySettings

CPU = torch.device("cpu")


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
    ).train()


def step(unet):
    """Return the prediction and every gradient of one training step."""
    generator = torch.Generator().manual_seed(1)
    latents, states = torch.randn(2, 4, 8, 12, generator=generator), torch.randn(2, 77, 16, generator=generator)
    unet.zero_grad()
    prediction = unet(latents, torch.tensor([1, 900]), states).sample
    prediction.square().mean().backward()
    return [prediction.detach(), *(parameter.grad.clone() for parameter in unet.parameters())]


def test_fused_attention_is_the_default(unet):
    set_attention(unet, MemorySettings(), CPU)

    assert {AttnProcessor2_0} == {type(processor) for processor in unet.attn_processors.values()}


def test_sliced_attention_gives_the_same_prediction_and_gradients(unet):
    set_attention(unet, MemorySettings(sdpa=True), CPU)
    expected = step(unet)

    set_attention(unet, MemorySettings(mem_eff_attn=True), CPU)

    torch.testing.assert_close(step(unet), expected, rtol=1e-4, atol=1e-6)


def kept_scores(unet):
    """Return how many L x L matrices of scores, L = 16 * 16, the forward pass keeps for the backward pass."""
    kept = []

    def note(tensor):
        kept.append(tensor.shape[-2:] == (256, 256))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        unet(torch.zeros(2, 4, 16, 16), torch.tensor([1, 900]), torch.zeros(2, 77, 16))
    return sum(kept)


def test_sliced_attention_keeps_no_scores_for_the_backward_pass(unet):
    unet.set_attn_processor(AttnProcessor())
    assert kept_scores(unet) > 0

    set_attention(unet, MemorySettings(mem_eff_attn=True), CPU)

    assert kept_scores(unet) == 0


@pytest.mark.parametrize("memory", [MemorySettings(), MemorySettings(mem_eff_attn=True)], ids=["sdpa", "sliced"])
def test_gradient_checkpointing_changes_no_gradient(unet, memory):
    set_attention(unet, memory, CPU)
    expected = step(unet)

    enable_gradient_checkpointing(unet)

    torch.testing.assert_close(step(unet), expected)
    assert unet.is_gradient_checkpointing


def test_gradient_checkpointing_of_the_text_encoder_changes_no_gradient(unet):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = CLIPTextConfig(vocab_size=99, bos_token_id=97, eos_token_id=98, **sizes)
    torch.manual_seed(0)
    text_encoder = CLIPTextModel(config).train()
    ids = torch.arange(77)[None]

    def gradients():
        text_encoder.zero_grad()
        text_encoder(ids, output_hidden_states=True).hidden_states[-2].square().sum().backward()
        return {name: p.grad.clone() for name, p in text_encoder.named_parameters() if p.grad is not None}

    expected = gradients()
    enable_gradient_checkpointing(unet, text_encoder)

    torch.testing.assert_close(gradients(), expected)
    assert any(getattr(module, "gradient_checkpointing", False) for module in text_encoder.modules())


def test_xformers_is_refused_where_it_has_no_operator(unet):
    """The CPU is such a place: the refusal is real."""
    with pytest.raises(EngineError, match=r"xformers has no attention for torch.float32 .* on cpu .*sdpa = true"):
        set_attention(unet, MemorySettings(xformers=True), CPU)

    assert {AttnProcessor2_0} == {type(processor) for processor in unet.attn_processors.values()}


def test_missing_xformers_is_named(unet, monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers.ops", None)

    with pytest.raises(EngineError, match=r"xformers can't be loaded .*sdtui\[cuda\]"):
        set_attention(unet, MemorySettings(xformers=True), CPU)

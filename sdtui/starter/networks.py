"""The starter model's networks: SD 1.x block for block, only narrower, so that every rule for SD 1.x applies to them.

Shapes: B pictures, C channels, H rows, W columns.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

Network = Any  # To the type checker a module's part is "Tensor | Module", which has neither weight nor bias.

SCALING_FACTOR = 0.18215  # What every SD 1.x tool multiplies latents by.
NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}

TEXT_WIDTH = 32
# The two channels of each norm group are offset by +1 and -1 ahead of the last norms: their spread is then about 1
# whatever the picture shows, and a flat colour passes the norm nearly linearly, which else would erase it.
ANCHORS_C = torch.tensor([1.0, -1.0]).repeat(32)


def make_vae() -> Network:
    """Return an untrained VAE.

    First and last level are twice as wide as the 32 norm groups that SD 1.x fixes: with one channel a group, the norms
    before latents and pixels would erase every flat colour.
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(64, 32, 64, 64),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=128,
        scaling_factor=SCALING_FACTOR,
    )
    with torch.no_grad():
        _keep_signal(vae)
        vae.encoder.down_blocks[2].downsamplers[0].conv.bias.copy_(ANCHORS_C)
        vae.decoder.up_blocks[3].resnets[0].conv_shortcut.bias.copy_(ANCHORS_C)
        _start_latents(vae)
    return vae


def _start_latents(vae: Network) -> None:
    """Pass the latents through unchanged, with little noise at first."""
    identity = torch.eye(8)[:, :, None, None]
    vae.quant_conv.weight.copy_(identity)
    vae.quant_conv.weight[4:].mul_(0.1)
    nn.init.constant_(vae.quant_conv.bias[4:], -5.0)  # The log variance.
    vae.post_quant_conv.weight.copy_(identity[:4, :4])


def _keep_signal(network: Network) -> None:
    """Start every convolution at unit gain and every residue at zero, or the input arrives at the far end as nothing.

    PyTorch's default loses two thirds of the variance in each of the ten convolutions on the way: after 100 steps the
    VAE's mean squared error is then 0.18, and with this 0.07.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.mul_(3**0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        for last in ("conv2", "proj_out"):
            if hasattr(module, last):
                nn.init.zeros_(getattr(module, last).weight)
    for attention in network.modules():
        if isinstance(attention, Attention) and attention.residual_connection:
            out: Network = attention.to_out[0]
            nn.init.zeros_(out.weight)


class _Shortcut(nn.Module):
    """Stand in for a residual block whose residue is zero."""

    def __init__(self, block: Network) -> None:
        super().__init__()
        self.shortcut = block.conv_shortcut or nn.Identity()

    def forward(self, hidden_BCHW: Tensor, temb: None = None) -> Tensor:  # noqa: ARG002
        shortcut_BCHW: Tensor = self.shortcut(hidden_BCHW)
        return shortcut_BCHW


class OuterBlocks:
    """The VAE's residual blocks of full resolution, taken out while it is trained.

    They cost most of a step, and flat drawings do without them. Their residue being zero from the start, the model
    computes the same once they are put back.
    """

    def __init__(self, vae: Network) -> None:
        self._lists = (vae.encoder.down_blocks[0].resnets, vae.decoder.up_blocks[3].resnets)
        self._blocks = [list(blocks) for blocks in self._lists]
        for blocks, originals in zip(self._lists, self._blocks, strict=True):
            _replace(blocks, [_Shortcut(block) for block in originals])

    def put_back(self) -> None:
        """Restore the blocks to their places."""
        for blocks, originals in zip(self._lists, self._blocks, strict=True):
            _replace(blocks, originals)


def _replace(blocks: nn.ModuleList, others: Sequence[nn.Module]) -> None:
    for index, other in enumerate(others):
        blocks[index] = other


def scale_latents(vae: Network, latents_BCHW: Tensor) -> None:
    """Fold shift and gain into the 1x1 convolutions round the latents: each channel gets mean 0 and std 1 / 0.18215.

    Args:
        vae: Changed in place; what it decodes from its own latents stays the same.
        latents_BCHW: What it encodes typical pictures to.
    """
    mean_C = latents_BCHW.mean(dim=(0, 2, 3))
    gain_C = 1 / (latents_BCHW.std(dim=(0, 2, 3)) * SCALING_FACTOR)
    channels = len(mean_C)
    quant, post = vae.quant_conv, vae.post_quant_conv
    with torch.no_grad():
        quant.weight[:channels] *= gain_C[:, None, None, None]
        quant.bias[:channels] = (quant.bias[:channels] - mean_C) * gain_C
        quant.bias[channels:] += 2 * gain_C.log()
        post.bias += post.weight[:, :, 0, 0] @ mean_C
        post.weight /= gain_C[None, :, None, None]


def make_text_encoder() -> Network:
    """Return an untrained text encoder over CLIP's whole vocabulary.

    The words' vectors stay as drawn, wide enough to tell apart: a word never trained on then reaches the UNet as
    clearly as a known one, and fine-tuning the UNet alone can give it a meaning.
    """
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    text_encoder = CLIPTextModel(config)
    words: Network = text_encoder.get_input_embeddings()
    nn.init.normal_(words.weight, std=0.1)
    words.requires_grad_(False)
    return text_encoder


def make_unet() -> Network:
    """Return an untrained UNet."""
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 64, 64, 32),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=32,
    )
    with torch.no_grad():
        _keep_signal(unet)
        unet.up_blocks[3].resnets[2].conv_shortcut.bias.copy_(ANCHORS_C)
        nn.init.zeros_(unet.conv_out.weight)
    return unet

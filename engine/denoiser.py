"""The one module that holds all that gets gradients, so that accelerate can wrap it whole.

Dimension key: B images, C latent channels, H x W latent size, N chunks of 77 tokens, L joined tokens, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.text import encode


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conditioning:
    """What a batch is conditioned on: states encoded before, or token ids for a text encoder that is trained."""

    states_BLD: Tensor | None = None
    ids_BN77: Tensor | None = None
    weights_BN77: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> "Conditioning":
        """Return the conditioning on a device, states and weights in `dtype`."""
        return Conditioning(
            states_BLD=None if self.states_BLD is None else self.states_BLD.to(device, dtype, non_blocking=True),
            ids_BN77=None if self.ids_BN77 is None else self.ids_BN77.to(device, non_blocking=True),
            weights_BN77=None if self.weights_BN77 is None else self.weights_BN77.to(device, non_blocking=True),
        )


class Denoiser(nn.Module):
    """UNet, with the text encoder in front of it where that is trained too, or the hypernetwork attached to it."""

    def __init__(
        self,
        unet: nn.Module,
        text_encoder: nn.Module | None,
        clip_skip: int | None,
        hypernetwork: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.hypernetwork = hypernetwork
        self._clip_skip = clip_skip

    def forward(self, noisy_BCHW: Tensor, timesteps_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the model's prediction (B, C, H, W)."""
        states_BLD = conditioning.states_BLD
        if states_BLD is None:
            assert self.text_encoder is not None
            assert conditioning.ids_BN77 is not None
            states_BLD = encode(
                self.text_encoder, conditioning.ids_BN77, self._clip_skip, weights_BN77=conditioning.weights_BN77
            )
        prediction_BCHW: Tensor = self.unet(noisy_BCHW, timesteps_B, states_BLD, return_dict=False)[0]
        return prediction_BCHW

    def parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the trained parts by name."""
        if self.hypernetwork is not None:
            yield "hypernetwork", self.hypernetwork
            return
        yield "unet", self.unet
        if self.text_encoder is not None:
            yield "text_encoder", self.text_encoder

"""Stable Diffusion 1.x and 2.x: loaded from any of their forms, saved in any.

Dimension key: B images, H x W pixels (or latent size), C channels, L text positions, D text width.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from engine.errors import safe_text
from engine.models.configs import Config, model_config, scheduler_config
from engine.models.hub import Progress, find_model
from engine.models.inspect import PredictionType, describe, resolved_prediction, trainable_family
from engine.models.keys import Family, Parts, normalised_text
from engine.models.lazy import LazyTensor, lazy
from engine.models.modules import loaded_module
from engine.models.saving import Saveable, save_model
from engine.models.source import PART_NAMES, ModelSource, open_source, with_vae
from engine.resources import TOKENIZER
from engine.tokens import ClipTokenizer, load_tokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StableDiffusion:
    """A loaded model: its networks, on the CPU in evaluation mode, and what is known of it.

    `scheduler` holds the noise schedule in diffusers' words. `warnings` are for the user to see.
    A part whose parameters require gradients is saved from memory, one that does not from its source: at first only
    the UNet's do.
    """

    family: Family
    unet: nn.Module
    text_encoder: nn.Module
    vae: nn.Module
    tokenizer: ClipTokenizer
    prediction_type: PredictionType
    scheduler: Config
    configs: Mapping[str, Config]
    source: ModelSource
    warnings: tuple[str, ...]

    @classmethod
    def load(
        cls,
        source: str,
        *,
        vae: str | None = None,
        v2: bool | None = None,
        v_parameterization: bool | None = None,
        dtype: torch.dtype = torch.float32,
        progress: Progress | None = None,
    ) -> "StableDiffusion":
        """Load a model from a file, a diffusers folder or a hub id; local paths never touch the network.

        Args:
            source: .safetensors, .ckpt, folder, `owner/name` or `owner/name:revision`.
            vae: Another VAE to use: a VAE or a whole model, in any of these forms.
            v2: What the user says of the family; None takes the file's word.
            v_parameterization: Whether the model predicts v; needed for SD 2.x files that don't tell.
            dtype: Precision of the weights in memory.
            progress: Hears of downloads: file name, number, count.

        Raises:
            EngineError: It is missing, damaged, unsafe, another kind of model, or contradicts v2.
        """
        opened = open_source(find_model(source, progress))
        if vae:
            opened = with_vae(opened, find_model(vae, progress, is_vae=True))
        info = describe(opened)
        family = trainable_family(info, v2)
        prediction_type, warnings = resolved_prediction(info, v_parameterization)
        configs = part_configs(opened, family, prediction_type)
        modules = {part: loaded_module(part, configs[part], opened.parts[part], dtype) for part in PART_NAMES}
        modules["text_encoder"].requires_grad_(requires_grad=False)
        modules["vae"].requires_grad_(requires_grad=False)
        return cls(
            family=family,
            unet=modules["unet"],
            text_encoder=modules["text_encoder"],
            vae=modules["vae"],
            tokenizer=load_tokenizer(v2=family == "sd2", folder=tokenizer_folder(opened)),
            prediction_type=prediction_type,
            scheduler={
                **scheduler_config(family, opened.configs.get("scheduler", {})),
                "prediction_type": prediction_type,
            },
            configs=configs,
            source=opened,
            warnings=(*info.warnings, *warnings),
        )

    @property
    def v2(self) -> bool:
        """Whether this is SD 2.x."""
        return self.family == "sd2"

    @property
    def latent_scale(self) -> float:
        """What latents are multiplied by for the UNet: 0.18215."""
        return float(self.configs["vae"]["scaling_factor"])

    @torch.no_grad()
    def encode_images(self, pixels_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latents' distribution, float32 (B, 4, H/8, W/8), unscaled.

        Args:
            pixels_BHWC: RGB, uint8.
        """
        parameter = next(self.vae.parameters())
        pixels_BCHW = pixels_BHWC.to(parameter.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        posterior = cast("Any", self.vae).encode(pixels_BCHW.to(parameter.dtype)).latent_dist
        return posterior.mean.float(), posterior.std.float()

    def predict(self, latents_BCHW: Tensor, timesteps_B: Tensor, states_BLD: Tensor) -> Tensor:
        """Return the UNet's output (B, 4, H/8, W/8) for scaled, noisy latents."""
        output: Tensor = self.unet(latents_BCHW, timesteps_B, states_BLD, return_dict=False)[0]
        return output

    def save(
        self,
        path: Path,
        save_model_as: str,
        *,
        save_precision: str | None = None,
        metadata: Mapping[str, str] | None = None,
        counts: tuple[int, int] = (0, 0),
        weights: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        """Write the model; see `engine.models.saving.save_model`.

        Args:
            path: The file, or the folder for the diffusers formats.
            save_model_as: "ckpt", "safetensors", "diffusers" or "diffusers_safetensors".
            save_precision: "float", "fp16" or "bf16"; None writes trained parts as they are in memory and the others
                as in the source.
            metadata: For the header of .safetensors.
            counts: (epoch, step), which a .ckpt adds to those of the .ckpt that training started from.
            weights: Tensors to write in place of a part's own, by part and state_dict name: averaged weights.

        Raises:
            EngineError: A weight is not finite, or the disk refuses; what was at `path` is still there.
        """
        model = Saveable(
            family=self.family,
            prediction_type=self.prediction_type,
            parts=self._parts_to_save(weights or {}),
            configs=self.configs,
            scheduler=self.scheduler,
            tokenizer=tokenizer_folder(self.source),
            metadata=metadata or {},
            counts=_added(counts, self.source.metadata),
        )
        save_model(model, path, save_model_as, save_precision)

    def _parts_to_save(self, weights: Mapping[str, Mapping[str, Tensor]]) -> Parts[LazyTensor]:
        modules = {"unet": self.unet, "text_encoder": self.text_encoder, "vae": self.vae}
        is_intact = self.source.is_intact()
        if not is_intact:
            shown = safe_text(str(self.source.path))
            _log.warning("%s was changed since training began: what only it holds is not in the saved model", shown)
        parts: Parts[LazyTensor] = {"other": self.source.parts["other"] if is_intact else {}}
        for part, module in modules.items():
            is_trained = any(parameter.requires_grad for parameter in module.parameters())
            if part in weights or is_trained or not is_intact:
                tensors = {**module.state_dict(), **weights.get(part, {})}
                named = normalised_text(tensors) if part == "text_encoder" else tensors
                parts[part] = {name: lazy(tensor) for name, tensor in named.items()}
            else:
                parts[part] = self.source.parts[part]
        return parts


def part_configs(source: ModelSource, family: Family, prediction_type: PredictionType) -> dict[str, Config]:
    """Return the configs of "unet", "vae" and "text_encoder".

    SD 2.1 768-v overflows in fp16 attention, so v-prediction models of 2.x compute it in float32 unless their own
    config says otherwise; 2.0 can't be told from 2.1 and takes no harm.
    """
    stated = dict(source.configs)
    if family == "sd2" and source.layout == "single_file" and prediction_type == "v_prediction":
        stated["unet"] = {"upcast_attention": True, "sample_size": 96, **stated.get("unet", {})}
    return {part: model_config(part, source.parts[part], family, stated.get(part, {})) for part in PART_NAMES}


def tokenizer_folder(source: ModelSource) -> Path:
    """Return where the model's tokenizer is: in its own folder if that has one, else the shipped one."""
    own = source.path / "tokenizer"
    return own if (own / "vocab.json").exists() and (own / "merges.txt").exists() else TOKENIZER


def _added(counts: tuple[int, int], metadata: Mapping[str, str]) -> tuple[int, int]:
    before = [metadata.get(key, "") for key in ("epoch", "global_step")]
    epoch, step = (int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0 for text in before)
    return counts[0] + epoch, counts[1] + step

"""Sample pictures during training: drawn as a pipeline would draw them, written with what they show.

Dimension key: C latent channels, H x W latent height and width, L text positions, D text width; 2 = without and with
the prompt, for classifier-free guidance.
"""

import inspect
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

from engine.diffusion import Schedule
from engine.models.atomic import atomic_file
from engine.prompts import SamplePrompt
from engine.rng import seed_for
from engine.samplers import make_sampler
from engine.setting_types import SamplerName
from engine.text import encode, token_tensors
from engine.tokens import ClipTokenizer

_log = logging.getLogger(__name__)


class SampledModel(Protocol):
    """What a model offers for sampling; see `engine.models.sd`."""

    @property
    def unet(self) -> nn.Module:
        """The UNet, on the device of the run."""

    @property
    def text_encoder(self) -> nn.Module:
        """The text encoder, on any device."""

    @property
    def vae(self) -> nn.Module:
        """The VAE, on any device."""

    @property
    def tokenizer(self) -> ClipTokenizer:
        """The tokenizer of the text encoder."""

    @property
    def latent_scale(self) -> float:
        """What latents are multiplied by for the UNet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewOptions:
    """How samples are drawn in this run, and where they go."""

    folder: Path
    output_name: str
    seed: int
    sampler: SamplerName
    """For prompts that name none."""
    schedule: Schedule
    """The one of training: its betas and prediction type."""
    device: torch.device
    autocast: torch.dtype | None = None
    """Half precision of the UNet and text encoder, None for none."""
    clip_skip: int | None = None
    max_token_length: int | None = None
    weighted_captions: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledImage:
    """A sample that was written."""

    path: Path
    prompt: str
    index: int
    """Position in the prompt file, or after it for a prompt that was asked for during the run."""
    seed: int
    seconds: float


def sample_images(
    model: SampledModel,
    prompts: Sequence[SamplePrompt],
    options: PreviewOptions,
    *,
    step: int,
    epoch: int | None = None,
    first_index: int = 0,
) -> Iterator[SampledImage]:
    """Draw and write a picture for each prompt, yielding each as soon as it is there; may be stopped between two.

    Named after the epoch where one is given, else after the step. A prompt without a seed has the same one at every
    step, so that pictures can be compared; no global generator is touched. The first prompt counts as `first_index`.

    Raises:
        EngineError: A picture can't be written.
    """
    with _evaluating(model.unet, model.text_encoder), _moved(model.vae, options.device):
        for index, prompt in enumerate(prompts, start=first_index):
            began = time.perf_counter()
            seed = seed_for(options.seed, "sample", index) % 2**32 if prompt.seed is None else prompt.seed
            image = draw(model, prompt, options, seed=seed)
            moment = f"{step:06d}" if epoch is None else f"e{epoch:06d}"
            path = options.folder / f"{options.output_name}_{moment}_{index:02d}_{seed}.png"
            _write(image, path, {**_description(prompt, options), "seed": seed, "step": step})
            yield SampledImage(
                path=path, prompt=prompt.prompt, index=index, seed=seed, seconds=time.perf_counter() - began
            )


@torch.no_grad()
def draw(model: SampledModel, prompt: SamplePrompt, options: PreviewOptions, *, seed: int) -> Image.Image:
    """Return the picture of a prompt; UNet and VAE are on the options' device."""
    with torch.autocast(options.device.type, dtype=options.autocast, enabled=options.autocast is not None):
        states_2LD = _conditioning(model, prompt, options)
        latents_1CHW = _denoise(model.unet, states_2LD, prompt, options, torch.Generator().manual_seed(seed))
    vae: Any = model.vae
    latents_1CHW = latents_1CHW.to(next(vae.parameters()).dtype) / model.latent_scale
    pixels_CHW = vae.decode(latents_1CHW, return_dict=False)[0][0].float()
    if not pixels_CHW.isfinite().all():
        _log.warning("the sample of %r is not finite and shows black where it is not", prompt.prompt)
    pixels_HWC = ((pixels_CHW.nan_to_num(nan=-1.0).clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0)
    return Image.fromarray(pixels_HWC.to(torch.uint8).cpu().numpy())


def _conditioning(model: SampledModel, prompt: SamplePrompt, options: PreviewOptions) -> Tensor:
    """Encode the negative prompt and the prompt (2, L, D), or where there is no guidance the prompt alone."""
    captions = [prompt.negative_prompt, prompt.prompt] if prompt.scale > 1 else [prompt.prompt]
    ids_BN77, weights_BN77 = token_tensors(
        captions, model.tokenizer, options.max_token_length, weighted=options.weighted_captions
    )
    states = encode(model.text_encoder, ids_BN77, options.clip_skip, weights_BN77=weights_BN77)
    return states.to(options.device, torch.float32)


def _denoise(
    unet: nn.Module, states_2LD: Tensor, prompt: SamplePrompt, options: PreviewOptions, generator: torch.Generator
) -> Tensor:
    """Return the latents (1, C, H, W) that the sampler arrives at; noise is drawn on the CPU, the same everywhere."""
    sampler = make_sampler(prompt.sample_sampler or options.sampler, options.schedule, prompt.sample_steps)
    extra = {"generator": generator} if "generator" in inspect.signature(sampler.step).parameters else {}
    shape = (1, 4, prompt.height // 8, prompt.width // 8)
    latents_1CHW = torch.randn(shape, generator=generator).to(options.device) * sampler.init_noise_sigma
    for timestep in sampler.timesteps:
        input_1CHW = sampler.scale_model_input(latents_1CHW, timestep)
        prediction = unet(input_1CHW.expand(len(states_2LD), -1, -1, -1), timestep, states_2LD, return_dict=False)[0]
        plain, *guided = prediction.float().split(1)
        guidance = plain + prompt.scale * (guided[0] - plain) if guided else plain
        latents_1CHW = sampler.step(guidance, timestep, latents_1CHW, return_dict=False, **extra)[0]
    final_1CHW: Tensor = latents_1CHW.float()
    return final_1CHW


def _description(prompt: SamplePrompt, options: PreviewOptions) -> dict[str, object]:
    return {
        "prompt": prompt.prompt,
        "negative_prompt": prompt.negative_prompt,
        "sampler": prompt.sample_sampler or options.sampler,
        "sample_steps": prompt.sample_steps,
        "scale": prompt.scale,
    }


def _write(image: Image.Image, path: Path, description: dict[str, object]) -> None:
    texts = PngInfo()
    for key, value in description.items():
        texts.add_itxt(key, str(value))
    with atomic_file(path) as file:
        image.save(file, format="PNG", pnginfo=texts)


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """Switch dropout and gradient checkpointing off, and back on where they were."""
    were_training = [module for module in modules if module.training]
    for module in were_training:
        module.eval()
    try:
        yield
    finally:
        for module in were_training:
            module.train()


@contextmanager
def _moved(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Have a module on the device for the block: with cached latents the VAE waits on the CPU."""
    home = next(module.parameters()).device
    module.to(device)
    try:
        yield
    finally:
        module.to(home)

"""Build the starter model: `python -m sdtui.starter.build OUT` draws pictures and trains a tiny SD 1.x on them.

Every draw follows a fixed seed, so one machine builds the same model again.
Shapes: B pictures, C channels, H rows, W columns, L tokens, D text width. Pictures are RGB in [-1, 1].
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.rng import python_rng, seed_for
from engine.tokens import load_tokenizer, token_ids
from sdtui.starter import draw, networks
from sdtui.starter.networks import NOISE_SCHEDULE, SCALING_FACTOR, Network

SQUARE = (128, 128)
OBLONG = ((64, 192), (192, 64), (64, 256), (256, 64), (96, 160), (160, 96))
VAE_LR = 1.6e-3
UNET_LR = 1e-3
UNET_BATCH = 8
KL_WEIGHT = 3e-5
MAX_WEIGHT = 50.0
TEXT_LR = 3e-3
TEXT_BATCH = 64
CAPTION_WORDS = [2, 3, 6]  # Where colour, shape and background stand among the tokens of a caption.
WORD_FACTS = 8
PREVIEW = [
    "a red circle on a blue background",
    "a yellow star on a black background",
    "a green triangle on a white background",
    "a purple square on an orange background",
    "a blue star on a yellow background",
]
COMPONENTS = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
}


class Descent:
    """AdamW on a one-cycle learning rate, with a line of progress now and then."""

    def __init__(self, name: str, models: list[Network], *, lr: float, steps: int) -> None:
        self._name, self._steps, self._step = name, steps, 0
        self._trained = [p for model in models for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=lr, weight_decay=1e-3)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, lr, total_steps=steps, pct_start=0.1)
        self._started, self._average = time.monotonic(), 0.0

    def descend(self, loss: Tensor) -> None:
        """Take one optimizer step."""
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._schedule.step()
        self._average += (loss.item() - self._average) * max(0.02, 1 / (self._step + 1))
        if self._step % 100 == 0 or self._step == self._steps - 1:
            seconds = time.monotonic() - self._started
            print(f"{self._name} step {self._step:5d}  loss {self._average:.4f}  {seconds:4.0f} s", flush=True)
        self._step += 1


def pixels(pictures: list[Image.Image]) -> Tensor:
    """Return pictures of one size as float32 (B, 3, H, W)."""
    pixels_BHWC = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures]) / 127.5 - 1
    return torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def train_vae(vae: Network, steps: int) -> None:
    """Train on squares of 64 pixels, and for the last quarter of the steps on whole pictures of 128."""
    vae.train().to(memory_format=torch.channels_last)
    descent = Descent("vae", [vae], lr=VAE_LR, steps=steps)
    generator = torch.Generator().manual_seed(seed_for("starter", "vae"))
    for step in range(steps):
        side, batch = (64, 16) if step < 0.75 * steps else (128, 6)
        rng = python_rng("starter", "vae", step)
        descent.descend(_vae_loss(vae, pixels([_vae_picture(rng, side) for _ in range(batch)]), generator))
    vae.eval().requires_grad_(False)


def _vae_picture(rng: random.Random, side: int) -> Image.Image:
    """Draw a doodle, a plain shape or the concept, and cut a square of `side` pixels from it."""
    size = rng.choice((SQUARE, (side, side)))
    draw_one = rng.choice((draw.draw_doodle, draw.draw_shape, draw.draw_concept))
    left, top = (rng.randint(0, length - side) for length in size)
    return draw_one(rng, size).picture.crop((left, top, left + side, top + side))


def _vae_loss(vae: Network, pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Count the error of the pixels and of the differences between neighbours: blurred edges are what the eye minds."""
    posterior = vae.encode(pixels_BCHW).latent_dist
    error_BCHW = vae.decode(posterior.sample(generator)).sample - pixels_BCHW
    edges = error_BCHW.diff(dim=2).abs().mean() + error_BCHW.diff(dim=3).abs().mean()
    divergence = posterior.kl().sum() / pixels_BCHW[:, 0].numel()
    loss: Tensor = error_BCHW.abs().mean() + error_BCHW.square().mean() + edges + KL_WEIGHT * divergence
    return loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Encoded pictures of one size, with the token ids of their captions."""

    latents_BCHW: Tensor
    ids_BL: Tensor


def encode_shapes(vae: Network, count: int) -> list[Examples]:
    """Draw `count` shapes, half of them square, and encode them; the first group is the squares."""
    shares = {SQUARE: count // 2, **dict.fromkeys(OBLONG, count // 2 // len(OBLONG))}
    return [_encode_size(vae, size, share) for size, share in shares.items()]


def _encode_size(vae: Network, size: draw.Size, count: int) -> Examples:
    drawings = [draw.draw_shape(python_rng("starter", "shape", size, index), size) for index in range(count)]
    batches = [drawings[start : start + 16] for start in range(0, count, 16)]
    with torch.no_grad():
        latents = [vae.encode(pixels([drawing.picture for drawing in batch])).latent_dist.mean for batch in batches]
    return Examples(
        latents_BCHW=torch.cat(latents).contiguous(), ids_BL=_ids([drawing.caption for drawing in drawings])
    )


def _ids(captions: list[str]) -> Tensor:
    tokenizer = load_tokenizer(v2=False)
    return torch.tensor([token_ids(caption, tokenizer)[0] for caption in captions])


def _batches(examples: list[Examples], steps: int) -> Iterator[Examples]:
    for step in range(steps):
        rng = python_rng("starter", "unet", step)
        group = rng.choices(examples, weights=[len(group.ids_BL) for group in examples])[0]
        rows = torch.tensor(rng.sample(range(len(group.ids_BL)), UNET_BATCH))
        yield Examples(latents_BCHW=group.latents_BCHW[rows] * SCALING_FACTOR, ids_BL=group.ids_BL[rows])


def train_text_encoder(text_encoder: Network, steps: int) -> None:
    """Teach every position behind the caption which words stood for colour, shape and background, then freeze it.

    Half of the words are drawn from the whole vocabulary, so what is learned is to pass words on, whichever they are:
    a word that comes up only in fine-tuning reaches the UNet too. Left to the UNet's loss, a text encoder so small
    learns nothing: 68 of the 77 positions are padding, and at first the attention weighs all of them alike.
    """
    words_VD = text_encoder.get_input_embeddings().weight
    read = nn.Linear(words_VD.shape[1], len(CAPTION_WORDS) * WORD_FACTS)
    asked_DF = torch.randn((words_VD.shape[1], WORD_FACTS)) / words_VD.std() / words_VD.shape[1] ** 0.5
    descent = Descent("text", [text_encoder.train(), read], lr=TEXT_LR, steps=steps)
    ids_BL = _ids(
        [draw.draw_shape(python_rng("starter", "text", index), (8, 8)).caption for index in range(TEXT_BATCH)]
    )
    for _ in range(steps):
        changed_BL = ids_BL.clone()
        changed_BL[:, CAPTION_WORDS] = _some_replaced(ids_BL[:, CAPTION_WORDS])
        facts_BF = (words_VD[changed_BL[:, CAPTION_WORDS]] @ asked_DF).flatten(1)
        states_BLD = text_encoder(changed_BL).last_hidden_state[:, max(CAPTION_WORDS) + 1 :]
        descent.descend((read(states_BLD) - facts_BF[:, None]).square().mean())
    text_encoder.eval().requires_grad_(False)


def _some_replaced(ids_BL: Tensor) -> Tensor:
    others_BL = torch.randint(0, 49406, ids_BL.shape)
    return torch.where(torch.rand(ids_BL.shape) < 0.5, others_BL, ids_BL)


def train_unet(unet: Network, text_encoder: Network, examples: list[Examples], steps: int) -> None:
    """Train the UNet to predict noise; every tenth caption is dropped, so that guidance works."""
    descent = Descent("unet", [unet.train()], lr=UNET_LR, steps=steps)
    scheduler = DDPMScheduler.from_config(NOISE_SCHEDULE)
    generator = torch.Generator().manual_seed(seed_for("starter", "unet"))
    empty_L = _ids([""])[0]
    # The caption helps only where noise hides the picture, and there the plain loss is all but nil: so small a UNet
    # would never learn to read. Divided by the signal-to-noise ratio, all noise levels count about alike.
    weights_T = (1 / scheduler.alphas_cumprod - 1).clamp(1, MAX_WEIGHT)
    for batch in _batches(examples, steps):
        batch.ids_BL[torch.rand(UNET_BATCH, generator=generator) < 0.1] = empty_L
        noise_BCHW = torch.randn(batch.latents_BCHW.shape, generator=generator)
        timesteps_B = torch.randint(0, 1000, (UNET_BATCH,), generator=generator)
        noisy_latents_BCHW = scheduler.add_noise(batch.latents_BCHW, noise_BCHW, timesteps_B)
        states_BLD = text_encoder(batch.ids_BL).last_hidden_state
        model_pred_BCHW = unet(noisy_latents_BCHW, timesteps_B, states_BLD).sample
        loss_B = (model_pred_BCHW - noise_BCHW).square().mean(dim=(1, 2, 3))
        descent.descend((loss_B * weights_T[timesteps_B]).mean())
    unet.eval()


@torch.no_grad()
def sample(vae: Network, unet: Network, text_encoder: Network, captions: list[str]) -> Tensor:
    """Return one 128 x 128 picture for each caption, by 25 steps of DDIM with guidance 4."""
    scheduler = DDIMScheduler.from_config(NOISE_SCHEDULE)
    scheduler.set_timesteps(25)
    states_BLD = text_encoder(_ids([*captions, *[""] * len(captions)])).last_hidden_state
    generator = torch.Generator().manual_seed(seed_for("starter", "sample"))
    latents_BCHW = torch.randn((len(captions), 4, 16, 16), generator=generator)
    for timestep in scheduler.timesteps:
        captioned_BCHW, empty_BCHW = unet(latents_BCHW.repeat(2, 1, 1, 1), timestep, states_BLD).sample.chunk(2)
        guided_BCHW = empty_BCHW + 4 * (captioned_BCHW - empty_BCHW)
        latents_BCHW = scheduler.step(guided_BCHW, timestep, latents_BCHW).prev_sample
    decoded_BCHW: Tensor = vae.decode(latents_BCHW / SCALING_FACTOR).sample
    return decoded_BCHW.clamp(-1, 1)


def write_preview(path: Path, pixels_BCHW: Tensor) -> None:
    """Write pictures side by side, for a person to look at."""
    row_HWC = torch.cat(list(pixels_BCHW), dim=2).permute(1, 2, 0)
    Image.fromarray(((row_HWC + 1) * 127.5).round().byte().numpy()).save(path)


def save(folder: Path, vae: Network, unet: Network, text_encoder: Network) -> None:
    """Write a diffusers folder in half precision, without the tokenizer that every SD 1.x shares.

    The text encoder's keys carry the `text_model.` of the published SD 1.x, which transformers no longer writes.
    """
    vae.half().save_pretrained(folder / "vae")
    unet.half().save_pretrained(folder / "unet")
    text_encoder.half().config.save_pretrained(folder / "text_encoder")
    tensors = {
        f"text_model.{key}": value for key, value in text_encoder.state_dict().items() if "position_ids" not in key
    }
    save_file(tensors, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    DDIMScheduler.from_config(NOISE_SCHEDULE).save_pretrained(folder / "scheduler")
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **COMPONENTS}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder to write the model to")
    parser.add_argument("--vae_steps", type=int, default=1500)
    parser.add_argument("--text_steps", type=int, default=600)
    parser.add_argument("--unet_steps", type=int, default=1600)
    parser.add_argument("--pictures", type=int, default=1600, help="how many shapes to draw for the UNet")
    return parser.parse_args()


def main() -> None:
    """Train the VAE, encode the shapes, train UNet and text encoder, save, and sample a preview."""
    arguments = _arguments()
    torch.manual_seed(seed_for("starter", "weights"))
    vae, unet, text_encoder = networks.make_vae(), networks.make_unet(), networks.make_text_encoder()
    outer = networks.OuterBlocks(vae)
    train_vae(vae, arguments.vae_steps)
    train_text_encoder(text_encoder, arguments.text_steps)
    networks.scale_latents(vae, encode_shapes(vae, 240)[0].latents_BCHW)
    train_unet(unet, text_encoder, encode_shapes(vae, arguments.pictures), arguments.unet_steps)
    outer.put_back()
    write_preview(arguments.out.with_suffix(".png"), sample(vae, unet, text_encoder, PREVIEW))
    save(arguments.out, vae, unet, text_encoder)


if __name__ == "__main__":
    main()

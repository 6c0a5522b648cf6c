"""What the training loop adds to bare forward + backward + clip + fused AdamW, on a UNet of about 30 M parameters.

Both sides run in turns in one process, on the same UNet, with the same latents and states; CPU seconds of the whole
process count (loader thread, events and JSON included), since a shared machine's wall clock does not.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.nn import functional

from engine.control import Control
from engine.denoiser import Conditioning, Denoiser
from engine.diffusion import make_schedule
from engine.events import Event, EventLog, Step
from engine.loading import LoadedBatch
from engine.optim import build_optimizer
from engine.parts import Parts
from engine.plan import Batch
from engine.run import RunFolder
from engine.settings import Settings
from engine.telling import Teller
from engine.train import train

ROUNDS, STEPS = 4, 5
LATENTS = (2, 4, 32, 32)
TOKENS, WIDTH = 77, 768
WANTED = 0.03


def make_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32, block_out_channels=(64, 128, 224, 224), cross_attention_dim=WIDTH, attention_head_dim=8
    )
    unet.set_attn_processor(AttnProcessor2_0())
    return unet.train()


def bare_seconds(unet: UNet2DConditionModel, optimizer: torch.optim.Optimizer) -> list[float]:
    """The least a step can be: nothing is drawn, logged or loaded."""
    noisy, target = torch.randn(LATENTS), torch.randn(LATENTS)
    states, timesteps = torch.randn(LATENTS[0], TOKENS, WIDTH), torch.tensor([10, 500])
    parameters = list(unet.parameters())
    seconds = []
    for _ in range(STEPS):
        began = time.process_time()
        prediction = unet(noisy, timesteps, states, return_dict=False)[0]
        functional.mse_loss(prediction, target).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.process_time() - began)
    return seconds


class StepClock:
    """CPU seconds between one step's event and the next."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last: float | None = None

    def emit(self, event: Event) -> None:
        if isinstance(event, Step):
            now = time.process_time()
            if self._last is not None:
                self.seconds.append(now - self._last)
            self._last = now

    def close(self) -> None:
        pass


def loop_seconds(parts: Parts, folder: Path) -> list[float]:
    """Steps of the real loop, events written to disk."""
    log, clock = EventLog(folder), StepClock()
    train(parts, tell=Teller([log, clock]), control=Control(RunFolder(folder)))
    log.close()
    return clock.seconds


def make_parts(unet: UNet2DConditionModel, folder: Path) -> Parts:
    settings = Settings()
    accelerator = Accelerator()
    denoiser = Denoiser(unet, None, None)
    optimizer = build_optimizer(denoiser.parts(), settings.optimizer)
    prepared, wrapped = accelerator.prepare(denoiser, optimizer)
    latents, states = torch.randn(LATENTS), torch.randn(LATENTS[0], TOKENS, WIDTH)

    def load(step: int) -> tuple[LoadedBatch, ...]:
        batch = Batch(bucket=(256, 256), epoch=1, first_position=2 * step, rows=(0, 1), repeats=(0, 0))
        return (LoadedBatch(batch=batch, conditioning=Conditioning(states_BLD=states), latents_BChw=latents),)

    def save(*_: object, **__: object) -> None:
        (folder / "last.safetensors").write_bytes(b"")

    plan: Any = SimpleNamespace(steps=STEPS + 1, steps_per_epoch=STEPS + 1, epochs=1, num_images=2)
    model: Any = SimpleNamespace(family="sd1", prediction_type="epsilon", latent_scale=0.18215, save=save)
    source: Any = SimpleNamespace(load=load)
    plan.config = SimpleNamespace(datasets=[SimpleNamespace(resolution=(256, 256))])
    return Parts(
        settings=settings,
        plan=plan,
        accelerator=accelerator,
        model=model,
        denoiser=prepared,
        optimizer=wrapped,
        schedule=make_schedule("epsilon"),
        source=source,
        prompts=(),
        preview=SimpleNamespace(folder=folder / "sample"),  # type: ignore[arg-type]
        dtype=torch.float32,
    )


def main() -> None:
    unet = make_unet()
    millions = sum(parameter.numel() for parameter in unet.parameters()) / 1e6
    bare: list[float] = []
    loop: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-6, fused=True)
        parts = make_parts(unet, folder)
        bare_seconds(unet, optimizer)
        for _ in range(ROUNDS):
            bare += bare_seconds(unet, optimizer)
            loop += loop_seconds(parts, folder)
    low, high = statistics.median(bare), statistics.median(loop)
    print(f"UNet of {millions:.1f} M parameters, batch {LATENTS[0]}, latents {LATENTS[2]}x{LATENTS[3]}")
    print(f"bare step     {low * 1e3:8.1f} ms CPU")
    print(f"training loop {high * 1e3:8.1f} ms CPU   overhead {high / low - 1:+.1%}   (wanted <= {WANTED:.0%})")


if __name__ == "__main__":
    main()

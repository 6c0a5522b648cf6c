"""A model and pictures so small that a whole run takes a second, and helpers to start one and to read what it left."""

import atexit
import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from engine.events import Event, Step, read_events
from engine.headless import run_engine
from engine.settings_io import LoadedSettings, load_run

GOLDEN = Path(__file__).parents[1] / "golden"
UNET = "model.diffusion_model."
TEXT = "cond_stage_model.transformer."
CAPTIONS = ["a red cat, sitting, (soft:1.3) light", "a dog", "red, green, blue, yellow, white", "a cup", "", "one, two"]
SIZES = [(64, 64), (70, 66), (128, 64), (130, 70), (64, 128), (64, 64), (66, 64)]
BATCHES = 4
"""Batches of two in an epoch of the seven pictures: two whole ones and two short ones."""


def new_folder() -> Path:
    """Return a folder that lives as long as the process, for what several modules share."""
    folder = Path(tempfile.mkdtemp(prefix="sdtui-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def write_pictures(folder: Path) -> Path:
    """Write seven pictures of three shapes, so that buckets leave short batches; one has no caption."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    for number, (width, height) in enumerate(SIZES):
        coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8))
        coarse.resize((width, height)).save(folder / f"{number}.png")
        if number < len(CAPTIONS):
            (folder / f"{number}.caption").write_text(CAPTIONS[number], encoding="utf-8")
    return folder


@cache
def tiny_model() -> Path:
    """Write a diffusers folder of the true architecture, one layer a level, with random weights; 5 MB."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = new_folder() / "model"
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    vae_levels = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    modules = {
        "unet": UNet2DConditionModel(
            block_out_channels=(16, 16, 16, 16), layers_per_block=1, cross_attention_dim=16, norm_num_groups=8
        ),
        "vae": AutoencoderKL(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, **vae_levels),
        "text_encoder": CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_act="quick_gelu", **text)),
    }
    for name, module in modules.items():
        module.save_pretrained(folder / name)
    shutil.copytree(GOLDEN / "tiny_sd1" / "scheduler", folder / "scheduler")
    shutil.copy(GOLDEN / "tiny_sd1" / "model_index.json", folder)
    return folder


@cache
def pictures() -> Path:
    """Write the pictures once; no test changes them."""
    return write_pictures(new_folder() / "pictures")


def write_run(folder: Path, *, pictures: Path, model: Path | str, **values: object) -> Path:
    """Write dataset.toml and run.toml into a folder and return the latter; the run goes to `folder`/out."""
    folder.mkdir(parents=True, exist_ok=True)
    subset = values.pop("subset", {})
    (folder / "dataset.toml").write_text(
        "[general]\nenable_bucket = true\n[[datasets]]\nresolution = [128, 64]\nbatch_size = 2\nmin_bucket_reso = 64\n"
        f"max_bucket_reso = 128\n[[datasets.subsets]]\nimage_dir = {_toml(str(pictures))}\n"
        + "".join(f"{name} = {_toml(value)}\n" for name, value in subset.items())
    )
    chosen = {
        "pretrained_model_name_or_path": str(model),
        "dataset_config": "dataset.toml",
        "output_dir": "out",
        "cache_dir": "cache",
        "max_train_steps": 2,
        "learning_rate": 1e-3,
        "cache_latents": True,
        **values,
    }
    path = folder / "run.toml"
    lines = [f"{name} = {_toml(value)}" for name, value in chosen.items() if value is not None]
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: object) -> str:
    return json.dumps(value)  # Strings, numbers, booleans and flat lists are the same in TOML.


@dataclass(frozen=True)
class Run:
    """A finished run."""

    code: int
    folder: Path

    @property
    def events(self) -> list[Event]:
        return read_events(self.folder / "events.jsonl")

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]

    @property
    def steps(self) -> list[Step]:
        return [event for event in self.events if isinstance(event, Step)]

    @property
    def losses(self) -> list[float]:
        return [step.loss for step in self.steps]

    def weights(self, name: str = "last.safetensors") -> dict[str, torch.Tensor]:
        return load_file(self.folder / name)


def loaded_run(folder: Path, **values: object) -> LoadedSettings:
    """Write and read a run of the tiny model on the tiny pictures."""
    return load_run(write_run(folder, **{"pictures": pictures(), "model": tiny_model(), **values}))


def go(folder: Path, *, listeners=(), **values: object) -> Run:
    """Train in this process."""
    code = run_engine(loaded_run(folder, **values), listeners=listeners)
    return Run(code, folder / "out")


def same(first, second, prefix=""):
    """Tell whether two models agree bit for bit in all tensors under a prefix."""
    names = [name for name in first if name.startswith(prefix)]
    assert names
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in names)


@cache
def base_run() -> Run:
    """Train six steps, an epoch and a half, once for all tests that compare with them."""
    return go(new_folder(), max_train_steps=6)


@cache
def uncached_run() -> Run:
    """Train the same steps with pictures that are encoded anew each time."""
    return go(new_folder(), max_train_steps=6, cache_latents=False)

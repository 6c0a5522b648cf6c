"""Tiny models and hostile files for the tests of `engine.models`."""

import functools
import json
import shutil
import struct
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from engine.models.lazy import lazy
from engine.models.safetensors_io import open_safetensors, write_safetensors
from engine.models.sd import StableDiffusion

GOLDEN = Path(__file__).parents[2] / "golden"
TINY_SD1 = GOLDEN / "tiny_sd1"
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def golden_json(name):
    return json.loads((GOLDEN / name).read_text("utf-8"))


def make_tiny_sd2(folder):
    """Write tiny_sd2: the tensors of tiny_sd1, 1x1 projections as matrices, configs of its own."""
    for part, stem in STEMS.items():
        (folder / part).mkdir(parents=True)
        name = f"{part}/{stem}.safetensors"
        tensors = load_file(TINY_SD1 / name)
        for key, tensor in tensors.items():
            if part == "unet" and key.endswith(("proj_in.weight", "proj_out.weight")):
                tensors[key] = tensor.reshape(tensor.shape[:2]).contiguous()
        save_file(tensors, folder / name, metadata={"format": "pt"})
    shutil.copyfile(TINY_SD1 / "vae" / "config.json", folder / "vae" / "config.json")
    shutil.copytree(GOLDEN / "tiny_sd2_configs", folder, dirs_exist_ok=True)
    return folder


def write_tensors(path, tensors, metadata=None):
    """Write torch tensors as .safetensors."""
    write_safetensors(path, {name: lazy(tensor) for name, tensor in tensors.items()}, metadata=metadata or {})
    return path


def header_file(path, header, data=b""):
    """Write a .safetensors file of any header, however wrong; a dict or raw bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def fake_model(path, shapes):
    """Write a file of the given names and shapes, all zeros in fp16."""
    return write_tensors(path, {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()})


def probe():
    """Return latents, timesteps and text states to compare two UNets with."""
    generator = torch.Generator().manual_seed(0)
    latents_BCHW = torch.randn(2, 4, 8, 8, generator=generator)
    return latents_BCHW, torch.tensor([3, 700]), torch.randn(2, 77, 16, generator=generator)


@functools.cache
def shared_model(path):
    """Return a loaded model that no test may change: loading takes half a second."""
    return StableDiffusion.load(str(path))


def output_of(model: StableDiffusion):
    with torch.no_grad():
        return model.predict(*probe())


def target(folder, save_model_as, stem="saved"):
    """Return where a model of that format goes."""
    return folder / (stem if save_model_as.startswith("diffusers") else f"{stem}.{save_model_as}")


def single_file(tmp_path, tiny, extra=None, precision="fp16"):
    """Write a single file with more in it than the model."""
    shared_model(tiny).save(tmp_path / "plain.safetensors", "safetensors", save_precision=precision)
    opened = open_safetensors(tmp_path / "plain.safetensors")
    tensors = {name: tensor.tensor() for name, tensor in opened.tensors.items()}
    return write_tensors(tmp_path / "source.safetensors", {**tensors, **(extra or {})}, opened.metadata)

"""A full-size SD 1.5 and SD 2.x: made, loaded, saved and verified; seconds, and memory beyond what must be.

Random weights are written on the spot, in fp16 as models are published, and deleted at the end. Each phase runs in a
process of its own. "anonymous" is memory that belongs to the process alone; mapped files are the page cache's. While
loading, whatever exceeds the final size would be a second copy; while saving, whatever exceeds the loaded model.

    python -m benchmarks full_size                       load, save, verify: about 5 GB of memory
    python benchmarks/bench_full_size.py --train [sd1]   two training steps at 128 px as well: about 16 GB

`--train` takes the command line's whole way: run.toml in, trained model out, verified.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

import psutil

FAMILIES = ("sd1", "sd2")
PHASES = ("save_safetensors", "save_ckpt", "save_folder", "verify")


def anonymous_bytes() -> int:
    """Return the memory that this process holds for itself; without Linux's count, all that is resident."""
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return int(psutil.Process().memory_info().rss)


class PeakMemory:
    """Samples the process's anonymous memory every 5 ms while a block runs."""

    def __enter__(self) -> Self:
        self.before = self.peak = anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._began = time.perf_counter()
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, anonymous_bytes())

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began
        self._stop.set()
        self._thread.join()
        self.after = anonymous_bytes()
        self.peak = max(self.peak, self.after)

    def report(self) -> dict[str, float]:
        return {
            "seconds": self.seconds,
            "held_mb": (self.after - self.before) / 1e6,
            "extra_mb": (self.peak - max(self.before, self.after)) / 1e6,
        }


def make_model(path: Path, family: str) -> None:
    """Write a single file of the published architecture, all values small and random."""
    import torch

    from engine.models.configs import CONFIG_KEY
    from engine.models.keys import to_single_file
    from engine.models.lazy import LazyTensor
    from engine.models.modules import architecture_shapes
    from engine.models.safetensors_io import write_safetensors
    from engine.resources import family_config

    block = (torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02).half()

    def unread(shape: tuple[int, ...]) -> LazyTensor:
        numel = math.prod(shape)
        return LazyTensor(shape=shape, dtype="F16", source=lambda: block.repeat(-(-numel // block.numel()))[:numel])

    parts = {
        part: {name: unread(shape) for name, shape in architecture_shapes(part, family_config(family, part)).items()}
        for part in ("unet", "text_encoder", "vae")
    }
    stated = json.dumps({"scheduler": {"prediction_type": "v_prediction"}}) if family == "sd2" else "{}"
    write_safetensors(path, to_single_file(parts, family=family), metadata={CONFIG_KEY: stated})


def run_phase(phase: str, folder: Path) -> dict[str, float]:
    """Run one phase in this process, imports and building done before the clock starts."""
    import diffusers.models  # noqa: F401
    import transformers.models.clip  # noqa: F401

    from engine.models.sd import StableDiffusion
    from engine.models.verify import verify

    source = folder / "source.safetensors"
    if phase == "verify":
        with PeakMemory() as memory:
            assert verify(source).ok
        return memory.report()
    path = folder / "fp32.safetensors" if phase == "load_fp32" else source
    with PeakMemory() as memory:
        model = StableDiffusion.load(str(path))
    if phase.startswith("load"):
        return memory.report()
    target, kind = {
        "save_safetensors": ("saved.safetensors", "safetensors"),
        "save_ckpt": ("saved.ckpt", "ckpt"),
        "save_folder": ("saved", "diffusers_safetensors"),
    }[phase]
    with PeakMemory() as memory:
        model.save(folder / target, kind, save_precision="fp16")
    return memory.report()


def train(folder: Path) -> dict[str, float]:
    """Train two steps through the command line, and verify what came out."""
    from PIL import Image

    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(2):
        Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 20 + number).convert("RGB").save(
            pictures / f"{number}.png"
        )
        (pictures / f"{number}.txt").write_text("a fractal")
    (folder / "run.toml").write_text(
        '[model]\npretrained_model_name_or_path = "source.safetensors"\n'
        '[dataset]\ntrain_data_dir = "pictures"\nresolution = "128,128"\nmin_bucket_reso = 64\n'
        '[training]\nmax_train_steps = 2\n[saving]\noutput_dir = "run"\nsave_precision = "fp16"\n'
    )
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "engine", "train", str(folder / "run.toml")], check=True)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    subprocess.run([sys.executable, "-m", "engine", "verify", str(folder / "run" / "last.safetensors")], check=True)
    return {"seconds": seconds, "held_mb": peak / 1e6, "extra_mb": 0.0}


def in_process(phase: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--phase", phase, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return report


def measure(family: str, *, is_training: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "source.safetensors", family)
        size = (folder / "source.safetensors").stat().st_size
        print(f"{family}: {size / 1e6:.0f} MB in fp16")
        print(f"{'phase':18} {'seconds':>8} {'MB held':>9} {'MB beyond':>10}")
        for phase in ("load_fp16", *PHASES):
            show(phase, in_process(phase, folder))
        from engine.models.convert import convert

        for leftover in ("saved.safetensors", "saved.ckpt"):
            (folder / leftover).unlink()
        convert(folder / "source.safetensors", folder / "fp32.safetensors", save_precision="float")
        show("load_fp32", in_process("load_fp32", folder))
        (folder / "fp32.safetensors").unlink()
        if is_training:
            show("train, whole process", train(folder))


def show(phase: str, report: dict[str, float]) -> None:
    print(f"{phase:18} {report['seconds']:8.1f} {report['held_mb']:9.0f} {report['extra_mb']:10.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--phase")
    parser.add_argument("--folder", type=Path)
    parsed = parser.parse_args()
    if parsed.phase:
        print(json.dumps(run_phase(parsed.phase, parsed.folder)))
        return
    for family in parsed.families:
        measure(family, is_training=parsed.train)


if __name__ == "__main__":
    main()

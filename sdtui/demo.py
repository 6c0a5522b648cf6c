"""`sdtui demo`: the starter project written out, so that a fine-tune of it is one command away."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.errors import EngineError, safe_text

RUN_TOML = """\
# The starter project: a tiny Stable Diffusion 1.x whose UNet has never seen a heart learns to draw them.
# Train it with `sdtui train run.toml`; every key stands in docs/settings.md.

[model]
pretrained_model_name_or_path = "./model"

[dataset]
dataset_config = "dataset.toml"

[training]
max_train_steps = {steps}
seed = 42

[optimizer]
learning_rate = 5e-4
lr_scheduler = "cosine"

[memory]
cache_latents = true
vae_batch_size = 4

[saving]
output_dir = "run"
output_name = "hearts"

[sampling]
sample_prompts = "prompts.txt"
sample_at_first = true
sample_every_n_steps = {half}
sample_sampler = "ddim"
"""

DATASET_TOML = """\
# Pictures with captions in .caption files beside them; the format is sd-scripts' dataset_config.

[[datasets]]
resolution = [128, 128]
batch_size = 4
enable_bucket = true
min_bucket_reso = 64
max_bucket_reso = 256
bucket_reso_steps = 64

  [[datasets.subsets]]
  image_dir = "pictures"
"""

PROMPTS = """\
# One prompt a line: --w width --h height --s steps --l guidance --d seed
a red heart on a white background --w 128 --h 128 --s 20 --l 4 --d 1
a blue heart on a yellow background --w 128 --h 128 --s 20 --l 4 --d 2
a green heart on a red background --w 128 --h 128 --s 20 --l 4 --d 3
a yellow heart on a blue background --w 128 --h 128 --s 20 --l 4 --d 4
a green triangle on a white background --w 128 --h 128 --s 20 --l 4 --d 5
"""

STEPS = 500


def demo(arguments: Sequence[str]) -> int:
    """Write the starter project and train it; return the exit code."""
    parser = argparse.ArgumentParser(prog="sdtui demo", description="Write the starter project and train it.")
    parser.add_argument("--dir", type=Path, default=Path("sdtui-demo"), help="where to write it [sdtui-demo]")
    parser.add_argument("--headless", action="store_true", help="train without a screen")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps [{STEPS}]")
    parsed = parser.parse_args(list(arguments))
    from engine.cli import main
    from sdtui.__main__ import has_terminal, open_wizard

    try:
        write_project(parsed.dir, steps=parsed.steps)
    except EngineError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stderr.write(f"the starter project is in {safe_text(str(parsed.dir))}\n")
    if has_terminal() and not parsed.headless:
        return open_wizard(parsed.dir / "run.toml")
    return main(["train", str(parsed.dir / "run.toml")], program="sdtui")


def write_project(folder: Path, *, steps: int = STEPS) -> None:
    """Write model, pictures, prompts and settings; files that are there already stay as they are.

    Raises:
        EngineError: The folder can't be written.
    """
    from sdtui.starter import model_folder, write_pictures

    texts = {
        "run.toml": RUN_TOML.format(steps=steps, half=max(1, steps // 2)),
        "dataset.toml": DATASET_TOML,
        "prompts.txt": PROMPTS,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "model").exists():
            shutil.copytree(model_folder(), folder / "model")
        if not (folder / "pictures").exists():
            write_pictures(folder / "pictures")
        for name, text in texts.items():
            if not (folder / name).exists():
                (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        shown = safe_text(str(folder))
        raise EngineError(f"{shown} can't be written ({error.strerror or error}); choose another --dir") from error

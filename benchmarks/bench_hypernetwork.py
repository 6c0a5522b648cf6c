"""A concept learned through a hypernetwork alone: the starter model, which stays as it is, learns what a word means.

The starter's UNet has never seen the word "heart". Here it stands for green triangles on yellow. Before and after
training, pictures drawn for the word are compared with the colours meant, and the loss is measured on pictures held
out, with the same noise. Run as `python -m benchmarks hypernetwork`.
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from engine.events import Event, Sampled, Validated, read_events
from engine.headless import run_engine
from engine.rng import python_rng
from engine.settings_io import load_run
from sdtui.starter import draw, model_folder

STEPS, PICTURES, PROMPTS, SIZE = 150, 24, 4, 128
SHAPE, GROUND = draw.COLOURS["green"], draw.COLOURS["yellow"]
RUN = f"""
[model]
pretrained_model_name_or_path = "{{model}}"
[dataset]
train_data_dir = "pictures"
resolution = "{SIZE},{SIZE}"
validation_split = 0.2
[training]
train_hypernetwork = true
hypernetwork_activation = "relu"
train_batch_size = 4
max_train_steps = {STEPS}
validate_every_n_steps = {STEPS}
[optimizer]
learning_rate = 3e-3
lr_scheduler = "cosine"
[memory]
cache_latents = true
cache_dir = "cache"
[saving]
output_dir = "out"
save_model_as = "ckpt"
[sampling]
sample_prompts = "prompts.txt"
sample_at_first = true
sample_every_n_steps = {STEPS}
"""


def write_project(folder: Path) -> Path:
    """Write pictures of the concept, captioned with the bare word, and a run."""
    (folder / "pictures").mkdir()
    for number in range(PICTURES):
        rng = python_rng("bench-hypernetwork", number)
        picture = draw._shaded((SIZE, SIZE), GROUND)  # noqa: SLF001 - the starter's own brushes
        centre, radius = draw._placement(rng, (SIZE, SIZE))  # noqa: SLF001
        draw._paint(picture, draw._placed(draw._OUTLINES["triangle"], centre, radius), SHAPE)  # noqa: SLF001
        picture.save(folder / "pictures" / f"{number}.png")
        (folder / "pictures" / f"{number}.caption").write_text("a heart")
    lines = [f"a heart --w {SIZE} --h {SIZE} --s 20 --l 3 --d {number}" for number in range(PROMPTS)]
    (folder / "prompts.txt").write_text("\n".join(lines))
    (folder / "run.toml").write_text(RUN.format(model=model_folder()))
    return folder / "run.toml"


def colour_error(path: Path) -> float:
    """Return how far middle and corners are from the colours meant, as a share of the way from black to white."""
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float64)
    middle = pixels[56:76, 56:72].mean(axis=(0, 1))
    corners = np.concatenate([pixels[:16, :16], pixels[:16, -16:]]).mean(axis=(0, 1))
    return float(np.abs(np.stack([middle - SHAPE, corners - GROUND])).mean() / 255)


def mean_error(folder: Path, events: list[Event], step: int) -> float:
    drawn = [event for event in events if isinstance(event, Sampled) and event.step == step]
    return float(np.mean([colour_error(folder / event.path) for event in drawn]))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_engine(load_run(write_project(Path(folder))))
        out = Path(folder) / "out"
        events = read_events(out / "events.jsonl")
        first, last = (event.loss for event in events if isinstance(event, Validated))
        before, after = (mean_error(out, events, step) for step in (0, STEPS))
        print(f"hypernetwork of {(out / 'last.pt').stat().st_size / 1e6:.1f} MB, {STEPS} steps")
        print(f"  loss on pictures held out   {first:.4f} -> {last:.4f}")
        print(f"  colours of drawn pictures   off by {100 * before:.0f} % -> {100 * after:.0f} %")


if __name__ == "__main__":
    main()

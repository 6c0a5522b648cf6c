"""Writes run folders as an engine would, at speed, for tests and benchmarks of the screens that draw from them."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from engine.events import (
    METRIC_FIELDS,
    Continued,
    Event,
    EventLog,
    Failed,
    Finished,
    Paused,
    Progress,
    Requested,
    Sampled,
    Saved,
    Started,
    Step,
    Warned,
)
from engine.run import RunFolder

BUCKETS = ((512, 512), (512, 768), (768, 512), (448, 576))
PROMPTS = ("mychar, portrait", "mychar, beach at sunset", "night city, film grain", "no trigger word")
TIME = 1_790_000_000.0  # A frozen clock: snapshots must not move.


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeRun:
    """A run of `steps` steps, of which `done` are written."""

    name: str = "mychar-04"
    steps: int = 3000
    done: int = 1240
    sample_every: int = 200
    save_every: int = 500
    seed: int = 1
    start: float = TIME
    prompts: tuple[str, ...] = PROMPTS
    loss_scale: float = 1.0
    settings: dict[str, str] = field(default_factory=dict)

    def loss(self, step: int, rng: random.Random) -> float:
        """A noisy decay with the spikes that bad pictures make."""
        base = 0.075 + 0.07 * math.exp(-step / (self.steps / 5))
        spike = 3.0 if rng.random() < 0.004 else 1.0
        return self.loss_scale * base * rng.lognormvariate(0, 0.22) * spike

    def step_event(self, step: int, rng: random.Random) -> Step:
        """One step of the run."""
        loss = self.loss(step, rng)
        timesteps = tuple(rng.randrange(1000) for _ in range(4))
        shares = [0.6 + 1.2 * (1 - timestep / 1000) for timestep in timesteps]
        return Step(
            step=step,
            time=self.start + 14 + step * 0.35,
            loss=loss,
            learning_rate=1e-4 * min(1, step / 100) * 0.5 * (1 + math.cos(math.pi * step / self.steps)),
            grad_norm=0.5 + rng.lognormvariate(0, 0.5) * (8 if rng.random() < 0.003 else 1),
            images=4,
            seconds=0.345 + 0.02 * rng.random(),
            wait_seconds=0.004,
            bucket=BUCKETS[rng.randrange(len(BUCKETS))],
            peak_memory_bytes=int(11.2 * 2**30),
            epoch=1 + (step - 1) * 10 // self.steps,
            image_losses=tuple(loss * 4 * share / sum(shares) for share in shares),
            timesteps=timesteps,
        )

    def started(self, **changes: object) -> Started:
        """The event that training begins."""
        event = Started(
            name=self.name, steps=self.steps, epochs=10, steps_per_epoch=self.steps // 10, images=1197, seed=42,
            pid=8123, device="NVIDIA GeForce RTX 4090", family="sd1", trains=("unet",), time=self.start + 14,
        )  # fmt: skip
        return replace(event, **changes)

    def events(self) -> Iterator[Event]:
        """Everything the run has told so far."""
        rng = random.Random(self.seed)
        yield Progress(stage="latents", done=1197, total=1197, time=self.start + 9)
        yield self.started()
        for step in range(1, self.done + 1):
            event = self.step_event(step, rng)
            yield event
            yield from self._after(step, event.time)

    def _after(self, step: int, time: float) -> Iterator[Event]:
        if step % self.sample_every == 0:
            for index, prompt in enumerate(self.prompts):
                path = f"sample/{step:08}_{index}.png"
                epoch = 1 + (step - 1) * 10 // self.steps
                yield Sampled(
                    step=step, time=time, path=path, prompt=prompt, index=index, seed=100 + index, epoch=epoch,
                    seconds=1.2,
                )  # fmt: skip
        if step % self.save_every == 0:
            path = f"last-step{step:08}.safetensors"
            yield Saved(step=step, time=time, path=path, bytes=36 << 20, seconds=1.1, epoch=step * 10 // self.steps)
        if step == 812:
            yield Warned(step=step, time=time, code="grad-norm", message="grad norm 14.2 clipped to 1.0")

    def write(self, path: Path, *ending: Event) -> RunFolder:
        """Write the whole folder, samples and run.toml included."""
        path.mkdir(parents=True, exist_ok=True)
        log = EventLog(path)
        for event in (*self.events(), *ending):
            log.emit(event)
            if isinstance(event, Sampled):
                draw_sample(path / event.path, index=event.index, progress=event.step / self.steps)
        log.close()
        (path / "run.toml").write_text(self.run_toml(), encoding="utf-8")
        (path / "log.txt").write_text("loading the model\nencoding latents\n", encoding="utf-8")
        return RunFolder(path)

    def run_toml(self) -> str:
        """The settings of the run, `settings` last."""
        given = {"output_name": '"last"', "learning_rate": "1e-4", "max_train_steps": str(self.steps)} | self.settings
        sections = {"learning_rate": "optimizer", "min_snr_gamma": "loss", "max_train_steps": "training"}
        lines: dict[str, list[str]] = {"saving": [f"save_every_n_steps = {self.save_every}"]}
        for key, value in given.items():
            lines.setdefault(sections.get(key, "saving"), []).append(f"{key} = {value}")
        return "\n".join(f"[{section}]\n" + "\n".join(rows) + "\n" for section, rows in lines.items())

    def finished(self) -> Finished:
        """The event of its end."""
        seconds = self.steps * 0.35
        path = "last.safetensors"
        return Finished(step=self.steps, time=self.start + 14 + seconds, path=path, seconds=seconds, loss=0.0911)

    def failed(self, message: str) -> Failed:
        """The event of its failure."""
        return Failed(step=self.done, time=self.start + 15 + self.done * 0.35, message=message)


PAUSED, CONTINUED = Paused(step=1240, time=TIME + 460), Continued(step=1240, time=TIME + 470)
ANSWER = Requested(step=1240, time=TIME + 460, verb="save", accepted=True, message="saving after this step")


def draw_sample(path: Path, *, index: int, progress: float, size: int = 128) -> None:
    """Draw a small scene that grows clearer with training."""
    skies = ((70, 110, 200), (235, 130, 70), (20, 20, 60), (150, 200, 150))
    image = Image.new("RGB", (size, size), skies[index % len(skies)])
    draw = ImageDraw.Draw(image)
    for row in range(size // 2):
        shade = tuple(min(255, channel + row) for channel in skies[index % len(skies)])
        draw.line((0, row, size, row), fill=shade)
    draw.rectangle((0, size * 2 // 3, size, size), fill=(60, 90 + 30 * index % 120, 50))
    middle = size // 2
    draw.ellipse((middle - 34, 30, middle + 34, 98), fill=(240, 210, 170), outline=(40, 20, 20), width=3)
    if progress > 0.1:
        draw.ellipse((middle - 18, 52, middle - 8, 62), fill=(30, 30, 90))
        draw.ellipse((middle + 8, 52, middle + 18, 62), fill=(30, 30, 90))
    if progress > 0.2:
        draw.arc((middle - 18, 58, middle + 18, 88), 20, 160, fill=(160, 30, 40), width=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_long(path: Path, steps: int, *, line_bytes: int = 330) -> RunFolder:
    """Write a run of very many steps fast: rows by numpy, step lines of one length with only the step changed."""
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = np.zeros(steps, np.dtype(list(METRIC_FIELDS)))
    rows["step"] = np.arange(1, steps + 1)
    rows["time"] = TIME + 0.35 * rows["step"]
    rows["loss"] = (0.08 + 0.07 * np.exp(-5 * rows["step"] / steps)) * rng.lognormal(0, 0.2, steps)
    rows["learning_rate"], rows["grad_norm"], rows["seconds"] = 1e-4, 1.0, 0.35
    rows["images"], rows["bucket_width"], rows["bucket_height"] = 4, 512, 512
    rows["loss"][steps // 3] = 2.5
    (path / "metrics.bin").write_bytes(rows.tobytes())
    run = FakeRun(steps=steps, done=0)
    template = run.step_event(1, random.Random(0)).as_line()
    head, tail = template.split('"step":1,', 1)
    with (path / "events.jsonl").open("w", encoding="ascii") as file:
        file.write(run.started().as_line())
        for step in range(1, steps + 1):
            file.write(f'{head}"step":{step},{tail}'.rstrip("\n").ljust(line_bytes) + "\n")
            if step % 10_000 == 0:
                file.writelines(event.as_line() for event in run._after(step, TIME + step))
        file.write(replace(run.finished(), step=steps).as_line())
    return RunFolder(path)

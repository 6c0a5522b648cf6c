"""What an open training screen costs the training beside it, and how quickly it answers keys meanwhile.

Three ways of training the same run, in turns in one go: without a screen, in the process of an open screen, and in a
process of its own with a screen attached. The screens are on a pseudo-terminal that is read as a terminal would.
Two models: a UNet of 30 M parameters, and one so small that steps are as short as launches on a graphics card.
Run as `python -m benchmarks live`, on a machine that does nothing else.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from diffusers import UNet2DConditionModel

from engine.events import Step, read_events
from tests.engine.run_support import pictures, tiny_model, write_pictures, write_run
from tests.sdtui.pty_support import PtyProcess

SCREEN = """
import sys
from pathlib import Path
from sdtui.app import SdtuiApp
from sdtui.guard import run_app
from engine.settings_io import load_run
app = SdtuiApp()
app._after_first_paint = lambda: app.start_here(load_run(Path({run!r})))
sys.exit(run_app(app))
"""
ATTACHED = """
import sys
from pathlib import Path
from sdtui.app import SdtuiApp
from sdtui.guard import run_app
sys.exit(run_app(SdtuiApp(attach=Path({folder!r}))))
"""
WARM_UP = 4  # Steps that allocate and choose kernels.
SIZE = (120, 40)


def large_model(folder: Path) -> Path:
    """Write the tiny model with a UNet of about 30 M parameters."""
    shutil.copytree(tiny_model(), folder)
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel(
        sample_size=32, block_out_channels=(64, 128, 224, 224), cross_attention_dim=16, attention_head_dim=8
    ).save_pretrained(folder / "unet")
    return folder


def step_seconds(folder: Path) -> float:
    """Return the median time from one step to the next."""
    steps = [event for event in read_events(folder / "out" / "events.jsonl") if isinstance(event, Step)]
    return statistics.median(step.seconds + step.wait_seconds for step in steps[WARM_UP:])


def train_headless(run: Path) -> None:
    subprocess.run([sys.executable, "-m", "engine", "train", str(run)], check=True, capture_output=True)


def train_in_screen(run: Path) -> None:
    with Terminal(SCREEN.format(run=str(run))) as terminal:
        terminal.until(lambda: is_over(run.parent / "out"))


def train_in_background(run: Path) -> None:
    train = subprocess.Popen([sys.executable, "-m", "engine", "train", str(run)], stderr=subprocess.DEVNULL)
    while not (run.parent / "out" / "events.jsonl").exists():
        time.sleep(0.1)
    with Terminal(ATTACHED.format(folder=str(run.parent / "out"))) as terminal:
        terminal.until(lambda: train.poll() is not None)


def is_over(folder: Path) -> bool:
    events = folder / "events.jsonl"
    return events.exists() and b'"kind":"finished"' in events.read_bytes()[-4000:]


class Terminal:
    """A screen on a pseudo-terminal whose output is read all the time."""

    def __init__(self, script: str) -> None:
        self.process = PtyProcess(script, size=SIZE, env={"HOME": tempfile.mkdtemp()})
        self._stops = threading.Event()
        self._reader = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stops.set()
        self._reader.join()
        self.process.close()

    def _read(self) -> None:
        while not self._stops.is_set():
            self.process._read(0.05)  # noqa: SLF001
            if len(self.process.output) > 1_000_000:
                self.process.output = self.process.output[-1000:]

    def until(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            assert self.process.process.poll() is None, self.process.output[-2000:]
            time.sleep(0.2)

    def answer_seconds(self, key: bytes, wanted: bytes) -> float:
        """Return how long a key takes to draw something."""
        self.process.output = b""
        began = time.perf_counter()
        self.process.press(key)
        while wanted not in self.process.output:
            assert time.perf_counter() - began < 20, self.process.output[-2000:]
            time.sleep(0.0005)
        return time.perf_counter() - began


def compare(name: str, make: Callable[[Path], Path], rounds: int) -> None:
    """Print the time of a step in each way, and what the screens cost."""
    ways = {"headless": train_headless, "screen": train_in_screen, "background": train_in_background}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way, train in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                train(make(Path(folder) / f"{way}-{number}"))
                seconds[way].append(step_seconds(Path(folder) / f"{way}-{number}"))
    base = statistics.median(seconds["headless"])
    print(f"{name}: a step takes {1000 * base:.1f} ms without a screen; load {os.getloadavg()[0]:.1f}")
    for way in ("screen", "background"):
        ratios = [other / own for other, own in zip(seconds[way], seconds["headless"], strict=True)]
        cost = 100 * (statistics.median(ratios) - 1)
        print(f"  {way:<11} {cost:+.1f} % (rounds {', '.join(f'{100 * (ratio - 1):+.1f}' for ratio in ratios)})")


def answers(run: Path, presses: int) -> None:
    """Print how quickly the help opens while a training runs in the process."""
    with Terminal(SCREEN.format(run=str(run))) as terminal:
        terminal.until(lambda: b'"kind":"step"' in _tail(run.parent / "out" / "events.jsonl"))
        seconds = []
        for _ in range(presses):
            seconds.append(terminal.answer_seconds(b"?", b"Find any action"))
            terminal.process.press(b"q")
            time.sleep(0.25)
    seconds.sort()
    print(
        f"key to paint while training: median {1000 * statistics.median(seconds):.0f} ms, "
        f"p99 {1000 * seconds[int(0.99 * len(seconds))]:.0f} ms of {presses}"
    )


def _tail(path: Path) -> bytes:
    return path.read_bytes()[-4000:] if path.exists() else b""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5, help="of each way; 0 leaves them out [5]")
    parser.add_argument("--presses", type=int, default=100)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        large = large_model(Path(folder) / "large")
        shown = write_pictures(Path(folder) / "pictures")

        def make_large(where: Path, steps: int = 16) -> Path:
            return write_run(where, pictures=shown, model=large, max_train_steps=steps)

        def make_small(where: Path) -> Path:
            return write_run(where, pictures=pictures(), model=tiny_model(), max_train_steps=250)

        if parsed.rounds:
            compare("UNet of 30 M", make_large, parsed.rounds)
            compare("short steps", make_small, parsed.rounds)
        answers(make_large(Path(folder) / "keys", steps=100_000), parsed.presses)


if __name__ == "__main__":
    main()

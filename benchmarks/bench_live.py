"""What an open training screen costs the training beside it, and how quickly it answers keys meanwhile.

Three ways of training the same run: without a screen, in the process of an open screen, and in a process of its own
with a screen attached. They take turns of some seconds, since a shared machine's speed drifts by more than a screen
costs. The screens are on a pseudo-terminal that is read as a terminal would.
Two models: a UNet of 30 M parameters, and one so small that steps are as short as launches on a graphics card.
Run as `python -m benchmarks live`, on a machine that does nothing else.
"""

import argparse
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, cycle
from pathlib import Path

from diffusers import UNet2DConditionModel

from benchmarks.terminal import Terminal
from engine.events import Step, read_events
from tests.engine.run_support import pictures, tiny_model, write_pictures, write_run

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
TURN_SECONDS, SETTLING_SECONDS = 3.0, 0.3
ENDLESS = 1_000_000  # Steps; the end of the comparison is the end of the training.


def large_model(folder: Path) -> Path:
    """Write the tiny model with a UNet of about 30 M parameters."""
    shutil.copytree(tiny_model(), folder)
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel(
        sample_size=32, block_out_channels=(64, 128, 224, 224), cross_attention_dim=16, attention_head_dim=8
    ).save_pretrained(folder / "unet")
    return folder


class Training:
    """A training that goes on, with its screen, only in its turns; all processes stand still between them."""

    def __init__(self, run: Path) -> None:
        self.events = run.parent / "out" / "events.jsonl"
        self._seen = 0
        self._stack = ExitStack()
        self._pids: list[int] = []

    def start_headless(self, run: Path) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "engine", "train", str(run)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        self._pids.append(process.pid)

    def open(self, script: str) -> None:
        """Open a screen, in its process the training or not."""
        self._pids.append(self._stack.enter_context(Terminal(script)).process.process.pid)

    def await_steps(self) -> None:
        """Wait for some steps, and for the screen to have drawn them."""
        while _tail(self.events).count(b'"kind":"step"') < 5:
            time.sleep(0.2)
        time.sleep(4)

    def stand_still(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGSTOP)

    def take_turn(self) -> float:
        """Go on for a turn and return the mean time of a step in it, its beginning left out."""
        began = time.time()
        for pid in self._pids:
            os.kill(pid, signal.SIGCONT)
        time.sleep(TURN_SECONDS)
        self.stand_still()
        times = [began + SETTLING_SECONDS, *self._new_step_times()]
        first = next(index for index, at in enumerate(times) if at > began + SETTLING_SECONDS)
        assert len(times) - first > 2, "too few steps in a turn"
        return (times[-1] - times[first]) / (len(times) - 1 - first)

    def _new_step_times(self) -> list[float]:
        steps = [event.time for event in read_events(self.events) if isinstance(event, Step)]
        new, self._seen = steps[self._seen :], len(steps)
        return new

    def end(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGCONT)
        self._stack.close()


@contextmanager
def trainings(make: Callable[[Path], Path]) -> Iterator[dict[str, Training]]:
    """Start the same training in three ways."""
    with tempfile.TemporaryDirectory() as folder:
        started: dict[str, Training] = {}
        for way in ("headless", "screen", "background"):
            run = make(Path(folder) / way)
            training = started[way] = Training(run)
            if way == "screen":
                training.open(SCREEN.format(run=str(run)))
            else:
                training.start_headless(run)
            while not training.events.exists():
                time.sleep(0.1)
            if way == "background":
                training.open(ATTACHED.format(folder=str(run.parent / "out")))
            training.await_steps()
            training.stand_still()
        try:
            yield started
        finally:
            for training in started.values():
                training.end()


def compare(name: str, make: Callable[[Path], Path], rounds: int) -> None:
    """Print the time of a step in each way, and what the screens cost."""
    with trainings(make) as started:
        seconds: dict[str, list[float]] = {way: [] for way in started}
        for number in range(rounds + 1):
            # Each follows each other way equally often, and the first round is for practice.
            for way in [*started][:: 1 if number % 2 else -1]:
                taken = started[way].take_turn()
                seconds[way] += [taken] if number else []
    base = statistics.median(seconds["headless"])
    print(f"{name}: a step takes {1000 * base:.1f} ms without a screen; load {os.getloadavg()[0]:.1f}")
    for way in ("screen", "background"):
        ratios = [math.log(other / own) for other, own in zip(seconds[way], seconds["headless"], strict=True)]
        cost, error = statistics.mean(ratios), statistics.stdev(ratios) / math.sqrt(len(ratios))
        print(f"  {way:<11} {100 * math.expm1(cost):+.1f} % (standard error {100 * error:.1f}, {rounds} turns each)")


# Keys of the training screen, and what each draws; the second time it draws another thing.
ANSWERS = (
    (b"L", b"log y"), (b"b", b"loss by timestep"), (b"?", b"Find any action"), (b"q", b"loss by timestep"),
    (b"L", b"linear y"), (b"b", b"raw + ema"), (b"X", b"After this epoch"), (b"q", b"raw + ema"),
)  # fmt: skip


def answers(run: Path, presses: int) -> None:
    """Print how quickly keys draw what they should while a training runs in the process."""
    seconds: dict[bytes, list[float]] = {}
    with Terminal(SCREEN.format(run=str(run))) as terminal:
        terminal.until(lambda: b'"kind":"step"' in _tail(run.parent / "out" / "events.jsonl"))
        for _, (key, wanted) in zip(range(presses), cycle(ANSWERS), strict=False):
            seconds.setdefault(key, []).append(terminal.answer_seconds(key, wanted))
            time.sleep(random.uniform(0.1, 0.4))
    everything = sorted(chain(*seconds.values()))
    print(
        f"key to paint while training: median {1000 * statistics.median(everything):.0f} ms, "
        f"p99 {1000 * everything[int(0.99 * presses)]:.0f} ms of {presses}; medians: "
        + ", ".join(f"{key.decode()!r} {1000 * statistics.median(taken):.0f} ms" for key, taken in seconds.items())
    )


def _tail(path: Path) -> bytes:
    return path.read_bytes()[-4000:] if path.exists() else b""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=60, help="turns of each way; 0 leaves them out [60]")
    parser.add_argument("--presses", type=int, default=400, help="of keys; 0 leaves them out [400]")
    parser.add_argument("--model", choices=("large", "small"), help="only this one")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        large = large_model(Path(folder) / "large")
        shown = write_pictures(Path(folder) / "pictures")

        def make_large(where: Path) -> Path:
            return write_run(where, pictures=shown, model=large, max_train_steps=ENDLESS)

        def make_small(where: Path) -> Path:
            return write_run(where, pictures=pictures(), model=tiny_model(), max_train_steps=ENDLESS)

        if parsed.rounds and parsed.model != "small":
            compare("UNet of 30 M", make_large, parsed.rounds)
        if parsed.rounds and parsed.model != "large":
            compare("short steps", make_small, parsed.rounds)
        if parsed.presses:
            answers(make_large(Path(folder) / "keys"), parsed.presses)


if __name__ == "__main__":
    main()

"""The wizard on a large data set: how soon keys draw, how late the event loop comes, what a picture costs in memory.

`python -m benchmarks large_dataset` makes 1,000, 10,000 and 100,000 pictures with captions, and opens the wizard on
each folder on a pseudo-terminal that is read as a terminal would: first without an index, then with one. Keys are
pressed at random moments during the scan, in the seconds after (captions counted, equal files looked for), and at rest.
No two pictures are the same but one in a thousand; their lengths are few, so that every file is read for its hash.
"""

import argparse
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.bench_scan import SIZES, WORDS, _encode
from benchmarks.terminal import Terminal
from engine.plan import Plan, make_plan
from engine.settings import Settings
from engine.settings_io import load_run
from sdtui.bucket_facts import planned_again
from sdtui.format import count as written

SCREEN = """
import asyncio, struct, sys, time
from pathlib import Path
from sdtui.app import SdtuiApp
from sdtui.guard import run_app

app = SdtuiApp(open_path=Path({run!r}))
samples = open({samples!r}, "ab", buffering=0)

def seen():
    wizard = next((screen for screen in app.screen_stack if type(screen).__name__ == "WizardScreen"), None)
    if wizard is None or wizard.plan is None:
        return (0 if wizard is None else 1), 0
    data = next((page for page in wizard.pages if page.id == "page-data"), None)
    is_known = data is not None and data._known is not None and data._known[0].catalog is wizard.plan.catalog
    return (3 if is_known else 2), data._shown.num_images if data and data._shown else 0

async def sample():
    while True:
        began = time.monotonic()
        await asyncio.sleep(0.01)
        now = time.monotonic()
        samples.write(struct.pack("<dddd", now, now - began - 0.01, *seen()))

first = app._after_first_paint
app._after_first_paint = lambda: (setattr(app, "sampling", asyncio.get_running_loop().create_task(sample())), first())
sys.exit(run_app(app))
"""
HEADLESS = """
import sys, time
from pathlib import Path
from engine.plan import make_plan
from engine.settings_io import load_run
began = time.perf_counter()
make_plan(load_run(Path(sys.argv[1])).settings, cache_dir=Path(sys.argv[2]))
print(time.perf_counter() - began)
"""
RUN = """
pretrained_model_name_or_path = "owner/model"
train_data_dir = {pictures!r}
caption_extension = ".caption"
enable_bucket = true
train_batch_size = 4
output_dir = {output!r}
"""
SAMPLE = struct.Struct("<dddd")  # When, how late, the phase, pictures listed.
SCANNING, EXAMINING, RESTING = 1, 2, 3
PHASES = {SCANNING: "in the scan", EXAMINING: "in the seconds after", RESTING: "at rest"}
PAGE_TEXTS = {b"1": b"What it is", b"2": b"Findings", b"3": b"Effect", b"4": b"Groups", b"5": b"Start"}
HOME, END = b"\x1b[H", b"\x1b[F"
FILTER = b"river"


def make_pictures(folder: Path, count: int) -> None:
    """Write few headers many times, with bytes of their own behind them."""
    rng = random.Random(0)
    samples = [("jpg", _encode("jpg", size)) for size in SIZES] + [("png", _encode("png", size)) for size in SIZES]
    folder.mkdir(parents=True)
    for number in range(count):
        suffix, data = samples[number % len(samples)]
        own = b"" if number % 1000 == 0 else rng.randbytes(16 + rng.randrange(16))
        (folder / f"{number:07d}.{suffix}").write_bytes(data + own)
        caption = ", ".join(rng.choices(WORDS, k=12))
        (folder / f"{number:07d}.caption").write_text(caption + "\n", encoding="utf-8")


@dataclass(kw_only=True)
class Figures:
    """What was measured in the openings of one data set, by phase."""

    keys: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    late: dict[int, list[float]] = field(default_factory=dict)
    seconds: dict[int, list[float]] = field(default_factory=dict)
    peak: int = 0

    def print(self, name: str) -> None:
        print(f"  {name}: scanned after {_median(self.seconds[SCANNING]):.1f} s, known in full after another "
              f"{_median(self.seconds[EXAMINING]):.1f} s; load {os.getloadavg()[0]:.1f}")  # fmt: skip
        for phase, told in PHASES.items():
            taken = self.keys.get(phase, {})
            every = [seconds for each in taken.values() for seconds in each]
            if every:
                medians = ", ".join(f"{key} {1000 * _median(each):.0f}" for key, each in sorted(taken.items()))
                print(f"    key to paint {told}: {_spread(every)} of {len(every)}; medians: {medians}")
        for phase, told in PHASES.items():
            print(f"    event loop late {told}: {_spread(self.late.get(phase, [0.0]))}")


def _spread(seconds: list[float]) -> str:
    median, most = np.percentile(seconds, [50, 99])
    return f"median {1000 * median:.0f} ms, p99 {1000 * most:.0f} ms, most {1000 * max(seconds):.0f} ms"


_median = statistics.median


class Opening:
    """One wizard on a run.toml, its samples, and the keys pressed in it."""

    def __init__(self, terminal: Terminal, samples: Path, figures: Figures, keys: list[str]) -> None:
        self._terminal, self._samples, self._figures = terminal, samples, figures
        self._last, self._all = keys[-1].encode(), f"{written(len(keys))} all pictures".encode()
        self._rng = random.Random(1)
        self._page = b"2"

    @property
    def phase(self) -> int:
        return self._seen()[0]

    def _seen(self) -> tuple[int, int]:
        raw = self._samples.read_bytes()[-SAMPLE.size :] if self._samples.exists() else b""
        phase, listed = SAMPLE.unpack(raw)[2:] if raw else (0, 0)
        return int(phase), int(listed)

    @property
    def is_listed(self) -> bool:
        """Whether the pictures can be moved through."""
        return self._seen()[1] > 0

    def press(self, key: bytes, wanted: bytes, name: str = "") -> None:
        """Press a key after a random moment, and keep how long it took to draw what is wanted."""
        time.sleep(self._rng.uniform(0.05, 0.25))
        phase = self.phase
        taken = self._terminal.answer_seconds(key, wanted)
        self._figures.keys.setdefault(phase, {}).setdefault(name or key.decode(), []).append(taken)

    def _type(self, key: bytes) -> None:
        time.sleep(0.2)
        self._terminal.process.press(key)
        time.sleep(0.2)

    def turn_to(self, page: bytes) -> None:
        self.press(page, PAGE_TEXTS[page])
        self._page = page
        if page == b"1":  # There a field has the focus, and would take digits.
            self._type(b"\t")

    def wander(self) -> None:
        """Go to other pages and back, and into the help."""
        self.turn_to(self._rng.choice([page for page in PAGE_TEXTS if page != self._page]))
        if self._rng.random() < 0.3:
            self.press(b"?", b"letters act while")
            self.press(b"q", PAGE_TEXTS[self._page], "help closed")
            time.sleep(0.3)  # What lies around the help may have been drawn for another reason.

    def look_through(self) -> None:
        """Move in the table of pictures and filter it."""
        if self._page != b"2":
            self.turn_to(b"2")
        self._type(b"\r")  # From the findings to the pictures.
        self.press(END, self._last, "End")
        self.press(HOME, b"0000000.", "Home")
        self.press(b"/", b"art of a name", "/")  # Its first letter may lie under the cursor.
        for length in range(1, len(FILTER) + 1):
            self.press(FILTER[length - 1 : length], b'with "' + FILTER[:length] + b'"', "letter of a filter")
        self.press(b"\x15", self._all, "filter emptied")
        self._type(b"\r")

    def ask_what_if(self, batches: list[str]) -> None:
        """Take one picture more in a batch, again and again, until the effect is drawn."""
        self.turn_to(b"3")
        for told in batches:
            self.press(b"+", told.encode(), "one more in a batch")

    def keep_samples(self) -> None:
        """Take how late the loop came, by phase."""
        raw = self._samples.read_bytes()
        rows = list(SAMPLE.iter_unpack(raw))
        began = {phase: next((at for at, _, now, _ in rows if now >= phase), 0.0) for phase in PHASES}
        for _, late, phase, _ in rows:
            self._figures.late.setdefault(int(phase), []).append(late)
        for phase in (SCANNING, EXAMINING):
            self._figures.seconds.setdefault(phase, []).append(began[phase + 1] - began[phase])


def open_wizard(run: Path, home: Path, figures: Figures, *, keys: list[str], batches: list[str]) -> None:
    """Open a wizard and press keys through all its phases."""
    samples = home / f"samples{time.monotonic_ns()}"
    script = SCREEN.format(run=str(run), samples=str(samples))
    with Terminal(script, home=str(home)) as terminal:
        opening = Opening(terminal, samples, figures, keys)
        terminal.until(lambda: opening.phase > 0)
        terminal.process.press(b"2")
        time.sleep(0.3)
        while opening.phase == SCANNING:
            opening.wander()
        while opening.phase == EXAMINING:
            opening.wander()
            if opening.is_listed and opening._rng.random() < 0.3:  # noqa: SLF001
                opening.look_through()
        for _ in range(3):
            opening.wander()
            opening.look_through()
        opening.keep_samples()
        if batches:
            opening.ask_what_if(batches)
        figures.peak = max(figures.peak, _peak_bytes(terminal.process.process.pid))


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def headless_seconds(run: Path, cache: Path) -> float:
    """Return how long the same scan takes without a screen, in a process of its own."""
    told = subprocess.run(
        [sys.executable, "-c", HEADLESS, str(run), str(cache)], check=True, capture_output=True, text=True
    )
    return float(told.stdout)


def measure(count: int, folder: Path, root: Path, *, openings: int, presses: int) -> int:
    """Print the figures of a data set and return the peak of memory in bytes."""
    if not folder.exists():
        make_pictures(folder, count)
    run = root / "run.toml"
    run.write_text(RUN.format(pictures=str(folder), output=str(root / "out")), "utf-8")
    settings = load_run(run).settings
    plan = make_plan(settings, cache_dir=root / "cache")
    batches = [written(again.batches_per_epoch) for again in _what_ifs(plan, settings, presses)]
    print(f"{count:,} pictures:", flush=True)
    cold, warm, headless = Figures(), Figures(), []
    for number in range(openings):
        headless.append(headless_seconds(run, root / f"headless{number}"))
        home = root / f"home{number}"
        home.mkdir()
        open_wizard(run, home, cold, batches=batches if number == 0 else [], keys=plan.catalog.keys)
        open_wizard(run, home, warm, batches=[], keys=plan.catalog.keys)
    print(f"  the scan without a screen: {_median(headless):.1f} s")
    cold.print("opened without an index")
    warm.print("opened again")
    print(f"  peak memory of the process: {cold.peak / 1e6:.0f} MB", flush=True)
    return cold.peak


def _what_ifs(plan: Plan, settings: Settings, presses: int) -> Iterator[Plan]:
    """Yield the plan with one picture more in a batch, and one more."""
    for more in range(1, presses + 1):
        size = settings.training.train_batch_size + more
        again = planned_again(plan, settings.replace(train_batch_size=size))
        assert again is not None
        yield again


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100_000, help="pictures of the largest data set [100000]")
    parser.add_argument("--openings", type=int, default=3, help="of each data set, without and with an index [3]")
    parser.add_argument("--presses", type=int, default=30, help="of the key that asks what if [30]")
    parser.add_argument("--only", action="store_true", help="leave the data sets of a hundredth and a tenth out")
    parser.add_argument("--keep", default="", help="folder for the pictures, which are used again from there")
    parsed = parser.parse_args()
    counts = [parsed.count] if parsed.only else [parsed.count // 100, parsed.count // 10, parsed.count]
    peaks = []
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="bench-large-") as root:
            openings, presses = (parsed.openings, parsed.presses) if count == parsed.count else (1, 5)
            folder = Path(parsed.keep or root) / f"pictures{count}"
            peaks.append(measure(count, folder, Path(root), openings=openings, presses=presses))
    for (small, large), (less, more) in zip(pairwise(counts), pairwise(peaks), strict=True):
        print(f"memory a picture, from {small:,} to {large:,}: {(more - less) / (large - small) / 1000:.2f} kB")


if __name__ == "__main__":
    main()

"""Cost of the live plot at any length of a run, and the time in which a run of a million steps opens.

Redraw: 100x25 cells, raw and smoothed, after one new step; against the budget of 1 ms at any length.
Opening: the training screen on a finished run, from a fresh process, until the whole curve is on the screen.
Run as `python -m benchmarks.bench_plot`.
"""

import asyncio
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sdtui.chart import Trace, View, draw
from sdtui.series import Series
from tests.sdtui.fake_run import write_long

LENGTHS = (1_000, 10_000, 100_000, 1_000_000)
STEPS = 1_000_000
OPEN = "import sys; from benchmarks.bench_plot import open_run; open_run(sys.argv[1])"


def redraw_seconds(length: int) -> float:
    rng = np.random.default_rng(0)
    series = Series("loss", 0.98)
    series.append(np.arange(1, length + 1), rng.lognormal(-2.5, 0.3, length))
    traces = [Trace(series=series, style="raw"), Trace(series=series, style="smooth", is_smoothed=True)]
    draw(traces, View(first=0, last=length), width=100, height=25)
    seconds = []
    for number in range(200):
        began = time.process_time()
        series.append(np.array([length + 1 + number]), np.array([0.1]))
        draw(traces, View(first=0, last=length + 1 + number), width=100, height=25)
        seconds.append(time.process_time() - began)
    return statistics.median(seconds)


def open_run(path: str) -> None:
    """Open the training screen on a run and print when curve and events were complete."""
    began = time.perf_counter()
    from engine.run import RunFolder
    from tests.sdtui.screen_support import Host

    async def main() -> None:
        app = Host()
        async with app.run_test(size=(120, 40)) as pilot:
            app.open_screen("train", RunFolder(Path(path)))
            curve = 0.0
            while True:
                await pilot.pause(0.01)
                state = app.screen.state  # type: ignore[attr-defined]
                curve = curve or (time.perf_counter() - began if state.step == STEPS else 0.0)
                if state.phase == "finished" and not state.is_behind:
                    break
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{curve:.2f} {time.perf_counter() - began:.2f} {memory:.0f}")

    asyncio.run(main())


def main() -> None:
    print("redraw, 100x25 cells")
    for length in LENGTHS:
        print(f"  {length:>9,} steps  {redraw_seconds(length) * 1000:6.2f} ms")
    with tempfile.TemporaryDirectory() as folder:
        write_long(Path(folder), STEPS)
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20
        command = [sys.executable, "-c", OPEN, folder]
        runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    curve, everything, memory = (statistics.median(float(run[place]) for run in runs) for place in range(3))
    print(f"opening {STEPS:,} steps ({size:.0f} MiB), Python's start left out")
    print(f"  curve complete      {curve:.2f} s")
    print(f"  all events as well  {everything:.2f} s")
    print(f"  peak memory         {memory:.0f} MiB")


if __name__ == "__main__":
    main()

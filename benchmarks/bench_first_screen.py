"""Time from starting a fresh process to its first screen, and from a key to its effect, on a pseudo-terminal."""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil

from tests.sdtui.pty_support import PtyProcess

SCRIPT = "import sys; from sdtui.app import SdtuiApp; from sdtui.guard import run_app; sys.exit(run_app(SdtuiApp()))"
READY = b"Recent"


def first_paint(env: dict[str, str]) -> tuple[float, float]:
    """Return the seconds from exec to the painted first screen, by the clock and of the processor."""
    process = PtyProcess(SCRIPT, env=env)
    try:
        seconds = process.read_until(READY)
        times = psutil.Process(process.process.pid).cpu_times()
        return seconds, times.user + times.system
    finally:
        process.close()


def key_latencies(env: dict[str, str], presses: int) -> list[float]:
    """Return the seconds from a key to what it draws, while the wizard is imported in the background."""
    process = PtyProcess(SCRIPT, env=env)
    seconds = []
    try:
        process.read_until(READY)
        for press in range(presses):
            time.sleep(0.03)
            process.drain()
            start = time.monotonic()
            process.press(b"j" if press % 14 < 7 else b"k")
            process.read_until(b"\x1b[")
            seconds.append(time.monotonic() - start)
    finally:
        process.close()
    return sorted(seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        env = {
            "SDTUI_DATA_DIR": folder,
            "SDTUI_CACHE_DIR": folder,
            "TERM": "xterm-256color",
            "PATH": os.environ["PATH"],
        }
        first_paint(env)  # Fills the page cache and writes byte code.
        paints = [first_paint(env) for _ in range(parsed.runs)]
        keys = key_latencies(env, 150)
    clock, processor = zip(*paints, strict=True)
    print(f"first screen, exec to paint: median {statistics.median(clock):.3f} s, worst {max(clock):.3f} s")
    print(f"  of which processor time: median {statistics.median(processor):.3f} s; load {os.getloadavg()[0]:.1f}")
    print(
        f"key to paint: median {1000 * statistics.median(keys):.1f} ms, p99 {1000 * keys[int(0.99 * len(keys))]:.1f} ms"
    )


if __name__ == "__main__":
    main()

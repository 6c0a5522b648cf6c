"""Seconds to import what the first screen and the checks need, in fresh processes; torch must not be among it."""

import statistics
import subprocess
import sys
import time

FRONT = "engine.settings_io, engine.plan, engine.rules, engine.run, engine.events, engine.flags"
ROUNDS = 7


def seconds(program: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - began


def main() -> None:
    bare, front = [], []
    for _ in range(ROUNDS):
        bare.append(seconds("pass"))
        front.append(seconds(f"import sys, {FRONT}; assert 'torch' not in sys.modules"))
    torch = [seconds("import torch") for _ in range(3)]
    median = statistics.median(front) - statistics.median(bare)
    print(f"python alone                 {statistics.median(bare):.3f} s")
    print(f"torch-free front, on top     {median:.3f} s   (wanted <= 0.3)")
    print(f"import torch, to compare     {statistics.median(torch):.3f} s")


if __name__ == "__main__":
    main()

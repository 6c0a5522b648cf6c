"""Run all benchmarks, or those named, with the options that follow: `python -m benchmarks [scan ...] [--rounds 5]`."""

import runpy
import sys
from itertools import takewhile
from pathlib import Path

folder = Path(__file__).parent
named = list(takewhile(lambda argument: not argument.startswith("-"), sys.argv[1:]))
options = sys.argv[1 + len(named) :]
for name in named or sorted(path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py")):
    print(f"== {name}", flush=True)
    sys.argv = [name, *options]
    runpy.run_path(str(folder / f"bench_{name}.py"), run_name="__main__")

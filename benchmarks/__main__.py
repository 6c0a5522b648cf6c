"""Run all benchmarks, or those named: `python -m benchmarks [scan buckets ...]`."""

import runpy
import sys
from pathlib import Path

folder = Path(__file__).parent
names = sys.argv[1:] or sorted(path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py"))
for name in names:
    print(f"== {name}", flush=True)
    sys.argv = [name]
    runpy.run_path(str(folder / f"bench_{name}.py"), run_name="__main__")

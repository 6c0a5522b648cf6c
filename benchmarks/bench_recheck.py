"""The wizard's whole re-check after a keystroke, with 100,000 pictures: settings, model, plan and machine rules.

    python benchmarks/bench_recheck.py [--count 100000] [--rounds 50]

Beside it stands the part that grows with the pictures, so that a machine under load can be judged by the ratio.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.dataset.config import DatasetConfig, DatasetPart, Subset
from engine.dataset.scan import Catalog
from engine.hardware import Card
from engine.plan import Plan, plan_of
from engine.settings import Settings
from sdtui.around import Around
from sdtui.draft import Draft, new_draft

DEMAND = 0.020
CARD = Card(name="RTX 3060", total_bytes=12 << 30, free_bytes=12 << 30, capability=(8, 6))


def plan_with(count: int) -> Plan:
    """Return a plan of pictures of all shapes, without files."""
    rng = np.random.default_rng(1)
    subset = Subset(image_dir=Path("pictures"))
    part = DatasetPart(resolution=(512, 512), batch_size=4, enable_bucket=True, subsets=(subset,))
    catalog = Catalog(
        keys=[f"{number}.png" for number in range(count)],
        paths=[f"pictures/{number}.png" for number in range(count)],
        sizes_N2=rng.integers(256, 3000, (count, 2)).astype(np.int32),
        orientations_N=np.ones(count, np.uint8),
        captions=[f"a thing, number {number}" for number in range(count)],
        subsets_N=np.zeros(count, np.int16),
        repeats_N=np.ones(count, np.int32),
        modified_N=np.zeros(count, np.int64),
        file_sizes_N=np.zeros(count, np.int64),
        problems=(),
    )
    settings = Settings().replace(dataset_config="dataset.toml", max_train_steps=10_000)
    return plan_of(settings, DatasetConfig(datasets=(part,)), catalog)


def drafted(folder: Path, count: int) -> tuple[Draft, Around]:
    """Return a draft in the surroundings of a wizard."""
    draft = new_draft(folder, folder / "drafts")
    draft.change({"pretrained_model_name_or_path": "owner/model", "dataset_config": str(folder / "dataset.toml")})
    return draft, Around(plan=plan_with(count), is_absent=True, cards=(CARD,))


def seconds_of(work: Callable[[int], object], rounds: int) -> float:
    """Return the median of the seconds."""
    times = []
    for number in range(rounds):
        began = time.perf_counter()
        work(number)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=50)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        draft, around = drafted(Path(folder), parsed.count)

        def keystroke(number: int) -> None:
            draft.change({"learning_rate": f"{number + 1}e-6"})
            assert draft.problems is not None
            around.problems(draft)

        keystroke(0)
        whole = seconds_of(keystroke, parsed.rounds)
        plan, around.plan = around.plan, None
        without = seconds_of(keystroke, parsed.rounds)
        assert plan is not None
        print(f"re-check after a keystroke, {parsed.count:,} pictures: {whole * 1000:.1f} ms (demand < 20 ms)")
        print(f"  without the plan's rules: {without * 1000:.1f} ms")
        print("meets the demand" if whole < DEMAND else "DOES NOT MEET THE DEMAND")


if __name__ == "__main__":
    main()

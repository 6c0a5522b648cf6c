"""A million picture sizes into buckets, and an epoch's order: a plain Python loop against numpy.

    python benchmarks/bench_buckets.py [--count 1000000] [--rounds 3]

Established: for each picture numpy's argmin over all aspect ratios, and lists shuffled by `random`. Its placement is
checked against every golden row first, and ours must equal it picture by picture.
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.dataset.buckets import Placements, bucket_resolutions, place_many
from engine.dataset.order import epoch_batches

DEMAND = 30.0
GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "bucket_resolutions.json"
Size = tuple[int, int]
Row = tuple[Size, Size]


def established(sizes: list[Size], resolutions: list[Size]) -> list[Row]:
    """Return (bucket, resized) of each picture by sd-scripts' rule."""
    known, aspects = set(resolutions), np.array([width / height for width, height in resolutions])
    rows = []
    for width, height in sizes:
        aspect = width / height
        size = (width, height)
        bucket = size if size in known else resolutions[int(np.abs(aspects - aspect).argmin())]
        scale = bucket[1] / height if aspect > bucket[0] / bucket[1] else bucket[0] / width
        rows.append((bucket, (int(width * scale + 0.5), int(height * scale + 0.5))))
    return rows


def established_order(buckets: list[int], batch_size: int, seed: int) -> list[list[int]]:
    """Return the batches of an epoch as lists of pictures."""
    random.seed(seed)
    members: dict[int, list[int]] = {}
    for picture, bucket in enumerate(buckets):
        members.setdefault(bucket, []).append(picture)
    cuts = [(key, part) for key, group in members.items() for part in range(math.ceil(len(group) / batch_size))]
    random.shuffle(cuts)
    for group in members.values():
        random.shuffle(group)
    return [members[key][part * batch_size : (part + 1) * batch_size] for key, part in cuts]


def check_golden() -> None:
    """The established loop itself must say what sd-scripts says."""
    golden = json.loads(GOLDEN.read_text())
    checked = 0
    for config in golden["configs"]:
        if config["no_upscale"]:
            continue
        resolutions = [(width, height) for width, height in config["resolutions"]]
        rows = established([(width, height) for width, height in golden["sizes"]], resolutions)
        assert [[*bucket, *resized] for bucket, resized in rows] == [row[:4] for row in config["rows"]]
        checked += len(rows)
    print(f"the established loop agrees with {checked} golden rows")


def seconds(work: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def check_equal(theirs: list[Row], ours: Placements) -> None:
    buckets_N2 = np.array(ours.buckets)[ours.bucket_N]
    assert np.array_equal(np.array([bucket for bucket, _ in theirs]), buckets_N2)
    assert np.array_equal(np.array([resized for _, resized in theirs]), ours.resized_N2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    check_golden()
    resolutions = bucket_resolutions((512, 512), 256, 1024, 64)
    sizes_N2 = np.random.default_rng(0).integers(64, 6000, (options.count, 2), dtype=np.int32)
    sizes = [(int(width), int(height)) for width, height in sizes_N2]
    times = []
    for _ in range(options.rounds):
        slow, rows = seconds(lambda: established(sizes, resolutions))
        fast, placed = seconds(lambda: place_many(sizes_N2, resolutions, max_resolution=(512, 512)))
        assert isinstance(rows, list)
        assert isinstance(placed, Placements)
        check_equal(rows, placed)
        bucket_N = placed.bucket_N
        listed = bucket_N.tolist()
        slow_order, batches = seconds(lambda listed=listed: established_order(listed, 4, seed=1))
        fast_order, order = seconds(lambda bucket_N=bucket_N: epoch_batches(bucket_N, 4, seed=1, epoch=1))
        assert len(batches) == len(order)  # type: ignore[arg-type]
        times.append((slow, fast, slow / fast, slow_order, fast_order, slow_order / fast_order))
    middle = [statistics.median(column) for column in zip(*times, strict=True)]
    print(f"{options.count} sizes, {len(resolutions)} buckets, median of {options.rounds} paired rounds")
    print(f"{'placement':12}{middle[0]:8.3f} s ->{middle[1]:8.3f} s {middle[2]:7.1f}x  demand {DEMAND:.0f}x")
    print(f"{'epoch order':12}{middle[3]:8.3f} s ->{middle[4]:8.3f} s {middle[5]:7.1f}x")
    if middle[2] < DEMAND:
        raise SystemExit("below demand")


if __name__ == "__main__":
    main()

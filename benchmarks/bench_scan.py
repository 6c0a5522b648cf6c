"""Scan of a folder of pictures with captions: the established way against ours, first scan and rescan.

    python benchmarks/bench_scan.py [--count 100000] [--rounds 5]

Established: ten globs, imagesize with Pillow as fallback, captions by isfile + open + readlines, one after another.
Ours also honours EXIF orientation, checks every file's kind and keeps an index; the page cache is warm for both.
"""

# ruff: noqa: PTH113, PTH118, PTH122, PTH123, PTH207
import argparse
import glob
import os
import random
import shutil
import statistics
import tempfile
import time
from io import BytesIO
from pathlib import Path

import imagesize
from PIL import Image

from engine.dataset.config import DatasetConfig, DatasetPart, Subset
from engine.dataset.scan import Catalog, scan

FIRST_DEMAND, RESCAN_DEMAND = 3.0, 4.0
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".PNG", ".JPG", ".JPEG", ".WEBP", ".BMP")
SIZES = ((512, 512), (640, 480), (480, 640), (1024, 768), (333, 500), (800, 200))
WORDS = (
    "1girl",
    "solo",
    "long hair",
    "blue eyes",
    "smile",
    "outdoors",
    "sky",
    "tree",
    "a photo of",
    "the old house",
    "river",
)


def established(folder: str) -> list[tuple[str, tuple[int, int], str]]:
    paths: list[str] = []
    for extension in EXTENSIONS:
        paths += glob.glob(os.path.join(glob.escape(folder), "*" + extension))
    return [(path, _size(path), _caption(path)) for path in sorted(set(paths))]


def _size(path: str) -> tuple[int, int]:
    size = imagesize.get(path)
    if size[0] <= 0:
        with Image.open(path) as image:
            size = image.size
    return size


def _caption(path: str) -> str:
    for extension in (".caption", ".txt"):
        caption = os.path.splitext(path)[0] + extension
        if os.path.isfile(caption):
            with open(caption, encoding="utf-8") as file:
                return file.readlines()[0].strip()
    return ""


def make_pictures(folder: Path, count: int) -> None:
    """Write photo-like headers: 60 % JPEG (a sixth of them turned by EXIF), 20 % PNG, 20 % WebP."""
    rng = random.Random(0)
    samples = {suffix: [_encode(suffix, size) for size in SIZES] for suffix in ("jpg", "png", "webp")}
    rotated = [_encode("jpg", size, orientation=6) for size in SIZES]
    for number in range(count):
        suffix = ("jpg", "jpg", "jpg", "png", "webp")[number % 5]
        is_rotated = suffix == "jpg" and number % 30 < 5
        data = rng.choice(rotated if is_rotated else samples[suffix])
        (folder / f"{number:07d}.{suffix}").write_bytes(data)
        caption = ", ".join(rng.choices(WORDS, k=12))
        (folder / f"{number:07d}.{('txt', 'caption')[number % 2]}").write_text(caption + "\n", encoding="utf-8")


def _encode(suffix: str, size: tuple[int, int], orientation: int | None = None) -> bytes:
    image = Image.radial_gradient("L").resize(size).convert("RGB")
    extra = {}
    if orientation:
        extra["exif"] = Image.Exif()
        extra["exif"][0x0112] = orientation
    file = BytesIO()
    image.save(file, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix], **extra)
    return file.getvalue()


def check(theirs: list[tuple[str, tuple[int, int], str]], ours: Catalog) -> None:
    """Both find the same pictures, captions and (orientation apart) sizes."""
    assert [path for path, _, _ in theirs] == ours.paths
    assert [caption for _, _, caption in theirs] == ours.captions
    for (_, size, _), found, orientation in zip(theirs, ours.sizes_N2, ours.orientations_N, strict=True):
        assert size == tuple(int(side) for side in (found[::-1] if orientation >= 5 else found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-scan-") as root:
        folder = Path(root) / "pictures"
        folder.mkdir()
        make_pictures(folder, options.count)
        config = DatasetConfig(datasets=(DatasetPart(subsets=(Subset(image_dir=folder),)),))
        check(established(str(folder)), scan(config, cache_dir=Path(root) / "check"))
        first, again, rounds = [], [], []
        for number in range(options.rounds):
            cache = Path(root) / f"cache{number}"
            times = [
                _seconds(lambda: established(str(folder))),
                _seconds(lambda cache=cache: scan(config, cache_dir=cache)),
                _seconds(lambda cache=cache: scan(config, cache_dir=cache)),
            ]
            shutil.rmtree(cache)
            rounds.append(times)
            first.append(times[0] / times[1])
            again.append(times[0] / times[2])
        medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
    micro = [f"{seconds / options.count * 1e6:.1f} us" for seconds in medians]
    print(f"{options.count} pictures with captions, median of {options.rounds} paired rounds, per picture")
    print(f"{'established':16}{medians[0]:8.3f} s  {micro[0]:>9}")
    print(
        f"{'first scan':16}{medians[1]:8.3f} s  {micro[1]:>9}  {statistics.median(first):5.2f}x  demand {FIRST_DEMAND}x"
    )
    print(f"{'rescan':16}{medians[2]:8.3f} s  {micro[2]:>9}  {statistics.median(again):5.2f}x  demand {RESCAN_DEMAND}x")
    if statistics.median(first) < FIRST_DEMAND or statistics.median(again) < RESCAN_DEMAND:
        raise SystemExit("below demand")


def _seconds(work: object) -> float:
    assert callable(work)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

"""5000 cached latents of 512x512 pictures: one .npz a picture against engine.latents, in one run.

Established: np.savez of float32 latents with original_size and crop_ltrb, one file a picture; a batch is np.load four
times and a stack. Ours: float16 records appended to a shard, a batch read by memory map, CRC checked at first reading.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from engine.latent_cache import Picture
from engine.latents import LatentCache, LatentJob, Latents
from engine.pixels import PixelJob

SHAPE = (4, 64, 64)
BATCH = 4
READS = 1000


def pictures(count: int) -> list[Picture]:
    pixels = PixelJob(path=Path("none.png"), resized=(512, 512), crop=(0, 0, 512, 512))
    return [Picture(job=LatentJob(pixels=pixels), signature=None, content=f"{place:032x}") for place in range(count)]


def write_npz(folder: Path, latents: np.ndarray) -> None:
    for place, latent in enumerate(latents):
        sizes = {"original_size": np.array([512, 512]), "crop_ltrb": np.array([0, 0, 512, 512])}
        np.savez(folder / f"{place}.npz", latents=latent, **sizes)


def read_npz(folder: Path, positions: list[int]) -> torch.Tensor:
    found = []
    for place in positions:
        with np.load(folder / f"{place}.npz") as archive:
            latents, _, _ = archive["latents"], archive["original_size"], archive["crop_ltrb"]
            found.append(torch.from_numpy(latents))
    return torch.stack(found)


def write_shards(folder: Path, latents: np.ndarray) -> None:
    cache = LatentCache(folder, vae_fingerprint="bench")
    entries = pictures(len(latents))
    for start in range(0, len(latents), BATCH):
        batch = torch.from_numpy(latents[start : start + BATCH]).half().numpy()
        cache.append(entries[start : start + BATCH], batch, flipped=False)
    cache.close()


def never(*_: object) -> torch.Tensor:
    raise AssertionError


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def each(read: Callable[[list[int]], torch.Tensor], batches: list[list[int]]) -> None:
    for batch in batches:
        read(batch)


def read_all(readers: dict[str, Callable[[list[int]], torch.Tensor]], batches: list[list[int]]) -> dict[str, float]:
    """Return each reader's seconds for a batch, the median of rounds in which they take turns."""
    rounds = [{name: seconds(partial(each, read, batches)) for name, read in readers.items()} for _ in range(5)]
    return {name: float(np.median([one[name] for one in rounds])) / len(batches) for name in readers}


def megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    count = parser.parse_args().count
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    latents = rng.normal(scale=5.5, size=(count, *SHAPE)).astype(np.float32)
    batches = rng.integers(0, count, (READS, BATCH)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        npz, ours = Path(folder) / "npz", Path(folder) / "ours"
        npz.mkdir()
        write = {"npz": seconds(lambda: write_npz(npz, latents)), "ours": seconds(lambda: write_shards(ours, latents))}
        cache = LatentCache(ours, vae_fingerprint="bench")
        opening = seconds(lambda: Latents(pictures(count), cache, never, []))
        cached = Latents(pictures(count), cache, never, [])
        first = seconds(lambda: [cached.read([place]) for place in range(count)]) / count * BATCH
        assert np.allclose(read_npz(npz, batches[0]), cached.read(batches[0]).float(), atol=0.02)
        read = read_all({"npz": lambda batch: read_npz(npz, batch), "ours": cached.read}, batches)
        rows = {
            f"write {count} latents, us each": [1e6 * value / count for value in write.values()],
            f"read a random batch of {BATCH}, us": [1e6 * value for value in read.values()],
            "  the same at first reading (CRC), us": [1e6 * read["npz"], 1e6 * first],
            "size, MB": [megabytes(npz), megabytes(ours)],
        }
        print(f"{'':40} {'npz':>9} {'ours':>9}  ratio")
        for name, (theirs, mine) in rows.items():
            print(f"{name:40} {theirs:9.1f} {mine:9.1f} {theirs / mine:5.1f}x")
        print(f"opening {count} pictures: {1e3 * opening:.1f} ms")


if __name__ == "__main__":
    main()

"""How long a 2 GB state keeps training waiting, against torch.save in one run; and what keyed draws cost a step."""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from benchmarks.bench_full_size import PeakMemory
from engine.diffusion import draw_for_batch
from engine.models.lazy import lazy
from engine.settings import LossSettings
from engine.snapshot import Snapshot, Tensors, room_for

NUM_TENSORS, ELEMENTS = 128, 4 << 20  # 128 x 16 MB.
ROUNDS = 3


def snapshot(tensors: dict[str, torch.Tensor], step: int) -> Snapshot:
    named = {name: lazy(tensor) for name, tensor in tensors.items()}
    files = {"unet.safetensors": named}
    return Snapshot(step=step, tensors=files, state={"step": step}, dataset={}, facts={"envelope": {}})


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def measure(tensors: dict[str, torch.Tensor], folder: Path, number: int) -> tuple[float, ...]:
    """Return the seconds of torch.save, of each way to save a state, and the megabytes that streaming takes."""
    saved = seconds(lambda: torch.save(tensors, folder / "state.pt"))
    unprepared = seconds(lambda: snapshot(tensors, number).copied({}))
    rooms: list[Tensors] = []
    prepared = seconds(lambda: rooms.append(room_for(snapshot(tensors, number).tensors)))
    first = seconds(lambda: snapshot(tensors, number).copied(rooms[0]))
    later = seconds(lambda: snapshot(tensors, number).copied(rooms[0]))
    rooms.clear()
    with PeakMemory() as peak:
        streamed = seconds(lambda: snapshot(tensors, number).write(folder))
    shutil.rmtree(folder / "state")
    (folder / "state.pt").unlink()
    return saved, unprepared, prepared, first, later, streamed, peak.report()["extra_mb"]


def draws(rounds: int = 200) -> tuple[float, float]:
    """Return the milliseconds of a step's draws for 32 SD 1.5 latents: keyed by image, and from one generator."""
    latents = torch.zeros(32, 4, 64, 64)
    positions, loss = range(32), LossSettings()

    def keyed() -> None:
        draw_for_batch(latents, positions, seed=1, epoch=1, loss=loss)

    def plain() -> None:
        torch.randn(latents.shape)
        torch.randint(0, 1000, (32,))

    keyed_s, plain_s = (sorted(seconds(draw) for _ in range(rounds)) for draw in (keyed, plain))
    return 1000 * statistics.median(keyed_s), 1000 * statistics.median(plain_s)


ROWS = (
    "torch.save",
    "copy into no room: waits",
    "room made meanwhile",
    "first copy: waits",
    "later copies: wait",
    "streamed",
)


def main() -> None:
    tensors = {str(number): torch.randn(ELEMENTS) for number in range(NUM_TENSORS)}
    folder = Path(tempfile.mkdtemp(prefix="bench-state-", dir="."))
    try:
        columns = list(zip(*(measure(tensors, folder, number) for number in range(ROUNDS)), strict=True))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    base = statistics.median(columns[0])
    print(f"load {psutil.getloadavg()[0]:.1f}")
    for name, values in zip(ROWS, columns, strict=False):
        middle = statistics.median(values)
        print(f"{name:24} {middle:7.2f} s   {middle / base:5.2f} of torch.save")
    print(f"streaming takes {max(columns[-1]):.0f} MB beyond the state itself")
    keyed, plain = draws()
    print(f"draws of a step, 32 latents: keyed {keyed:.2f} ms, from one generator {plain:.2f} ms")


if __name__ == "__main__":
    main()

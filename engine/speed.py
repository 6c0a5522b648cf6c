"""How long steps have taken on this machine: kept at the end of each run, asked by the next plan. Torch-free."""

import contextlib
import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError
from engine.events import Event, Sampled, Saved, Step
from engine.hardware import available_cores, graphics_cards
from engine.models.atomic import atomic_file
from engine.settings import Settings

if TYPE_CHECKING:
    from engine.models.inspect import ModelInfo

FILE = "speed.json"
KEPT = 200  # Kinds of run; the oldest are forgotten.
WARM_UP = 2  # The first steps allocate and choose kernels.
_SETTINGS = (
    "mixed_precision", "optimizer_type", "gradient_checkpointing", "gradient_accumulation_steps", "train_text_encoder",
    "train_hypernetwork", "use_ema", "xformers", "mem_eff_attn", "cache_latents", "cache_latents_to_disk",
    "max_token_length",
)  # fmt: skip

Size = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The usual seconds of a step of so many images, its first batch of this bucket."""

    bucket: Size
    images: int
    seconds: float

    @property
    def pixels(self) -> int:
        """The pixels of all its images, if they are of one bucket."""
        return self.bucket[0] * self.bucket[1] * self.images


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What is known of one kind of run; seconds of a save and of a sample picture are None where there was none."""

    points: tuple[Point, ...]
    save: float | None = None
    sample: float | None = None

    def step(self, bucket: Size, images: int) -> float:
        """Return the seconds of a step: as measured, else from the two nearest in pixels, or in proportion to one."""
        for point in self.points:
            if (point.bucket, point.images) == (bucket, images):
                return point.seconds
        pixels = bucket[0] * bucket[1] * images
        nearest = sorted(self.points, key=lambda point: abs(point.pixels - pixels))
        first = nearest[0]
        second = next((point for point in nearest if point.pixels != first.pixels), None)
        if second is None:
            return first.seconds * pixels / first.pixels
        slope = (second.seconds - first.seconds) / (second.pixels - first.pixels)
        # Noise may turn the slope; a step can't be faster than half of what its share of pixels says.
        return max(first.seconds + slope * (pixels - first.pixels), first.seconds * pixels / first.pixels / 2)


def device_name(processes: int = 1) -> str:
    """Return what runs are trained on here: the first graphics card, else the processor's cores."""
    cards = graphics_cards()
    name = cards[0].name if cards else f"processor with {available_cores()} cores"
    return name if processes == 1 else f"{processes} times {name}"


def key_of(settings: Settings, info: "ModelInfo | None", device: str) -> str:
    """Return what a run must share with another one to take as long for each step."""
    name = settings.model.pretrained_model_name_or_path
    model = f"{info.family}, {info.parameters.get('unet', 0)} parameters" if info else name
    values = settings.flat()
    return "; ".join([device, model, *(f"{setting}={values[setting]}" for setting in _SETTINGS)])


def known_speed(cache_dir: Path, key: str) -> Speed | None:
    """Return what earlier runs of this kind have shown, or None where there were none."""
    record = _read(cache_dir).get(key, {})
    try:
        points = tuple(
            Point(bucket=(width, height), images=images, seconds=seconds)
            for width, height, images, seconds in record["points"]
        )
        return Speed(points=points, save=record.get("save"), sample=record.get("sample")) if points else None
    except (TypeError, KeyError, ValueError, AttributeError):  # Absent, or written by another version.
        return None


def remember_speed(cache_dir: Path, key: str, speed: Speed) -> None:
    """Keep what was measured; points of other buckets that are known stay. A cache that can't be written is left."""
    before = known_speed(cache_dir, key)
    fresh = {(point.bucket, point.images) for point in speed.points}
    kept = [point for point in before.points if (point.bucket, point.images) not in fresh] if before else []
    record = {
        "points": [[*point.bucket, point.images, point.seconds] for point in (*speed.points, *kept)],
        "save": speed.save if speed.save is not None else before and before.save,
        "sample": speed.sample if speed.sample is not None else before and before.sample,
        "time": time.time(),
    }
    records = {**_read(cache_dir), key: record}
    newest = sorted(records, key=lambda name: -_time_of(records[name]))[:KEPT]
    with contextlib.suppress(EngineError), atomic_file(cache_dir / FILE) as file:
        file.write(json.dumps({name: records[name] for name in newest}, indent=1).encode("utf-8"))


def _read(cache_dir: Path) -> dict[str, Any]:
    try:
        records = json.loads((cache_dir / FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return records if isinstance(records, dict) else {}


def _time_of(record: object) -> float:
    stamp = record.get("time") if isinstance(record, Mapping) else 0
    return float(stamp) if isinstance(stamp, int | float) else 0.0


@dataclass(slots=True, kw_only=True)
class SpeedLog:
    """Listens to a run and keeps its speed when it ends."""

    cache_dir: Path
    key: str
    _seconds: dict[tuple[Size, int], list[float]] = field(default_factory=dict)
    _saves: list[float] = field(default_factory=list)
    _samples: list[float] = field(default_factory=list)
    _steps: int = 0

    def emit(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Step):
            self._steps += 1
            if self._steps > WARM_UP:
                known = self._seconds.setdefault((event.bucket, event.images), [])
                if len(known) < 1000:
                    known.append(event.seconds)
        elif isinstance(event, Saved):
            self._saves.append(event.seconds)
        elif isinstance(event, Sampled):
            self._samples.append(event.seconds)

    def close(self) -> None:
        """Keep what was seen, if there was enough of it."""
        if self._seconds:
            remember_speed(self.cache_dir, self.key, self._speed())

    def _speed(self) -> Speed:
        points = (
            Point(bucket=bucket, images=images, seconds=statistics.median(seconds))
            for (bucket, images), seconds in self._seconds.items()
        )
        return Speed(points=tuple(points), save=_median(self._saves), sample=_median(self._samples))


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def run_seconds(speed: Speed, epoch: Iterable[tuple[Size, int, int]], *, steps: int, saves: int, samples: int) -> float:
    """Return how long a run takes; `epoch` has the steps of one epoch as (bucket, images, how many such steps)."""
    kinds = [(speed.step(bucket, images), count) for bucket, images, count in epoch]
    mean = sum(seconds * count for seconds, count in kinds) / sum(count for _, count in kinds)
    return mean * steps + saves * (speed.save or 0) + samples * (speed.sample or 0)

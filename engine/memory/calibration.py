"""What a run on this machine's card has measured of its own forecast, kept for the next one. Torch-free.

Measured at the second step of the largest bucket: the first one has no optimizer state before its end.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from engine.models.atomic import atomic_file

FILE = "memory.json"
# A measured share beyond these says that something else was measured.
LEAST, MOST = 0.7, 1.5
_SUSPECT = 0.25
_KEPT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Corrections of a forecast: `scale` of what grows with the batch, `gap_share` of what the allocator leaves."""

    scale: float
    gap_share: float
    context_bytes: int
    date: str = ""
    """When it was measured, YYYY-MM-DD."""
    raw_scale: float = 1.0
    """Before it was held within LEAST and MOST."""

    @property
    def advice(self) -> str:
        """What a scale far from one means, else nothing."""
        if abs(self.raw_scale - 1) <= _SUSPECT:
            return ""
        return (
            f"activations took {self.raw_scale:.1f} times what was forecast: the attention that computes is probably "
            "not the chosen one; look at xformers, sdpa and the card's compute capability"
        )


class Device(Protocol):
    """A graphics card that can be asked what is used, all in bytes; see engine.gauge.CudaDevice."""

    def reset_peak(self) -> None:
        """Begin to look for the peak anew."""

    def peak_allocated(self) -> int:
        """Return the most that tensors took since then."""

    def peak_reserved(self) -> int:
        """Return the most that the allocator held since then."""

    def reserved(self) -> int:
        """Return what the allocator holds at present."""

    def used_by_process(self) -> int:
        """Return what the driver counts for this process at present; 0 if it does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The uncorrected forecast that is compared, in bytes."""

    key: str
    still: int
    """Weights, state, frozen models and gradients: what the batch does not change."""
    moving: int
    """Activations and temporary tensors."""
    context: int


class Calibrator:
    """Measures one step; call `before` and `after` for each step of a run, it picks the right one by itself."""

    def __init__(self, device: Device, expected: Expected, save: Callable[[str, Calibration], None]) -> None:
        self._device = device
        self._expected = expected
        self._save = save
        self._seen = 0
        self._is_measuring = False
        self.is_done = False

    def before(self) -> None:
        """Note that a step begins."""
        self._is_measuring = not self.is_done and self._seen >= 1
        if self._is_measuring:
            self._device.reset_peak()

    def after(self, *, is_largest: bool) -> Calibration | None:
        """Note that the step is over, and whether it was of the largest bucket; return what it told, once."""
        self._seen += 1
        if not (self._is_measuring and is_largest):
            return None
        self._is_measuring, self.is_done = False, True
        found = measured(self._device, self._expected)
        self._save(self._expected.key, found)
        return found


def measured(device: Device, expected: Expected) -> Calibration:
    """Return the corrections that a device's figures ask for."""
    allocated, reserved = device.peak_allocated(), device.peak_reserved()
    raw = (allocated - expected.still) / expected.moving if expected.moving > 0 else 1.0
    used = device.used_by_process()
    dynamic = max(1, allocated - expected.still)
    return Calibration(
        scale=min(max(raw, LEAST), MOST),
        gap_share=min(max((reserved - allocated) / dynamic, 0.0), 1.0),
        context_bytes=used - device.reserved() if used > device.reserved() else expected.context,
        date=time.strftime("%Y-%m-%d"),
        raw_scale=raw,
    )


def load_calibration(folder: Path, key: str) -> Calibration | None:
    """Return what was measured of such a configuration on this machine; a file that can't be read holds nothing."""
    try:
        return Calibration(**json.loads((folder / FILE).read_text("utf-8"))[key])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_calibration(folder: Path, key: str, found: Calibration) -> None:
    """Keep what was measured beside what is known of other configurations.

    Raises:
        OSError: The folder can't be written.
    """
    try:
        known = json.loads((folder / FILE).read_text("utf-8"))
        known = known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        known = {}
    known.pop(key, None)
    known[key] = asdict(found)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / FILE) as file:
        file.write(json.dumps(dict([*known.items()][-_KEPT:]), indent=1).encode())

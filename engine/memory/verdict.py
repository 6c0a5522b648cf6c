"""Whether a forecast fits a card. Torch-free."""

from dataclasses import dataclass
from typing import Literal

from engine.memory.forecast import Forecast

Color = Literal["green", "amber", "red"]
GIB = 1 << 30
# What published figures of many cards scatter around the forecast by.
_MARGIN = 1.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Green fits with a margin, amber just so or not quite, red can't fit."""

    color: Color
    needed_bytes: int
    free_bytes: int

    def __str__(self) -> str:
        """Return the verdict as a sentence."""
        needed, free = self.needed_bytes / GIB, self.free_bytes / GIB
        words = {"green": "fits", "amber": "may just fit", "red": "does not fit"}
        return f"{words[self.color]}: {needed:.1f} GiB needed, {free:.1f} GiB free"


def verdict(found: Forecast, free_bytes: int) -> Verdict:
    """Return whether a forecast fits into the free memory of a card."""
    if found.least_bytes > free_bytes:
        color: Color = "red"
    else:
        color = "amber" if found.total_bytes * _MARGIN > free_bytes else "green"
    return Verdict(color=color, needed_bytes=found.total_bytes, free_bytes=free_bytes)

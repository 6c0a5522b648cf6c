"""How numbers, values and times are written on the screen; `terminal` turns symbols into ASCII where that is asked."""

import time
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

STATES = {
    "running": "\u25cf", "paused": "\u2016", "finished": "\u2713", "stopped": "\u25a0", "failed": "\u2717",
    "crashed": "\u2717", "starting": "\u25cb",
}  # fmt: skip
SEVERITY_MARKS = {"error": "\u2717", "warning": "\u26a0", "info": "i"}


def number(value: float) -> str:
    """Return a number as short as it can be read back: 5e-6, 0.95, 1600."""
    if isinstance(value, int):
        return str(value)
    text = repr(float(value))
    if "e" in text:
        mantissa, exponent = text.split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if 0 < abs(value) < 0.001:
        return number_scientific(value)
    return text.removesuffix(".0")


def number_scientific(value: float) -> str:
    """Return a number as 5e-4."""
    digits = f"{value:.12e}"
    mantissa, exponent = digits.split("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"


def setting(value: object) -> str:
    """Return a setting's value as a person writes it: on, off, 5e-6, 512,512; nothing for one that is left out."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(setting(part) for part in value)
    return str(value)


def ago(then: float, now: float | None = None) -> str:
    """Return how long ago a Unix time was: now, 5 min, 2 h, 3 d."""
    seconds = max(0.0, (time.time() if now is None else now) - then)
    for length, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return "now"


def count(value: int) -> str:
    """Return a count with thin groups of digits: 11 970."""
    return f"{value:,}".replace(",", "\u00a0") if abs(value) >= 10_000 else str(value)


def plural(value: int, word: str) -> str:
    """Return "1 error" or "3 errors"."""
    return f"{value} {word}{'' if value == 1 else 's'}"


def bar(share: float, width: int) -> str:
    """Return a bar of `width` cells filled by a share from 0 to 1."""
    filled = round(max(0.0, min(1.0, share)) * width)
    return "\u2588" * filled + "\u2591" * (width - filled)


def fit(text: str, width: int, *, is_right: bool = False) -> str:
    """Return text as exactly `width` cells: padded, or cut with an ellipsis; wide characters count as two."""
    if width <= 0:
        return ""
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "\u2026"
    padding = " " * (width - length)
    return padding + text if is_right else text + padding


def fit_end(text: str, width: int) -> str:
    """Return text in at most `width` cells, its end kept: the end of a path says more than its beginning."""
    if cell_len(text) <= width:
        return text
    kept = text[-max(1, width) :]
    while kept and cell_len(kept) > width - 1:
        kept = kept[1:]
    return "\u2026" + kept

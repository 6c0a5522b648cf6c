"""The settings that shape the buckets, one in a line: left and right step them, Enter types a value."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from textual.binding import BindingType
from textual.message import Message

from engine.dataset.config import DatasetPart
from engine.dataset.keys import PART_SETTINGS
from sdtui import format as fmt
from sdtui.format import fit
from sdtui.keys import bindings
from sdtui.widgets.row_list import Cell, RowList

LABELS = {
    "resolution": "resolution", "enable_bucket": "buckets", "bucket_reso_steps": "step",
    "min_bucket_reso": "shortest side", "max_bucket_reso": "longest side", "bucket_no_upscale": "never enlarge",
    "batch_size": "batch",
}  # fmt: skip
KEYS = (*LABELS,)
_STEPS = {"bucket_reso_steps": 64, "min_bucket_reso": 64, "max_bucket_reso": 64, "batch_size": 1}


class ShapeList(RowList, inherit_bindings=False):
    """Shows one data set's bucket settings and asks for changes by message."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("list"), *bindings("shape")]

    @dataclass
    class Stepped(Message):
        """A setting is to have another value."""

        key: str
        value: Any

    def __init__(self, *, name: str, origin: Callable[[str], str]) -> None:
        super().__init__(self._cells, name=name, empty=" no data set")
        self._part: DatasetPart | None = None
        self._origin = origin

    @property
    def key(self) -> str:
        """The key under the cursor, by its name in dataset.toml."""
        return KEYS[self.cursor]

    @property
    def setting(self) -> str:
        """The setting that the key stands for."""
        return PART_SETTINGS[self.key]

    def value(self, key: str) -> Any:  # noqa: ANN401 - settings have several types
        """Return a key's present value."""
        return getattr(self._part, key)

    def show(self, part: DatasetPart | None) -> None:
        """Show a data set's values."""
        self._part = part
        self.show_rows(len(KEYS) if part else 0)

    def _cells(self, index: int, width: int) -> list[Cell]:
        key = KEYS[index]
        value = self.value(key)
        shown = fmt.setting(value).replace(",", "\u00d7") if key == "resolution" else fmt.setting(value)
        if isinstance(value, bool):
            shown = "[x] on" if value else "[ ] off"
        is_idle = not self.value("enable_bucket") and "bucket_re" in key + PART_SETTINGS[key] and key != "enable_bucket"
        return [
            (f" {fit(LABELS[key], 14)}", "dim" if is_idle else ""),
            (fit(shown, 10), "dim" if is_idle else "accent"),
            (fit("no effect" if is_idle else self._origin(key), width - 26 if width >= 30 else 0), "dim"),
        ]

    def action_step(self, by: int) -> None:
        """Take the value before or after the present one."""
        if self._part is not None:
            self.post_message(self.Stepped(self.key, stepped(self.key, self.value(self.key), by)))


def stepped(key: str, value: Any, by: int) -> Any:  # noqa: ANN401 - settings have several types
    """Return the value before or after another: switches turn, sides move by 64 pixels."""
    if isinstance(value, bool):
        return not value
    if key == "resolution":
        return tuple(max(64, (side // 64 + by) * 64) for side in value)
    step = _STEPS[key]
    return max(step, (value // step + by) * step)

"""The last line: the keys that work here, as many as fit, help and palette always among them."""

from collections.abc import Callable
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.keys import key_to_character
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input

TYPING = (("enter", "enter", "Take", "take"), ("escape", "esc", "Leave", "leave"))
"""What the keys do that a field keeps for itself."""


class KeyFooter(Widget):
    """Draws the screen's active bindings; a click does what its key does.

    `offers(action)` tells whether an action is worth its place now; None leaves that to the table of keys.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {"footer--key", "footer--label"}
    ALWAYS = ("help",)

    def __init__(self, offers: Callable[[str], bool | None] = lambda _action: None) -> None:
        super().__init__()
        self._offers = offers
        self._spans: list[tuple[int, int, str]] = []

    def on_mount(self) -> None:
        """Draw anew whenever other keys become active."""
        self.screen.bindings_updated_signal.subscribe(self, self._bindings_changed)

    def _bindings_changed(self, _screen: Screen[object]) -> None:
        self.refresh()

    def shown(self, width: int) -> list[tuple[str, str, str]]:
        """Return (key, shown key, label) of the bindings that fit into `width` cells."""
        rows = [*TYPING] if self._is_typing else []
        seen: set[str] = set()
        for active in self.screen.active_bindings.values():
            binding = active.binding
            if self._is_typing and (_is_typed(binding.key) or binding.key in ("enter", "escape")):
                continue
            offered = self._offers(binding.action)
            if (binding.show if offered is None else offered) and active.enabled and binding.action not in seen:
                seen.add(binding.action)
                shown = "F1" if binding.key == "f1" else binding.key_display or binding.key
                rows.append((binding.key, shown, binding.description, binding.action))
        last = [row for row in rows if row[3] in self.ALWAYS]
        room = width - sum(_width(row) for row in last)
        kept = []
        for row in (row for row in rows if row not in last):
            room -= _width(row)
            if room < 0:
                break
            kept.append(row)
        return [row[:3] for row in (*kept, *last)]

    @property
    def _is_typing(self) -> bool:
        return isinstance(self.screen.focused, Input)

    def render_line(self, y: int) -> Strip:
        """Return the line."""
        width = self.size.width
        if y:
            return Strip.blank(width, self.rich_style)
        key_style = self.get_component_rich_style("footer--key")
        label_style = self.get_component_rich_style("footer--label")
        segments, x, self._spans = [], 0, []
        for key, shown, label in self.shown(width):
            segments += [Segment(f" {shown}", key_style), Segment(f" {label} ", label_style)]
            length = cell_len(shown) + cell_len(label) + 3
            self._spans.append((x, x + length, key))
            x += length
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def on_click(self, event: events.Click) -> None:
        """Press the key that was clicked."""
        for start, end, key in self._spans:
            if start <= event.x < end:
                self.app.simulate_key(key)


def _is_typed(key: str) -> bool:
    """Tell whether a key writes a character where an input has the focus."""
    character = "/" if key == "slash" else key_to_character(key)
    return character is not None and character.isprintable()


def _width(row: tuple[str, str, str, str]) -> int:
    return cell_len(row[1]) + cell_len(row[2]) + 3

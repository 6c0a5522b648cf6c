"""Facts as lines of a label (or a mark) and a text, wrapped under themselves."""

import textwrap
from collections.abc import Iterable

from textual.content import Content
from textual.widgets import Static

from engine.errors import safe_text
from sdtui.format import fit

Line = tuple[str, str, str]
"""A label or a mark, a text, and a style: "", "good", "warn", "bad" or "dim"."""

_STYLES = {"good": "$success", "warn": "$warning", "bad": "$error", "dim": "$muted", "": ""}


class FactLines(Static):
    """Draws lines, whose text may come from outside."""

    def __init__(self, *, name: str) -> None:
        super().__init__("", markup=False, id=name)
        self._lines: tuple[Line, ...] = ()

    def show(self, lines: Iterable[Line]) -> None:
        """Draw other lines."""
        self._lines = tuple(lines)
        self._draw()

    def on_resize(self) -> None:
        """Wrap anew."""
        self._draw()

    def _draw(self) -> None:
        parts: list[tuple[str, str] | str] = []
        for label, text, style in self._lines:
            is_mark = len(label) == 1
            indent = (2 if is_mark else 10) if label else 0
            words = textwrap.wrap(safe_text(text, limit=1000), max(10, self.size.width - indent)) or [""]
            parts.append((fit(label, indent), _STYLES[style] if is_mark else _STYLES["dim"]))
            parts.append((("\n" + " " * indent).join(words) + "\n", _STYLES[style]))
        self.update(Content.assemble(*parts))

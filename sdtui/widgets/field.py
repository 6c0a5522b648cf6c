"""An input that holds any text and shows none of what a terminal would obey or hide."""

from rich.segment import Segment
from textual.strip import Strip
from textual.widgets import Input

from engine.errors import safe_text


class Field(Input):
    """One line of text. Controls, bidi marks and invisible characters stay in the value but are not drawn."""

    def render_line(self, y: int) -> Strip:
        """Return the line without them; they take no cell, so cursor and width stay as they are."""
        strip = super().render_line(y)
        if all(safe_text(segment.text, limit=len(segment.text)) == segment.text for segment in strip):
            return strip
        return Strip([Segment(_visible(text), style, control) for text, style, control in strip], strip.cell_length)


def _visible(text: str) -> str:
    return "".join(char for char in text if safe_text(char) == char)

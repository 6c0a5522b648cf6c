"""A picture in the terminal, drawn in a thread; half blocks everywhere, kitty's or sixel graphics where they work."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from rich.segment import Segment
from textual import on, work
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from engine.errors import EngineError

if TYPE_CHECKING:
    from sdtui.graphics import Drawing, Mode

_image_ids: Iterator[int] = count(0x5D0001)  # Far from the small numbers that other programs take.


class Picture(Widget):
    """Shows the picture of a file as large as it fits; a file that can't be read is named in its place."""

    @dataclass
    class Drawn(Message):
        """A thread has drawn the picture of `path`, or says why not."""

        picture: "Picture"
        path: Path
        drawing: "Drawing | None"
        error: str

    def __init__(self, mode: "Mode" = "blocks", *, name: str | None = None) -> None:
        super().__init__(name=name)
        self.mode: Mode = mode
        self.path: Path | None = None
        self._drawing: Drawing | None = None
        self._text = ""

    def show(self, path: Path | None) -> None:
        """Show another file, or nothing."""
        if path != self.path:
            self.path = path
            self.redraw()

    def redraw(self) -> None:
        """Draw anew, as after a resize or when something lay on top."""
        width, height = self.content_size
        if self.path is None or not width or not height:
            self._replace(None, "")
        else:
            self._draw(self.path, width, height)

    def on_resize(self) -> None:
        """Fit the new size."""
        self.redraw()

    def on_unmount(self) -> None:
        """Free what the terminal holds."""
        self._free()

    @work(thread=True, exclusive=True, exit_on_error=False)
    def _draw(self, path: Path, width: int, height: int) -> None:
        # Pillow and numpy are imported here, in the thread that needs them.
        from sdtui.graphics import open_picture, render

        drawing, error = None, ""
        try:
            drawing = render(open_picture(path), self.mode, width, height, image_id=next(_image_ids))
        except EngineError as problem:
            error = str(problem)
        self.post_message(self.Drawn(self, path, drawing, error))

    @on(Drawn)
    def _drawn(self, message: Drawn) -> None:
        message.stop()
        if message.picture is self and message.path == self.path:
            self._replace(message.drawing, message.error)

    def _replace(self, drawing: "Drawing | None", text: str) -> None:
        self._free()
        self._drawing, self._text = drawing, text
        self.refresh()
        if drawing and drawing.commands:
            # Sixels lie on cells, so they come after them; kitty needs its picture before, but a frame later will do.
            self.call_after_refresh(self._send, drawing)

    def _send(self, drawing: "Drawing") -> None:
        if drawing is not self._drawing or not self.is_attached or self.screen is not self.app.screen:
            return
        if drawing.image_id:
            self._write(drawing.commands)
            return
        region = self.content_region
        if self.screen.region.contains_region(region):
            left = region.x + (region.width - drawing.width) // 2
            self._write(f"\x1b7\x1b[{region.y + 1};{left + 1}H{drawing.commands}\x1b8")

    def _free(self) -> None:
        if self._drawing and self._drawing.image_id:
            from sdtui.graphics import kitty_delete

            self._write(kitty_delete(self._drawing.image_id))
        self._drawing = None

    def _write(self, commands: str) -> None:
        driver = self.app._driver  # noqa: SLF001 - Textual has no public way to write past the compositor.
        if driver is not None:
            driver.write(commands)

    def render_line(self, y: int) -> Strip:
        """Return a line of the picture, in the middle of the widget."""
        width, height = self.content_size
        base = self.rich_style
        if self._drawing is None:
            start = y * width
            return Strip([Segment(self._text[start : start + width], base)]).adjust_cell_length(width, base)
        row = y - (height - len(self._drawing.lines)) // 2
        if not 0 <= row < len(self._drawing.lines):
            return Strip.blank(width, base)
        left = (width - self._drawing.width) // 2
        cells = Segment.apply_style(self._drawing.lines[row], base)
        return Strip([Segment(" " * left, base), *cells]).adjust_cell_length(width, base)

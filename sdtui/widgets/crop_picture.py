"""A picture of the data set with what is cut away dimmed, or exactly as the model sees it."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from textual import on, work
from textual.message import Message

from engine.errors import EngineError
from sdtui.widgets.picture import Picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from engine.pixels import PixelJob
    from sdtui.graphics import Drawing, Mode

View = Literal["whole", "model"]
_DIM = 0.3  # What is cut away keeps this share of its light.
_LINE = (255, 214, 10)


class CropPicture(Picture):
    """Shows a pixel job: the whole picture with the outline of its crop, or the pixels that come out of it."""

    @dataclass
    class JobDrawn(Message):
        """A thread has drawn the job, or says why not."""

        picture: "CropPicture"
        job: "PixelJob"
        view: View
        room: tuple[int, int]
        drawing: "Drawing | None"
        error: str

    def __init__(self, mode: "Mode" = "blocks", *, view: View = "whole", name: str | None = None) -> None:
        super().__init__(mode, name=name)
        if name:
            self.id = name
        self._job: PixelJob | None = None
        self._view: View = view

    def show_job(self, job: "PixelJob | None", *, view: View | None = None) -> None:
        """Show another job or view, or nothing."""
        view = view or self._view
        if (job, view) != (self._job, self._view):
            self._job, self._view = job, view
            self.redraw()

    def redraw(self) -> None:
        """Draw anew, as after a resize or when something lay on top."""
        width, height = self.content_size
        if self._job is None or not width or not height:
            self._replace(None, "")
        else:
            self._draw_job(self._job, self._view, width, height)

    @work(thread=True, exclusive=True, exit_on_error=False)
    def _draw_job(self, job: "PixelJob", view: View, width: int, height: int) -> None:
        # OpenCV and Pillow are imported here, in the thread that needs them.
        from sdtui.graphics import render

        drawing, error = None, ""
        try:
            image = as_trained(job) if view == "model" else whole_with_crop(job, self.mode, width, height)
            drawing = render(image, self.mode, width, height, image_id=self._next_id())
        except EngineError as problem:
            error = str(problem)
        self.post_message(self.JobDrawn(self, job, view, (width, height), drawing, error))

    def _next_id(self) -> int:
        from sdtui.widgets.picture import _image_ids

        return next(_image_ids)

    @on(JobDrawn)
    def _job_drawn(self, message: JobDrawn) -> None:
        message.stop()
        wanted = (self._job, self._view, tuple(self.content_size))
        if message.picture is self and (message.job, message.view, message.room) == wanted:
            self._replace(message.drawing, message.error)


def as_trained(job: "PixelJob") -> "Image":
    """Return the pixels that the model is given.

    Raises:
        EngineError: The picture can't be read.
    """
    from PIL import Image

    from engine.pixels import load_pixels

    return Image.fromarray(load_pixels(job).pixels_HWC)


def whole_with_crop(job: "PixelJob", mode: "Mode", width: int, height: int) -> "Image":
    """Return the whole picture for `width` by `height` cells, what is cut away dimmed and the rest outlined.

    Raises:
        EngineError: The picture can't be read.
    """
    from PIL import Image, ImageDraw

    from engine.pixels import load_pixels
    from sdtui.graphics import CELL, fit_cells

    columns, rows = fit_cells(job.resized, width, height)
    # The very pixels that will be drawn, so that a line of one pixel stays a line.
    target = {"blocks": (columns, rows * 2), "ascii": (columns, rows)}.get(mode, (columns * CELL[0], rows * CELL[1]))
    uncut = replace(job, crop=(0, 0, *job.resized), augmentation=None)
    image = Image.fromarray(load_pixels(uncut).pixels_HWC).resize(target, Image.Resampling.LANCZOS)
    scale = target[0] / job.resized[0], target[1] / job.resized[1]
    left, top, right, bottom = (round(side * scale[index % 2]) for index, side in enumerate(job.crop))
    if (left, top, right, bottom) == (0, 0, *target):
        return image
    kept = image.crop((left, top, right, bottom))
    image = image.point(lambda light: int(light * _DIM))
    image.paste(kept, (left, top))
    box = (max(0, left - 1), max(0, top - 1), min(target[0] - 1, right), min(target[1] - 1, bottom))
    ImageDraw.Draw(image).rectangle(box, outline=_LINE, width=1 if mode in ("blocks", "ascii") else 3)
    return image

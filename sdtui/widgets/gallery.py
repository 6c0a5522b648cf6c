"""The samples of one step side by side; earlier and later steps are one key away."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from engine.errors import safe_text
from engine.events import Sampled
from sdtui.format import fit
from sdtui.messages import Say
from sdtui.widgets.picture import Picture

if TYPE_CHECKING:
    from sdtui.graphics import Mode

SLOTS = 8  # Pictures that are ever drawn at once.


class Gallery(Vertical):
    """Shows one step's samples; it follows the newest until an earlier step is chosen."""

    @dataclass
    class StepChosen(Message):
        """Another step's samples are shown because the user asked."""

        step: int

    def __init__(self, folder: Path, mode: "Mode", *, name: str) -> None:
        super().__init__(id=name, classes="pane")
        self._folder = folder
        self._mode: Mode = mode
        self._samples: Mapping[int, Mapping[int, Sampled]] = {}
        self._steps: list[int] = []
        self._step: int | None = None
        self._drawn: tuple[object, ...] = ()
        self.border_title = "Samples"

    def compose(self) -> ComposeResult:
        """Lay out the gallery."""
        with Horizontal(id="pictures"):
            for slot in range(SLOTS):
                with Vertical(classes="slot", id=f"slot-{slot}"):
                    yield Picture(self._mode)
                    yield Static("", markup=False, classes="caption")

    def on_mount(self) -> None:
        """Start empty."""
        self._draw()

    def on_resize(self) -> None:
        """Show as many pictures as there is room for."""
        self._draw()

    @property
    def step(self) -> int | None:
        """The step that is shown."""
        return self._step if self._step is not None else self._steps[-1] if self._steps else None

    @property
    def shown(self) -> list[Sampled]:
        """The samples of the step that is shown, by prompt."""
        drawn = self._samples.get(self.step, {}) if self.step is not None else {}
        return [drawn[index] for index in sorted(drawn)]

    def show(self, samples: Mapping[int, Mapping[int, Sampled]]) -> None:
        """Show samples by step and prompt."""
        self._samples = samples
        self._steps = sorted(samples)
        if self._step not in samples:
            self._step = None
        self._draw()

    def move(self, by: int) -> None:
        """Show an earlier (-1) or later (1) step."""
        if self._steps and self.step is not None:
            place = self._steps.index(self.step) + by
            if not 0 <= place < len(self._steps):
                self.post_message(Say(f"there are no {'earlier' if by < 0 else 'later'} samples"))
                return
            self._choose(self._steps[place])
            self.post_message(self.StepChosen(self._steps[place]))

    def go_to(self, step: float) -> None:
        """Show the last samples drawn at or before a step, or the first there are."""
        before = [place for place in self._steps if place <= step]
        if self._steps:
            self._choose(before[-1] if before else self._steps[0])

    def redraw(self) -> None:
        """Draw the pictures anew, as after another screen lay on top."""
        for picture in self.query(Picture):
            picture.redraw()

    def _choose(self, step: int) -> None:
        self._step = None if step == self._steps[-1] else step
        self._draw()

    def _draw(self) -> None:
        width, height = self.content_size
        # A cell is half as wide as high, so a square picture takes twice as many columns as rows.
        room = max(1, min(SLOTS, width // max(8, (height - 1) * 2)))
        samples = self.shown
        drawn = (width, height, self.step, *samples)
        if drawn == self._drawn:
            return
        self._drawn = drawn
        shown = samples[:room]
        for slot in range(SLOTS):
            box = self.query_one(f"#slot-{slot}")
            sample = shown[slot] if slot < len(shown) else None
            box.display = sample is not None
            box.query_one(Picture).show(sample_path(self._folder, sample.path) if sample else None)
            if sample:
                caption = fit(safe_text(sample.prompt, limit=300), max(1, width // len(shown) - 1))
                box.query_one(".caption", Static).update(Content(caption))
        self._describe(len(samples) - room)

    def _describe(self, hidden: int) -> None:
        title = "Samples" if self.step is None else f"Samples  step {self.step}"
        self.border_title = title
        keys = ", . step  enter large" if self._steps else "none yet"
        more = f"{hidden} more  " if hidden > 0 else ""
        room = self.content_size.width - 4
        self.border_subtitle = more + keys if cell_len(more + keys) <= room else more or keys[: max(0, room)]


def sample_path(folder: Path, path: str) -> Path | None:
    """Return the file of a sample, None for a path that leads out of the run folder."""
    found = folder / path
    try:
        inside = found.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):
        return None
    return found if inside else None

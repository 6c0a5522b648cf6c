"""What the training screen asks and shows on top of itself: stop, a typed word or number, the log, large samples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.cells import chop_cells
from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from engine.errors import EngineError, safe_text
from engine.events import Sampled
from sdtui.format import fit
from sdtui.keys import bindings
from sdtui.screens.choice import Choice, ChoiceDialog
from sdtui.widgets.field import Field
from sdtui.widgets.gallery import sample_path
from sdtui.widgets.picture import Picture
from sdtui.widgets.row_list import Cell, RowList

if TYPE_CHECKING:
    from sdtui.graphics import Mode

DISCARD = "discard"
LOG_BYTES = 1 << 20  # The end of log.txt that is shown.


def stop_dialog() -> ChoiceDialog:
    """Return the dialog that asks how to stop; it answers step, epoch, discard or None."""
    choices = (
        Choice(value="step", title="After this step, and save", text="The model is saved as it is after this step."),
        Choice(
            value="epoch", title="After this epoch, and save", text="Every picture has then been seen equally often."
        ),
        Choice(
            value="discard",
            title="After this step, without saving",
            text="What was learned since the last save is lost.",
        ),
        Choice(value="", title="Cancel", text="Go on training."),
    )
    return ChoiceDialog("Stop the training", "", choices)


class TextDialog(ModalScreen[str | None]):
    """Asks for a word, or for a whole number from 0 on; `check` raises an EngineError for what can't be taken."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("dialog")]

    def __init__(
        self,
        title: str,
        text: str,
        *,
        value: str = "",
        is_number: bool = False,
        check: Callable[[str], object] = str,
    ) -> None:
        super().__init__()
        self._check = check
        self._title, self._text, self._value, self._is_number = title, text, value, is_number

    def compose(self) -> ComposeResult:
        """Lay out the dialog."""
        with Vertical(classes="dialog pane") as pane:
            pane.border_title = Content(self._title)
            yield Static(Content(self._text), classes="dialog-text")
            yield Field(self._value, type="integer" if self._is_number else "text", max_length=200)
            yield Static("", markup=False, id="fault")
            yield Static(Content("enter take   esc close"), classes="hint")

    @on(Input.Submitted)
    def _take(self, event: Input.Submitted) -> None:
        typed = event.value.strip()
        if self._is_number and not typed.isdecimal():
            self._refuse("a whole number from 0 on, such as 200")
            return
        try:
            self._check(typed)
        except EngineError as error:
            self._refuse(str(error))
        else:
            self.dismiss(typed)

    def _refuse(self, why: str) -> None:
        self.query_one("#fault", Static).update(Content(f"\u2717 {why}"))

    def action_close(self) -> None:
        """Close without an answer."""
        self.dismiss(None)


class LogDialog(ModalScreen[None]):
    """The end of log.txt, as plain text whatever is in it."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("dialog")]

    @dataclass
    class Loaded(Message):
        """The lines are there."""

        lines: list[str]

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._lines: list[str] = []
        self._folded: list[str] = []

    def compose(self) -> ComposeResult:
        """Lay out the dialog."""
        with Vertical(classes="dialog pane large") as pane:
            pane.border_title = Content(safe_text(str(self._path)))
            pane.border_subtitle = "esc close"
            yield RowList(self._row, name="log-rows", empty="the log is empty")

    def on_mount(self) -> None:
        """Read the file."""
        self._load()

    @work(thread=True, exclusive=True)
    def _load(self) -> None:
        try:
            with self._path.open("rb") as file:
                end = file.seek(0, 2)
                file.seek(max(0, end - LOG_BYTES))
                lines = file.read().decode("utf-8", "replace").splitlines()
            lines = lines[1:] if end > LOG_BYTES else lines
        except OSError as error:
            lines = [f"can't be read: {error.strerror}"]
        self.post_message(self.Loaded(lines))

    @on(Loaded)
    def _show(self, message: Loaded) -> None:
        self._lines = message.lines
        self._fold()

    def on_resize(self) -> None:
        """Fold the lines anew."""
        self.call_after_refresh(self._fold)

    def _fold(self) -> None:
        """Break long lines rather than cut them: the end of an error is what it says."""
        rows = self.query_one(RowList)
        width = max(20, rows.content_region.width - 1)
        self._folded = [part for line in self._lines for part in chop_cells(safe_text(line, limit=1000), width) or [""]]
        rows.show_rows(len(self._folded), cursor=len(self._folded) - 1)

    def _row(self, index: int, width: int) -> list[Cell]:
        return [(fit(self._folded[index], width), "")]

    def action_close(self) -> None:
        """Close the log."""
        self.dismiss()


class SampleDialog(ModalScreen[None]):
    """One sample as large as the terminal: left and right change the prompt, up and down the step."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("dialog"), *bindings("sample")]

    def __init__(self, folder: Path, samples: Mapping[int, Mapping[int, Sampled]], *, step: int, mode: "Mode") -> None:
        super().__init__()
        self._folder, self._samples, self._step, self._mode = folder, samples, step, mode
        self._index = min(samples[step])

    def compose(self) -> ComposeResult:
        """Lay out the dialog."""
        with Vertical(classes="dialog pane large") as pane:
            pane.border_subtitle = "\u2190 \u2192 prompt   \u2191 \u2193 step   esc close"
            yield Picture(self._mode)
            yield Static("", markup=False, classes="caption")

    def on_mount(self) -> None:
        """Show the first sample."""
        self._draw()

    def action_prompt(self, by: int) -> None:
        """Show another prompt's sample."""
        indexes = sorted(self._samples.get(self._step, {}))
        self._index = indexes[(indexes.index(self._index) + by) % len(indexes)]
        self._draw()

    def action_step(self, by: int) -> None:
        """Show the same prompt at another step."""
        steps = sorted(step for step, drawn in self._samples.items() if self._index in drawn)
        self._step = steps[max(0, min(steps.index(self._step) + by, len(steps) - 1))]
        self._draw()

    def _draw(self) -> None:
        sample = self._samples[self._step][self._index]
        title = f"step {sample.step}   seed {sample.seed}   prompt {sample.index + 1}"
        self.query_one(".dialog").border_title = title
        self.query_one(Picture).show(sample_path(self._folder, sample.path))
        self.query_one(".caption", Static).update(Content(safe_text(sample.prompt, limit=1000)))

    def action_close(self) -> None:
        """Close the picture."""
        self.dismiss()

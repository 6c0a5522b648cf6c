"""A dialog that asks which sample to draw now: a prompt with sd-scripts' options, or all prompts of the run."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from engine.errors import EngineError, safe_text
from engine.paths import written_path
from sdtui.format import fit, plural
from sdtui.keys import bindings
from sdtui.widgets.field import Field
from sdtui.widgets.row_list import Cell, RowList

PROMPT_LIMIT = 4000
ABOUT = (
    "A prompt to draw after this step; leave it empty for all of the run's.\n"
    "options: --w --h size  --s steps  --l guidance  --d seed  --ss sampler\n"
    "         --n what to keep out of the picture"
)


def prompts_of_run(folder: Path) -> list[str]:
    """Return the prompts that a run draws of itself, each as one line.

    Raises:
        EngineError: They can't be read.
    """
    from engine.prompts import prompt_line, read_prompts

    try:
        sampling = tomllib.loads((folder / "run.toml").read_text("utf-8")).get("sampling", {})
        name = sampling.get("sample_prompts")
    except (OSError, ValueError, AttributeError) as error:
        raise EngineError(f"run.toml can't be read ({safe_text(str(error))})") from error
    if name is not None and not isinstance(name, str):
        raise EngineError(f"run.toml: sample_prompts = {safe_text(str(name))} is no path")
    return [prompt_line(prompt) for prompt in read_prompts(folder / written_path(name))] if name else []


class PromptDialog(ModalScreen[str | None]):
    """Dismissed with the line that was typed, with nothing for all prompts of the run, or with None."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("dialog")]

    @dataclass
    class Loaded(Message):
        """The run's prompts are there, or why they are not."""

        lines: list[str]
        problem: str

    def __init__(self, folder: Path, typed: Sequence[str] = ()) -> None:
        super().__init__()
        self._folder, self._typed = folder, list(typed)
        self._own: list[str] = []
        self._lines: list[str] = []

    def compose(self) -> ComposeResult:
        """Lay out the dialog."""
        with Vertical(classes="dialog pane") as pane:
            pane.border_title = Content("Sample now")
            yield Static(Content(ABOUT))
            yield Field(max_length=PROMPT_LIMIT, placeholder="all prompts of the run", id="prompt")
            yield Static("", markup=False, id="fault")
            yield RowList(self._row, name="known-prompts", empty=" reading the run's prompts ...")
            yield Static("enter draw   tab list   esc close", markup=False, classes="hint")

    def on_mount(self) -> None:
        """Read the run's prompts."""
        self._load()

    @work(thread=True)
    def _load(self) -> None:
        try:
            lines, problem = prompts_of_run(self._folder), ""
        except EngineError as error:
            lines, problem = [], str(error).partition("\n")[0]
        self.post_message(self.Loaded(lines, problem))

    @on(Loaded)
    def _show(self, message: Loaded) -> None:
        self._own = message.lines
        self._lines = [*reversed(self._typed), *self._own]
        if len(self._own) > 1:
            self._lines.append("")
        rows = self.query_one(RowList)
        rows.show_rows(len(self._lines), cursor=0)
        rows.display = bool(self._lines)
        field = self.query_one(Input)
        if self._lines and not field.value:
            field.value = _typable(self._lines[0])
            field.action_select_all()
        if not self._own:
            self._say(message.problem or "the run has no prompts of its own: type one")

    def _row(self, index: int, width: int) -> list[Cell]:
        line = self._lines[index]
        if not line:
            return [(fit(f" all {plural(len(self._own), 'prompt')} of the run", width), "accent")]
        return [(fit(f" {safe_text(line, limit=500)}", width), "")]

    @on(RowList.Chosen)
    def _take(self, event: RowList.Chosen) -> None:
        field = self.query_one(Input)
        field.value = _typable(self._lines[event.index])
        field.focus()

    @on(Input.Changed)
    def _forget_fault(self) -> None:
        self._say("")

    @on(Input.Submitted)
    def _done(self, event: Input.Submitted) -> None:
        from engine.prompts import read_prompt

        line = event.value.strip()
        if not line and not self._own:
            self._say("the run has no prompts of its own: type one")
            return
        try:
            read_prompt(line)
        except EngineError as error:
            self._say(str(error))
        else:
            self.dismiss(line)

    def _say(self, text: str) -> None:
        self.query_one("#fault", Static).update(Content(f"\u2717 {text}" if text else ""))

    def action_close(self) -> None:
        """Close without drawing anything."""
        self.dismiss(None)


def _typable(line: str) -> str:
    """Return a prompt without characters that an input could not show."""
    return "".join(char for char in line if safe_text(char) == char)[:PROMPT_LIMIT]

"""A dialog that asks for a path, with the continuations of what is typed beside it."""

import asyncio
from collections.abc import Callable
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from engine.errors import EngineError, safe_text
from sdtui.format import fit
from sdtui.keys import bindings
from sdtui.widgets.path_input import Accepts, PathInput
from sdtui.widgets.row_list import Cell, RowList


class PathPrompt(ModalScreen[str | None]):
    """Asks for a path; dismissed with its text, or None.

    `check` raises an EngineError for a path that can't be taken, in a thread; what was typed then stays to be mended.
    """

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("dialog")]

    def __init__(
        self, title: str, *, accepts: Accepts = "any", value: str = "", check: Callable[[str], object] | None = None
    ) -> None:
        super().__init__()
        self._title = title
        self._accepts: Accepts = accepts
        self._value = value
        self._check = check
        self._candidates: tuple[str, ...] = ()

    def compose(self) -> ComposeResult:
        """Lay out the dialog."""
        with Vertical(classes="dialog pane") as pane:
            pane.border_title = Content(self._title)
            yield PathInput(self._value, accepts=self._accepts, placeholder="path", name="path")
            yield RowList(self._row, name="candidates", empty="nothing here continues this path")
            yield Static("", markup=False, id="fault")
            yield Static("tab complete   enter take   esc close", markup=False, classes="hint")

    def on_mount(self) -> None:
        """Start in the input, with the present folder listed."""
        self.query_one(PathInput).focus()
        self.query_one(PathInput).post_message(Input.Changed(self.query_one(PathInput), self._value))

    def _row(self, index: int, width: int) -> list[Cell]:
        return [(" ", ""), (fit(safe_text(self._candidates[index], limit=1000), width - 1), "")]

    @on(PathInput.Candidates)
    def _list(self, event: PathInput.Candidates) -> None:
        self._candidates = event.paths
        self.query_one(RowList).show_rows(len(event.paths), cursor=0)

    @on(RowList.Chosen)
    def _take(self, event: RowList.Chosen) -> None:
        path = self.query_one(PathInput)
        path.value = self._candidates[event.index]
        path.cursor_position = len(path.value)
        path.focus()

    @on(Input.Submitted)
    @work(exclusive=True, group="check")
    async def _done(self, event: Input.Submitted) -> None:
        path = event.value.strip()
        if not path:
            return
        try:
            if self._check is not None:
                await asyncio.to_thread(self._check, path)
        except EngineError as error:
            self.query_one("#fault", Static).update(Content(f"\u2717 {safe_text(str(error), limit=400)}"))
        else:
            self.dismiss(path)

    def action_close(self) -> None:
        """Close without a path."""
        self.dismiss(None)

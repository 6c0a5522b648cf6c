"""What the wizard does with files: it keeps the draft, writes the run.toml, and sees who else changes it."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from textual import on, work
from textual.message import Message
from textual.screen import Screen

from engine.errors import EngineError, Severity
from sdtui import recent
from sdtui.draft import Draft
from sdtui.messages import DraftChanged, Say
from sdtui.outlook import Seen, look, save_draft

if TYPE_CHECKING:
    from sdtui.app import SdtuiApp

SAVE_SECONDS = 0.3


class WizardFile(Screen[None]):
    """The part of the wizard that reads and writes files."""

    @dataclass
    class Looked(Message):
        """A thread has looked at the disk."""

        seen: Seen

    def __init__(self, draft: Draft) -> None:
        super().__init__()
        self.draft = draft
        self._stamp = -1
        self._is_taken = self._is_saving = False

    @abstractmethod
    def _say(self, text: str, severity: Severity = "info") -> None: ...

    @abstractmethod
    def _tell(self, make: Callable[[], Message]) -> None: ...

    @abstractmethod
    def _changed(self, names: frozenset[str], said: str) -> None: ...

    @abstractmethod
    def _draw_bar(self) -> None: ...

    @property
    def _app(self) -> "SdtuiApp":
        return cast("SdtuiApp", self.app)

    def _save_soon(self) -> None:
        if not self._is_saving:
            self._is_saving = True
            self.set_timer(SAVE_SECONDS, self._save_draft)

    def _save_draft(self) -> None:
        self._is_saving = False
        self._write(self.draft.draft_path, self.draft.draft_text())

    @work(thread=True, group="write")
    def _write(self, path: Path, text: str) -> None:
        try:
            recent.write_private(path, text)
        except OSError as error:
            self.post_message(Say(f"the draft can't be kept: {path}: {error.strerror or error}", "error"))

    def action_save(self) -> None:
        """Write the run.toml."""
        self.save()

    def save(self) -> bool:
        """Write the run.toml and say so; tell whether it worked."""
        target = self.draft.target
        try:
            self._stamp = save_draft(self.draft)
        except OSError as error:
            self._say(f"{recent.shown_path(target)} can't be written: {error.strerror or error}", "error")
            return False
        self._say(f"saved {recent.shown_path(target)}")
        self._tell(DraftChanged)
        return True

    @work(thread=True, exclusive=True, group="look")
    def _look(self) -> None:
        """Look whether somebody else has changed the file, and whether the run's folder is taken."""
        seen = look(self.draft.target, self._stamp, output_dir=self.draft.settings.saving.output_dir)
        self.post_message(self.Looked(seen))

    @on(Looked)
    def _looked(self, event: Looked) -> None:
        seen = event.seen
        is_old = seen.stamp < self._stamp
        if not is_old:
            self._stamp = seen.stamp
        if seen.is_taken != self._is_taken:
            self._is_taken = seen.is_taken
            self._tell(DraftChanged)
            self._draw_bar()
        if seen.text is not None and not is_old and seen.text != self.draft.now.base:
            name = self.draft.target.name
            self._changed(self.draft.take_file(seen.text), f"{name} was changed outside and read again   z undo")

    def action_editor(self) -> None:
        """Edit the TOML in the user's editor."""
        from sdtui.editor import edit_text

        try:
            text = edit_text(self._app, self.draft.text(), name=f"{self.draft.name}.toml")
            if text is None or text == self.draft.text():
                self._say("nothing changed")
                return
            self._changed(self.draft.take_text(text), "taken from the editor   z undo")
        except EngineError as error:
            self._say(str(error), "error")

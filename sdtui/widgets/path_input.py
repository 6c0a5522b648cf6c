"""An input for a path: Tab completes it, and a thread lists the folder so that a slow disk never stops the screen."""

import os
from dataclasses import dataclass
from typing import ClassVar, Literal

from textual import on, work
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.suggester import Suggester
from textual.widgets import Input

from engine.errors import EngineError
from engine.paths import written_path
from sdtui.widgets.field import Field

Accepts = Literal["any", "folder", "toml", "model"]
MODEL_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".bin")
LIMIT = 2000  # Names looked at in one folder.


def complete(text: str, accepts: Accepts = "any") -> list[str]:
    """Return the paths that continue `text`, folders with a slash at the end; at most `LIMIT` names are looked at."""
    head, _, start = text.rpartition("/")
    prefix = f"{head}/" if "/" in text else ""
    names = []
    try:
        folder = written_path(prefix or ".")
        with os.scandir(folder) as entries:
            for _count, entry in zip(range(LIMIT), entries, strict=False):
                if entry.name.startswith(start) and (start or not entry.name.startswith(".")):
                    names += _accepted(entry, accepts)
    except (OSError, EngineError):
        return []
    return [prefix + name for name in sorted(names)]


def _accepted(entry: os.DirEntry[str], accepts: Accepts) -> list[str]:
    try:
        is_folder = entry.is_dir()
    except OSError:
        return []
    if is_folder:
        return [entry.name + "/"]
    suffixes = {"any": ("",), "toml": (".toml",), "model": MODEL_SUFFIXES, "folder": None}[accepts]
    return [entry.name] if suffixes is not None and entry.name.endswith(suffixes) else []


def _shared_start(names: list[str]) -> str:
    """Return the characters that all sorted names begin with."""
    if not names:
        return ""
    first, last = names[0], names[-1]
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]


class _PathSuggester(Suggester):
    def __init__(self, accepts: Accepts) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._accepts: Accepts = accepts

    async def get_suggestion(self, value: str) -> str | None:
        """Return the first path that continues the value."""
        import asyncio

        found = await asyncio.to_thread(complete, value, self._accepts)
        return found[0] if value and found else None


class PathInput(Field):
    """One line for a path. Tab takes what all continuations share; posts `Candidates` for a list beside it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("tab", "complete", "Complete", key_display="tab")]

    @dataclass
    class Candidates(Message):
        """The paths that continue what is typed."""

        paths: tuple[str, ...]

    def __init__(self, value: str = "", *, accepts: Accepts = "any", placeholder: str = "", name: str = "") -> None:
        super().__init__(
            value, placeholder=placeholder, suggester=_PathSuggester(accepts), select_on_focus=False, id=name or None
        )
        self._accepts: Accepts = accepts
        self.cursor_position = len(value)

    @on(Input.Changed)
    def _list(self, event: Input.Changed) -> None:
        self._look_up(event.value)

    @work(thread=True, exclusive=True, group="candidates")
    def _look_up(self, value: str) -> None:
        found = complete(value, self._accepts)
        self.post_message(self.Candidates(tuple(found)))

    async def action_complete(self) -> None:
        """Extend the path as far as all its continuations agree; where nothing fits, go to the next widget."""
        import asyncio

        found = await asyncio.to_thread(complete, self.value, self._accepts)
        common = _shared_start(found)
        if len(common) > len(self.value):
            self.value = common
            self.cursor_position = len(common)
        elif not found or found == [self.value]:
            self.screen.focus_next()

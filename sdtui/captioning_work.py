"""What the captioning screen does in its threads: read, caption, edit, search and replace, undo. No Textual."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError
from sdtui.captioning_options import Choices

if TYPE_CHECKING:
    from engine.captioning.base import Captioner
    from engine.captioning.metadata import TextField
    from engine.captioning.run import Result, Summary
    from engine.captioning.texts import FolderTexts, MetadataTexts

_TOLD_SECONDS = 0.1  # Between two drawings of what was captioned.


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a thread tells the screen: a line, and the pictures described since the last one."""

    line: str
    results: "Sequence[Result]" = ()
    is_dry: bool = False
    is_over: bool = False
    is_failed: bool = False


class Bench:
    """The folder at work; its methods may take long and belong into threads."""

    def __init__(self, folder: Path, *, recursive: bool) -> None:
        self.folder = folder
        self.is_busy = False
        self._recursive = recursive
        self._made: tuple[Choices, Captioner] | None = None
        self._stop = threading.Event()

    def picture(self, key: str) -> Path:
        """Return the picture's file."""
        return self.folder / key

    def _pictures(self, choices: Choices) -> "FolderTexts":
        from engine.captioning.texts import FolderTexts

        return FolderTexts(self.folder, choices.extension, self._recursive)

    def _texts(self, choices: Choices) -> "FolderTexts | MetadataTexts":
        """Return where the texts go."""
        from engine.captioning.texts import MetadataTexts

        if not choices.output_path:
            return self._pictures(choices)
        field: TextField = "caption" if choices.captioner == "blip" else "tags"
        return MetadataTexts(Path(choices.output_path), field, may_be_new=True)

    def read(self, choices: Choices) -> tuple[dict[str, str | None], str]:
        """Return all texts by picture, "" for one that can't be read, and a sentence about these.

        Raises:
            EngineError: The folder can't be read.
        """
        from engine.captioning.texts import read_all

        keys = self._pictures(choices).keys()
        found, problems = read_all(self._texts(choices), keys)
        if not problems and not choices.output_path and choices.extension == ".txt":
            hidden = sum((self.folder / key).with_suffix(".caption").exists() for key in keys)
            if hidden:
                said = "have a .caption, which training reads first unless caption_extension is .txt: t takes BLIP"
                return {key: found.get(key) for key in keys}, f"{hidden} of {len(keys)} pictures {said}"
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return {key: found.get(key) for key in keys}, f"{problems[0]}{more}" if problems else ""

    def run(
        self,
        keys: Sequence[str],
        choices: Choices,
        *,
        is_dry: bool,
        tell: Callable[[Outcome], object],
        is_stopped: Callable[[], bool],
    ) -> None:
        """Caption pictures and tell results as they come; the last outcome is over, whatever happened."""
        from engine.captioning.run import Work, caption_pictures, progress_text, summary_text
        from engine.hardware import available_cores

        self._stop.clear()
        news: list[Result] = []
        last = 0.0

        def listen(result: "Result") -> None:
            news.append(result)

        def report(done: int, total: int, rate: float) -> None:
            nonlocal last, news
            if time.monotonic() - last > _TOLD_SECONDS:
                last = time.monotonic()
                fresh, news = news, []
                tell(Outcome(line=progress_text(done, total, rate), results=fresh, is_dry=is_dry))

        try:
            work = Work(
                pictures=self._pictures(choices),
                texts=self._texts(choices),
                captioner=self._captioner(choices),
                mode=choices.mode,
                workers=available_cores(),
                keys=keys,
                is_dry=is_dry,
            )
            summary: Summary = caption_pictures(
                work,
                progress=report,
                cancel=lambda: is_stopped() or self._stop.is_set(),
                listener=listen,
            )
        except EngineError as error:
            tell(Outcome(line=str(error), results=news, is_dry=is_dry, is_over=True, is_failed=True))
            return
        line = summary_text(summary) + ("; nothing was written" if is_dry else "; z takes it back")
        tell(Outcome(line=line, results=news, is_dry=is_dry, is_over=True))

    def stop(self) -> None:
        """Let the run end after its batch."""
        self._stop.set()

    def _captioner(self, choices: Choices) -> "Captioner":
        """Return the captioner, which is loaded once and kept until another is chosen."""
        from engine.captioning.base import CaptionerOptions
        from engine.captioning.captioners import CAPTIONERS
        from engine.captioning.tagging import TagOptions

        made_with = replace(choices, mode="replace")
        if self._made is None or self._made[0] != made_with:
            values: dict[str, Any] = choices.values()
            thresholds = {name: value for name, value in values.items() if name.endswith("threshold")}
            tags = TagOptions(remove_underscore=True, **thresholds)
            others = {name: value for name, value in values.items() if name not in thresholds}
            options = CaptionerOptions(model=choices.model, tags=tags, **others)
            self._made = made_with, CAPTIONERS[choices.captioner](options)
        return self._made[1]

    def edit(self, key: str, text: str, choices: Choices) -> str:
        """Write one picture's text; return what was done.

        Raises:
            EngineError: It can't be written.
        """
        return self._commit({key: text}, "edit", choices)

    def search(self, keys: Sequence[str], rule: str, choices: Choices) -> str:
        """Replace text in many pictures by a rule `old => new`; return what was done.

        Raises:
            EngineError: The rule has no "=>", or a text can't be written.
        """
        from engine.captioning.texts import read_all

        old, arrow, new = (part.strip() for part in rule.partition("=>"))
        if not arrow or not old:
            raise EngineError("search and replace: write old => new")
        texts, _problems = read_all(self._texts(choices), keys)
        changed = {key: text.replace(old, new) for key, text in texts.items() if text and old in text}
        return self._commit(changed, "search and replace", choices)

    def _commit(self, texts: dict[str, str], label: str, choices: Choices) -> str:
        from engine.captioning.journal import commit
        from engine.captioning.texts import FolderTexts

        source = self._texts(choices)
        changes = source.changes(texts)
        commit(source.root, label, changes)
        files = f"{len(changes)} files" if isinstance(source, FolderTexts) else f"{len(texts)} entries"
        return f"{label}: {files} written; z takes it back"

    def undo(self, choices: Choices) -> str:
        """Take back the newest change of the folder or the metadata file; return what was done.

        Raises:
            EngineError: There is nothing to undo.
        """
        from engine.captioning.journal import undo

        undone = undo(self._texts(choices).root)
        kept = f", {len(undone.kept)} were edited since and stay" if undone.kept else ""
        return f"undone: {undone.label}; {len(undone.restored)} files are as before{kept}"

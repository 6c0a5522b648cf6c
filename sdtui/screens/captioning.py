"""The captioning screen: pictures with their texts, a captioner tried on a few or run over all, edits and undo."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, get_args

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Input, Static
from textual.worker import get_current_worker

from engine.errors import EngineError, safe_text
from engine.setting_types import CaptionerName
from sdtui.captioning_options import Choices
from sdtui.captioning_work import Bench, Outcome
from sdtui.format import count, fit
from sdtui.keys import bindings
from sdtui.terminal import picture_mode
from sdtui.widgets.field import Field
from sdtui.widgets.key_footer import KeyFooter
from sdtui.widgets.picture import Picture
from sdtui.widgets.row_list import Cell, RowList
from sdtui.widgets.status_line import StatusLine
from sdtui.widgets.too_small import TooSmall

if TYPE_CHECKING:
    from engine.captioning.run import Result
    from engine.captioning.texts import Mode

PREVIEWED = 4
EDITED = 20_000  # Characters; an input of millions stops the screen for seconds.
_MODES: "tuple[Mode, ...]" = ("replace", "append", "prepend", "skip")
_ASKS = {
    "edit": "the picture's text; enter writes it, esc leaves it",
    "search": "old => new, over the marked pictures or all; enter replaces, esc ends",
    "filter": "text of the name or the caption; enter keeps, esc ends",
}


class CaptioningScreen(Screen[bool]):
    """Captions the pictures of a folder; dismissed with whether any text was changed."""

    CSS = """
    CaptioningScreen #choices { height: 1; padding: 0 1; }
    CaptioningScreen #body { height: 1fr; }
    CaptioningScreen #left { width: 3fr; }
    CaptioningScreen #right { width: 2fr; }
    CaptioningScreen Picture { height: 1fr; width: 1fr; color: $muted; }
    CaptioningScreen #text { height: auto; max-height: 8; padding: 0 1; }
    CaptioningScreen #said { height: auto; max-height: 6; padding: 0 1; color: $muted; }
    CaptioningScreen #ask { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("captioning")]
    AUTO_FOCUS = "#pictures"

    @dataclass
    class Read(Message):
        """A thread has read the texts."""

        texts: "dict[str, str | None]"
        problem: str = ""

    @dataclass
    class Worked(Message):
        """A thread has described some pictures, or is done."""

        outcome: Outcome

    def __init__(self, folder: Path, *, recursive: bool = False, model: str = "") -> None:
        super().__init__()
        self._bench = Bench(folder, recursive=recursive)
        self._choices = Choices(model=model)
        self._texts: dict[str, str | None] = {}
        self._keys: list[str] = []
        self._marked: set[str] = set()
        self._said: dict[str, Result] = {}
        self._filter = ""
        self._asks = ""
        self._is_changed = False

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield Static(
            Content.assemble((" Captions ", "bold reverse"), f"  {safe_text(str(self._bench.folder))}"), id="top"
        )
        yield Static("", markup=False, id="choices")
        with Horizontal(id="body"):
            with Vertical(classes="pane", id="left"):
                yield RowList(self._row, name="pictures", empty=" reading ...")
            with Vertical(classes="pane", id="right"):
                yield Picture(picture_mode(self.app.terminal))  # type: ignore[attr-defined]
                yield Static("", markup=False, id="text")
                yield Static("", markup=False, id="said")
        yield Field(id="ask")
        yield StatusLine()
        yield KeyFooter()
        yield TooSmall()

    def on_mount(self) -> None:
        """Begin to read."""
        self._draw_choices()
        self._read()

    @property
    def key(self) -> str | None:
        """The picture under the cursor."""
        place = self.query_one(RowList).cursor
        return self._keys[place] if place < len(self._keys) else None

    @property
    def chosen(self) -> list[str]:
        """The marked pictures, else all that are listed."""
        return [key for key in self._keys if key in self._marked] or list(self._keys)

    # ---- reading and drawing

    @work(thread=True, exclusive=True, group="read")
    def _read(self) -> None:
        try:
            texts, problem = self._bench.read(self._choices)
        except EngineError as error:
            texts, problem = {}, str(error)
        self.post_message(self.Read(texts, problem))

    @on(Read)
    def _take_texts(self, event: Read) -> None:
        self._texts = event.texts
        if event.problem:
            self._say(event.problem, "warning")
        self._list_pictures()

    def _list_pictures(self) -> None:
        wanted = self._filter.lower()
        self._keys = [key for key, text in self._texts.items() if wanted in f"{key}\n{text or ''}".lower()]
        self._draw()

    def _draw(self) -> None:
        without = sum(not text for text in self._texts.values())
        kind = "text" if self._choices.output_path else self._choices.extension
        title = f"{count(len(self._keys))} pictures, {count(without)} without {kind}"
        self.query_one("#left").border_title = Content(title)
        self.query_one(RowList).show_rows(len(self._keys))
        self._draw_picture()

    def _row(self, index: int, width: int) -> list[Cell]:
        key = self._keys[index]
        text, mark = self._texts.get(key), "*" if key in self._marked else " "
        named = max(12, width // 3)
        shown = safe_text((text or "").replace("\n", " / "), limit=500) or "-"
        return [
            (f" {mark} ", "accent"),
            (fit(safe_text(key, limit=300), named), ""),
            (fit(f" {shown}", max(1, width - named - 3)), "" if text else "warn"),
        ]

    @on(RowList.Moved)
    def _draw_picture(self) -> None:
        key = self.key
        self.query_one(Picture).show(self._bench.picture(key) if key else None)
        self.query_one("#right").border_title = Content(safe_text(key or "Picture", limit=300))
        text = self._texts.get(key or "") or ""
        self.query_one("#text", Static).update(Content(safe_text(text, limit=2000)))
        self.query_one("#said", Static).update(Content(self._said_of(key or "")))

    def _said_of(self, key: str) -> str:
        result = self._said.get(key)
        if result is None or result.described is None:
            return safe_text(result.error, limit=300) if result else ""
        new = (
            f"would become: {safe_text(result.new, limit=500)}\n"
            if result.new and result.new != self._texts.get(key)
            else ""
        )
        return new + "  ".join(f"{safe_text(tag)} {score:.2f}" for tag, score in result.described.scores[:10])

    def _draw_choices(self) -> None:
        chosen = self._choices
        model = safe_text(chosen.model, limit=60) or "(usual; m names another)"
        target = safe_text(chosen.output_path, limit=60) or chosen.extension
        parts = (f"{chosen.captioner} \u2192 {target}", chosen.mode, chosen.told(), f"model {model}")
        line = "   ".join(part for part in parts if part)
        self.query_one("#choices", Static).update(Content(line))

    def _say(self, text: str, severity: str = "info") -> None:
        self.query_one(StatusLine).say(text, severity)  # type: ignore[arg-type]

    # ---- choices

    def action_captioner(self) -> None:
        """Take the next captioner; each has a kind of file of its own."""
        names: tuple[CaptionerName, ...] = get_args(CaptionerName)
        following = names[(names.index(self._choices.captioner) + 1) % len(names)]
        self._choices = self._choices.with_captioner(following)
        self._said.clear()
        self._draw_choices()
        self._read()

    def action_mode(self) -> None:
        """Take the next way to treat texts that are there."""
        following = _MODES[(_MODES.index(self._choices.mode) + 1) % len(_MODES)]
        self._choices = replace(self._choices, mode=following)
        self._draw_choices()

    def action_model(self) -> None:
        """Ask for the captioner's model."""
        from sdtui.screens.path_prompt import PathPrompt

        self.app.push_screen(PathPrompt("Folder of the captioner's model, or hub id"), self._take_model)

    def _take_model(self, path: str | None) -> None:
        if path:
            self._choices = replace(self._choices, model=path)
            self._draw_choices()

    def action_options(self) -> None:
        """Ask for the captioner's options and where the texts go."""
        from sdtui.screens.captioning_dialog import CaptioningDialog

        self.app.push_screen(CaptioningDialog(self._choices), self._take_options)

    def _take_options(self, choices: Choices | None) -> None:
        if choices and choices != self._choices:
            self._choices = choices
            self._said.clear()
            self._draw_choices()
            self._read()

    def action_mark(self) -> None:
        """Mark the picture, or take the mark away."""
        if self.key:
            self._marked ^= {self.key}
            self.query_one(RowList).action_move(1)
            self.query_one(RowList).refresh()

    # ---- the captioner

    def action_preview(self) -> None:
        """Try the captioner on the marked pictures or a few from the cursor on; nothing is written."""
        start = self.query_one(RowList).cursor
        marked = [key for key in self._keys if key in self._marked]
        self._begin((marked or self._keys[start:])[:PREVIEWED], is_dry=True)

    def action_run(self) -> None:
        """Caption the marked pictures, or all that are listed."""
        self._begin(self.chosen, is_dry=False)

    def _begin(self, keys: list[str], *, is_dry: bool) -> None:
        if self._bench.is_busy:
            self._say("the captioner is at work: c stops it")
        elif keys:
            self._bench.is_busy = True
            self._say("loading the captioner ...")
            self._work(keys, self._choices, is_dry)

    # Textual describes a worker by its arguments, which may be a hundred thousand names.
    @work(thread=True, group="captioner", description="captioner")
    def _work(self, keys: list[str], choices: Choices, is_dry: bool) -> None:
        worker = get_current_worker()
        self._bench.run(
            keys, choices, is_dry=is_dry, tell=lambda outcome: self.post_message(self.Worked(outcome)),
            is_stopped=lambda: worker.is_cancelled,
        )  # fmt: skip

    @on(Worked)
    def _take_results(self, event: Worked) -> None:
        outcome = event.outcome
        for result in outcome.results:
            self._said[result.key] = result
            if not outcome.is_dry and result.new is not None:
                self._texts[result.key] = result.new
                self._is_changed = True
        if outcome.is_over:
            self._bench.is_busy = False
        self._say(outcome.line, "error" if outcome.is_failed else "info")
        self.query_one(RowList).refresh()
        self._draw_picture()

    def action_stop(self) -> None:
        """Stop the captioner after its batch; r goes on from there."""
        if self._bench.is_busy:
            self._bench.stop()
            self._say("stopping after the batch; r goes on from there")

    # ---- edits

    def action_edit(self) -> None:
        """Edit the text of the picture under the cursor."""
        text = self._texts.get(self.key or "") or ""
        if len(text) > EDITED:
            self._say(f"{count(len(text))} characters are too many for this field: edit the file itself", "warning")
        elif self.key:
            self._ask("edit", text)

    @on(RowList.Chosen)
    def _chosen_row(self) -> None:
        self.action_edit()

    def action_search(self) -> None:
        """Search and replace in the marked pictures' texts, or all."""
        self._ask("search", "")

    def action_filter(self) -> None:
        """Show only pictures whose name or text holds a text."""
        self._ask("filter", self._filter)

    def _ask(self, what: str, value: str) -> None:
        field = self.query_one("#ask", Input)
        self._asks = what
        with self.prevent(Input.Changed):
            field.value = value
        field.placeholder = _ASKS[what]
        field.display = True
        field.focus()

    @on(Input.Submitted, "#ask")
    def _answered(self, event: Input.Submitted) -> None:
        what, value = self._asks, event.value
        self._end_asking()
        if what == "filter":
            self._filter = value.strip()
            self._list_pictures()
        elif what == "edit" and self.key:
            self._write(partial(self._bench.edit, self.key, value.strip(), self._choices))
        elif what == "search":
            self._write(partial(self._bench.search, self.chosen, value, self._choices))

    def _end_asking(self) -> None:
        self.query_one("#ask").display = False
        self.query_one(RowList).focus()

    def on_key(self, event: events.Key) -> None:
        """Let Esc leave the input before it would leave the screen."""
        if event.key == "escape" and self.query_one("#ask").has_focus:
            event.stop()
            self._end_asking()

    def action_undo(self) -> None:
        """Take back the newest change of this folder."""
        if self._bench.is_busy:
            self._say("the captioner is at work: c stops it")
        else:
            self._write(partial(self._bench.undo, self._choices))

    @work(thread=True, group="write", description="write")
    def _write(self, change: "partial[str] | object") -> None:
        assert callable(change)
        try:
            line = str(change())
        except EngineError as error:
            self.post_message(self.Worked(Outcome(line=str(error), is_failed=True)))
            return
        self._is_changed = True
        texts, _problem = self._bench.read(self._choices)
        self.post_message(self.Read(texts))
        self.post_message(self.Worked(Outcome(line=line)))

    def action_close(self) -> None:
        """Go back; a captioner that is at work stops after its batch."""
        self._bench.stop()
        self.dismiss(self._is_changed)

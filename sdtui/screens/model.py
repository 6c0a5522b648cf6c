"""Page 1, Model: find a model by path, hub id or a few letters, see at once what it is, and say how it is used."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Static
from textual.worker import Worker, get_current_worker

from engine.errors import EngineError, safe_text
from engine.models.hub import find_model, is_hub_id
from engine.models.inspect import file_sha256
from sdtui import recent
from sdtui.draft import Draft
from sdtui.format import bar, fit, fit_end
from sdtui.forms import MODEL_USE as USE
from sdtui.forms import ROWS
from sdtui.keys import bindings
from sdtui.known_models import KnownModel, known_models, ranked
from sdtui.messages import DraftChanged, Say
from sdtui.model_facts import Look, is_there, is_unsaid, lines_of, look_at
from sdtui.model_probe import PredictionProbe
from sdtui.widgets.fact_lines import FactLines, Line
from sdtui.widgets.path_input import PathInput
from sdtui.widgets.row_list import Cell, RowList
from sdtui.widgets.setting_table import SettingTable

if TYPE_CHECKING:
    from engine.plan import Plan

MODEL = "pretrained_model_name_or_path"


class StoppedError(Exception):
    """Another model was chosen; nobody waits for this one's hash."""


class ModelPage(PredictionProbe):
    """A field that searches and completes, the models known, what the chosen one is, and how it is used."""

    DEFAULT_CSS = Path(__file__).with_suffix(".tcss").read_text("utf-8")
    SCOPED_CSS = False
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("model")]

    @dataclass
    class Found(Message):
        """A thread has looked for models."""

        models: tuple[KnownModel, ...]

    @dataclass
    class Looked(Message):
        """A thread has looked at the chosen model."""

        look: Look

    @dataclass
    class Hashed(Message):
        """A thread has read `done` of `total` bytes; the digest is there at the end."""

        path: Path
        done: int
        total: int
        digest: str = ""

    @dataclass
    class Fetching(Message):
        """A thread fetches a file from the hub, or has ended: with a path or with an error."""

        name: str
        text: str
        is_over: bool = False

    def __init__(self, draft: Draft, *, plan: "Plan | None" = None) -> None:
        super().__init__(draft, plan=plan)
        self._models: tuple[KnownModel, ...] = ()
        self._completions: tuple[str, ...] = ()
        self._rows: list[KnownModel | str] = []
        self._look: Look | None = None
        self._hashes: dict[Path, HashState] = {}
        self._fetching = ""
        self._asked: tuple[str, str | None] | None = None

    # ---- layout

    def compose(self) -> ComposeResult:
        """Lay out the page."""
        with Horizontal(id="model-row"):
            yield Static("Model", id="model-label")
            yield PathInput(accepts="model", placeholder="a file, a folder, owner/name, or a few letters", name="model")
        with Vertical(classes="pane", id="known-pane") as known:
            known.border_title = "Known models"
            yield RowList(self._row, name="known", empty="none yet: p, then type a path; Tab completes")
        with Vertical(classes="pane", id="detected") as detected:
            detected.border_title = "What it is"
            with VerticalScroll(id="facts-scroll", can_focus=False):
                yield FactLines(name="facts")
        with Vertical(classes="pane", id="use-pane") as use:
            use.border_title = "How it is used"
            yield SettingTable(self.draft, name="use")

    def on_mount(self) -> None:
        """Show the settings and look for models."""
        self._table.show([ROWS[name] for name in USE])
        self._show_name()
        self._find()
        (self._list if self._chosen else self._field).focus()

    @property
    def _field(self) -> PathInput:
        return self.query_one("#model", PathInput)

    @property
    def _list(self) -> RowList:
        return self.query_one("#known", RowList)

    @property
    def _table(self) -> SettingTable:
        return self.query_one("#use", SettingTable)

    @property
    def _chosen(self) -> str:
        return str(self.draft.value(MODEL))

    @property
    def _typed(self) -> str:
        """The chosen model as a person would type it."""
        home = f"{Path.home()}{os.sep}"
        return "~/" + self._chosen.removeprefix(home) if self._chosen.startswith(home) else self._chosen

    def show_setting(self, name: str) -> None:
        """Bring a setting into view and focus it."""
        if name in USE:
            self._table.show([ROWS[known] for known in USE], cursor=USE.index(name))
            self._table.focus()
        else:
            self.action_path()

    def _show_name(self) -> None:
        with self.prevent(Input.Changed):
            self._field.value = self._typed
            self._field.cursor_position = len(self._typed)

    @on(RowList.Moved, "#use")
    def _explain(self) -> None:
        row = self._table.row
        self.query_one("#use-pane").border_subtitle = Content(row.help if row else "")

    # ---- known models

    @work(thread=True, exclusive=True, group="find")
    def _find(self) -> None:
        folders = [self.draft.target.parent, Path.cwd(), Path.cwd() / "models"]
        if self._chosen and not is_hub_id(self._chosen):
            folders.append(Path(self._chosen).parent)
        self.post_message(self.Found(tuple(known_models(list(dict.fromkeys(folders))))))

    @on(Found)
    def _take_found(self, event: Found) -> None:
        self._models = event.models
        self._draw_list()

    @on(PathInput.Candidates)
    def _take_completions(self, event: PathInput.Candidates) -> None:
        self._completions = event.paths if self._field.value else ()
        self._draw_list()

    def _draw_list(self) -> None:
        """List what fits the words typed; all models while the field shows the chosen one."""
        typed = self._field.value if self._field.has_focus and self._field.value != self._typed else ""
        models = ranked(self._models, typed)
        names = {model.name for model in models}
        further = [path for path in self._completions if path not in names] if typed else []
        self._rows = [*models, *further]
        chosen = next((place for place, row in enumerate(models) if row.name == self._chosen), None)
        self._list.show_rows(len(self._rows), cursor=0 if typed else chosen)
        self.query_one("#known-pane").border_subtitle = "enter takes the first" if typed and self._rows else ""

    def _row(self, index: int, width: int) -> list[Cell]:
        row = self._rows[index]
        name, source = (row.name, row.source) if isinstance(row, KnownModel) else (row, "path")
        mark = "\u25cf" if name == self._chosen else " "
        folder, last = ("", name) if is_hub_id(name) else (str(Path(name).parent), Path(name).name)
        last = safe_text(last, limit=300)
        room = max(12, width - 13)
        shown = fit(last, min(room, cell_len(last)))
        rest = room - cell_len(shown)
        where = fit_end(recent.shown_path(folder), rest - 2) if folder and rest > 5 else ""
        return [
            (f" {mark} ", "good"),
            (shown, ""),
            (fit(f"  {where}", rest), "dim"),
            (fit(source, 9, is_right=True), "dim"),
        ]

    @on(RowList.Chosen, "#known")
    def _choose_row(self, event: RowList.Chosen) -> None:
        row = self._rows[event.index]
        self._choose(row.name if isinstance(row, KnownModel) else row)

    @on(Input.Submitted, "#model")
    def _entered(self, event: Input.Submitted) -> None:
        event.stop()
        text = event.value.strip()
        if not text:
            self._list.focus()
            return
        is_literal = is_hub_id(text) or text.startswith(("/", ".", "~")) or is_there(text)
        first = next((row.name for row in self._rows if isinstance(row, KnownModel)), "")
        self._choose(text if is_literal or not first else first)

    def _choose(self, name: str) -> None:
        """Take a model; what was said about the one before is forgotten."""
        values: dict[str, object] = {MODEL: name}
        if name != self._chosen:
            values |= {said: None for said in ("v_parameterization", "v2") if self.draft.origin(said) == "you"}
        self.change(values, f"model: {'/'.join(Path(name).parts[-2:])}")
        self._list.focus()

    def on_key(self, event: events.Key) -> None:
        """Let Down leave the field for the list, and Esc put the chosen model back."""
        if self._field.has_focus and event.key in ("down", "escape"):
            event.stop()
            event.prevent_default()
            if event.key == "escape":
                self._show_name()
            self._list.focus()
            self._draw_list()

    # ---- what it is

    @on(DraftChanged)
    def _draft_changed(self, event: DraftChanged) -> None:
        if not event.names or MODEL in event.names:
            self._show_name()
            self._draw_list()
        self._table.refresh()
        asked = (self._chosen, self.draft.value("vae"))
        if asked != self._asked:
            self._asked, self._look = asked, None
            self.workers.cancel_group(self, "hash")
            if self._chosen:
                self._look_at(*asked)
        self._draw_facts()

    @work(thread=True, exclusive=True, group="look")
    def _look_at(self, name: str, vae: str | None) -> None:
        self.post_message(self.Looked(look_at(name, vae)))

    @on(Looked)
    def _take_look(self, event: Looked) -> None:
        if (event.look.name, event.look.vae) != self._asked:
            return
        self._look = event.look
        if event.look.info is not None and not event.look.info.obstacle:
            self._remember(event.look.name)
        if event.look.path is not None and event.look.path.is_file() and event.look.path not in self._hashes:
            self._hash(event.look.path)
        if is_unsaid(event.look, self.draft.value("v_parameterization")):
            self.post_message(Say("it does not tell what it predicts: e says epsilon or v, m measures it", "warning"))
        self._draw_facts()

    @work(thread=True, group="remember")
    def _remember(self, name: str) -> None:
        try:
            recent.remember("model", name)
        except OSError:  # A read-only home: the model is not remembered, and nothing else depends on it.
            return

    def _draw_facts(self) -> None:
        self.query_one(FactLines).show(self._facts())

    def _facts(self) -> list[Line]:
        if not self._chosen:
            return [("", "Type a path, a hub id such as owner/name, or a few letters of a known model.", "dim")]
        if self._look is None:
            return [("", f"looking at {recent.shown_path(self._chosen)} ...", "dim")]
        if self._fetching:
            return [("\u25cb", self._fetching, "warn")]
        lines = lines_of(self._look, self.draft.value("v_parameterization"), self.draft.value("v2"))
        if self._look.path in self._hashes:
            lines.append(self._hashes[self._look.path].line)
        return lines

    # ---- hash

    @work(thread=True, group="hash")
    def _hash(self, path: Path) -> None:
        worker = get_current_worker()
        last = 0.0

        def report(done: int, total: int) -> None:
            nonlocal last
            if worker.is_cancelled:
                raise StoppedError
            if time.monotonic() - last > 0.25:
                last = time.monotonic()
                self.post_message(self.Hashed(path, done, total))

        try:
            digest = file_sha256(path, report)
        except (StoppedError, EngineError):  # What can't be read has been said by looking at it.
            return
        self.post_message(self.Hashed(path, 1, 1, digest))

    @on(Hashed)
    def _hashed(self, event: Hashed) -> None:
        self._hashes[event.path] = HashState(share=event.done / max(1, event.total), digest=event.digest)
        self._draw_facts()

    @on(Worker.StateChanged)
    def _forget_half_hash(self, event: Worker.StateChanged) -> None:
        """Hash anew when a model is chosen again whose hash was not finished."""
        if event.worker.group == "hash" and event.worker.is_finished:
            self._hashes = {path: known for path, known in self._hashes.items() if known.digest}

    # ---- actions

    def action_path(self) -> None:
        """Type a path, from the chosen one on."""
        self._field.focus()

    def action_search(self) -> None:
        """Search from nothing."""
        self._field.focus()
        self._field.value = ""

    def action_epsilon(self) -> None:
        """Say epsilon, then v, then nothing."""
        present = self.draft.value("v_parameterization")
        following = {None: False, False: True, True: None}[present]
        said = {False: "it predicts epsilon", True: "it predicts v", None: "what it predicts is left to its files"}
        self.change({"v_parameterization": following}, said[following])

    def action_reset(self) -> None:
        """Take the selected setting back to its default."""
        row = self._table.row
        if row:
            self.change({row.name: None}, f"{row.name} back to {row.default_text}")

    def action_fetch(self) -> None:
        """Fetch a hub model now."""
        if self._look is None or not self._look.is_absent_hub_id:
            self.post_message(Say("this model is on this machine already" if self._chosen else "no model is chosen"))
        elif not self._fetching:
            self._fetching = f"asking the hub for {safe_text(self._chosen)} ..."
            self._draw_facts()
            self._fetch(self._chosen)

    @work(thread=True, exclusive=True, group="fetch")
    def _fetch(self, name: str) -> None:
        def report(file: str, number: int, count: int) -> None:
            self.post_message(self.Fetching(name, f"fetching file {number} of {count}: {safe_text(file)}"))

        try:
            find_model(name, report)
            self.post_message(self.Fetching(name, "fetched", is_over=True))
        except EngineError as error:
            self.post_message(Say(str(error), "error"))
            self.post_message(self.Fetching(name, "", is_over=True))

    @on(Fetching)
    def _fetched(self, event: Fetching) -> None:
        self._fetching = "" if event.is_over else event.text
        if event.is_over and event.text and event.name == self._chosen:
            self._look_at(event.name, self.draft.value("vae"))
        self._draw_facts()

    @on(SettingTable.Entered)
    def _setting_entered(self, event: SettingTable.Entered) -> None:
        self.change({event.name: event.value})

    @on(SettingTable.Typed)
    def _setting_typed(self, event: SettingTable.Typed) -> None:
        if event.problem:
            self.post_message(Say(event.problem.message, "error"))


@dataclass(frozen=True, slots=True, kw_only=True)
class HashState:
    """How far a file's SHA-256 has come."""

    share: float
    digest: str

    @property
    def line(self) -> Line:
        """The hash, or how much of the file has been read."""
        if self.digest:
            return "sha256", self.digest, "dim"
        return "sha256", f"{bar(self.share, 16)} {self.share:.0%}", "dim"

"""The runs of a folder: what became of each, and several of them side by side."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Input, Static

from engine.errors import EngineError, safe_text
from engine.run import RunFolder, list_runs
from sdtui.chart import Trace
from sdtui.compare import differences, move_back, move_to_trash, new_path, read_settings, rename
from sdtui.curvestore import RunReader, Update
from sdtui.format import STATES, ago, plural
from sdtui.keys import bindings
from sdtui.messages import OpenRun
from sdtui.recent import shown_path
from sdtui.runstate import DECAYS, RunState
from sdtui.screens.choice import Choice, ChoiceDialog
from sdtui.screens.train_dialogs import TextDialog
from sdtui.summary import RunSummary, command_again, summaries
from sdtui.terminal import picture_mode
from sdtui.widgets.field import Field
from sdtui.widgets.key_footer import KeyFooter
from sdtui.widgets.plot import Plot
from sdtui.widgets.row_list import Cell, RowList
from sdtui.widgets.same_samples import SameSamples
from sdtui.widgets.status_line import StatusLine
from sdtui.widgets.virtual_table import Column, VirtualTable

if TYPE_CHECKING:
    from sdtui.app import SdtuiApp

LIMIT = 6  # Runs compared at once: as many as there are colours.
REFRESH_SECONDS = 1.0
WIDE = 120
SORTS: dict[str, Callable[[RunSummary], tuple[object, ...]]] = {
    "time": lambda run: (not run.is_alive, -run.time),
    "name": lambda run: (run.name.casefold(),),
    "loss": lambda run: (run.loss is None, run.loss or 0.0),
    "state": lambda run: (run.state, -run.time),
}
STATE_STYLES = {"running": "good", "paused": "warn", "finished": "good", "failed": "bad", "crashed": "bad"}
COLUMNS = (
    Column(title=" ", width=1),
    Column(title="name"),
    Column(title="state", width=10),
    Column(title="step", width=7, is_right=True),
    Column(title="loss", width=6, is_right=True),
    Column(title="when", width=6),
)
# On a narrow screen the state is its symbol, and the order tells the time.
NARROW_COLUMNS = (COLUMNS[0], COLUMNS[1], Column(title=" ", width=1), *COLUMNS[3:5])


@dataclass(slots=True)
class Loaded:
    """A run whose files are read for the comparison."""

    reader: RunReader
    state: RunState = field(default_factory=RunState)
    settings: dict[str, str] = field(default_factory=dict)
    is_reading: bool = False


class RunsScreen(Screen[None]):
    """Lists runs and compares those that are selected, or the one under the cursor."""

    CSS_PATH = ["train.tcss", "runs.tcss"]  # noqa: RUF012 - Textual declares it so
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("runs")]
    AUTO_FOCUS = "#run-rows"

    @dataclass
    class Scanned(Message):
        """The runs that are there."""

        runs: list[RunSummary]

    @dataclass
    class Read(Message):
        """A piece of a run's files."""

        path: Path
        update: Update
        settings: dict[str, str]

    def __init__(self, parent: Path) -> None:
        super().__init__()
        self._folder = parent
        self._runs: list[RunSummary] = []
        self._shown: list[RunSummary] = []
        self._selected: list[Path] = []
        self._loaded: dict[Path, Loaded] = {}
        self._differences: list[tuple[str, list[str]]] = []
        self._undo: list[tuple[Path, Path]] = []
        self._filter, self._sort, self._decay = "", "time", DECAYS[0]

    # ---- layout

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield Static("", markup=False, id="top")
        with Container(id="runs-grid"):
            with Vertical(classes="pane", id="runs-pane") as runs:
                runs.border_title = "Runs"
                yield VirtualTable(COLUMNS, self._run_row, name="run-rows", empty="no run in this folder")
                yield Field(placeholder="show runs that hold this text", id="run-filter", compact=True)
            with Vertical(classes="pane", id="overlay"):
                yield Plot(name="plot", is_ascii=self._app.terminal.use_ascii)
            with Vertical(classes="pane", id="differences"):
                yield VirtualTable((), self._difference_row, name="difference-rows", empty="no difference")
            yield SameSamples(picture_mode(self._app.terminal), name="same", slots=LIMIT)
        yield StatusLine()
        yield KeyFooter()

    def on_mount(self) -> None:
        """Look for runs, and again now and then."""
        self.query_one("#run-filter", Input).display = False
        self._scan()
        self.set_interval(REFRESH_SECONDS, self._refresh)

    def on_resize(self) -> None:
        """Show as many columns as there is room for."""
        is_wide = self.app.size.width >= WIDE
        self.query_one("#runs-pane VirtualTable", VirtualTable).set_columns(COLUMNS if is_wide else NARROW_COLUMNS)

    @property
    def _app(self) -> "SdtuiApp":
        return cast("SdtuiApp", self.app)

    @property
    def _table(self) -> RowList:
        return self.query_one("#run-rows", RowList)

    def _refresh(self) -> None:
        if self.app.screen is self:
            self._scan()
            self._read_targets()

    # ---- the list

    @work(thread=True, exclusive=True, group="scan")
    def _scan(self) -> None:
        found = summaries(run.path for run in list_runs(self._folder)) if self._folder.is_dir() else []
        self.post_message(self.Scanned(found))

    @on(Scanned)
    def _take_scan(self, message: Scanned) -> None:
        self._runs = message.runs
        there = {run.path for run in self._runs}
        self._selected = [path for path in self._selected if path in there]
        self._loaded = {path: loaded for path, loaded in self._loaded.items() if path in there}
        self._choose()

    def _choose(self) -> None:
        under = self._current
        fits = [run for run in self._runs if self._filter in f"{run.name} {run.state} {run.family}".casefold()]
        self._shown = sorted(fits, key=SORTS[self._sort])
        paths = [run.path for run in self._shown]
        self._table.show_rows(len(paths), cursor=paths.index(under.path) if under and under.path in paths else None)
        selected = f"{len(self._selected)} of {len(self._runs)} selected"
        title = f" Runs   {selected}   by {self._sort}   {shown_path(self._folder)}"
        self.query_one("#top", Static).update(Content(title))
        self._read_targets()

    @property
    def _current(self) -> RunSummary | None:
        return self._shown[self._table.cursor] if 0 <= self._table.cursor < len(self._shown) else None

    def _run_row(self, index: int) -> list[Cell]:
        run = self._shown[index]
        place = self._selected.index(run.path) if run.path in self._selected else -1
        loss = f"{run.loss:.4f}".removeprefix("0") if run.loss is not None else "-"
        style = STATE_STYLES.get(run.state, "")
        return [
            (chr(ord("a") + place) if place >= 0 else "\u00b7", "key" if place >= 0 else "dim"),
            (run.name, ""),
            (STATES[run.state] + (f" {run.state}" if self.app.size.width >= WIDE else ""), style),
            (str(run.step), ""),
            (loss, ""),
            (ago(run.time), "dim"),
        ]

    # ---- the comparison

    @property
    def _targets(self) -> list[Path]:
        current = self._current
        return self._selected or ([current.path] if current else [])

    def _read_targets(self) -> None:
        for path in self._targets:
            loaded = self._loaded.setdefault(path, Loaded(RunReader(RunFolder(path))))
            if not loaded.is_reading:
                loaded.is_reading = True
                self._read(path, loaded.reader)
        self._draw()

    @work(thread=True, group="read")
    def _read(self, path: Path, reader: RunReader) -> None:
        settings = read_settings(path / "run.toml")
        while True:
            update = reader.read()
            self.post_message(self.Read(path, update, settings))
            if not update.has_more:
                return

    @on(Read)
    def _take(self, message: Read) -> None:
        loaded = self._loaded.get(message.path)
        if loaded is None:
            return
        loaded.state.apply(message.update)
        loaded.state.curves.set_decay(self._decay)
        loaded.settings = message.settings
        loaded.is_reading = message.update.has_more
        if not loaded.is_reading:
            self._draw()

    def _draw(self) -> None:
        targets = [path for path in self._targets if path in self._loaded]
        runs = [self._loaded[path] for path in targets]
        names = [f"{chr(ord('a') + place)} {safe_text(path.name, limit=24)}" for place, path in enumerate(targets)]
        plot, pane = self.query_one(Plot), self.query_one("#overlay")
        shown = [
            Trace(series=run.state.curves.loss, style=f"s{place}", is_smoothed=bool(self._decay), tag=names[place][0])
            for place, run in enumerate(runs)
        ]
        plot.show(shown, last=max((run.state.step for run in runs), default=1))
        pane.border_title = Content("loss  " + "  ".join(names))
        smoothing = f"ema {self._decay:g}" if self._decay else "raw"
        pane.border_subtitle = Content(f"{smoothing}  {'log' if plot.is_log else 'linear'} y")
        self._show_differences(runs, names)
        self.query_one(SameSamples).show(
            [(name, path, run.state.samples) for name, path, run in zip(names, targets, runs, strict=True)]
        )

    def _show_differences(self, runs: list[Loaded], names: list[str]) -> None:
        found = differences([run.settings for run in runs]) if runs else []
        table, pane = self.query_one("#differences VirtualTable", VirtualTable), self.query_one("#differences")
        if found != self._differences or len(table.columns) != len(names) + 1:
            self._differences = found
            table.set_columns((Column(title="setting", width=28), *(Column(title=name) for name in names)))
            table.show_rows(len(found))
        pane.border_title = "Settings" if len(runs) == 1 else f"Settings: {plural(len(found), 'difference')}"

    def _difference_row(self, index: int) -> list[Cell]:
        name, values = self._differences[index]
        return [(name, ""), *((value, "dim" if value == "-" else "") for value in values)]

    @on(RowList.Moved, "#run-rows")
    def _moved(self) -> None:
        if not self._selected:
            self._read_targets()

    # ---- actions

    def action_select(self) -> None:
        """Take the run under the cursor into the comparison, or out."""
        current = self._current
        if current is None:
            return
        if current.path in self._selected:
            self._selected.remove(current.path)
        elif len(self._selected) < LIMIT:
            self._selected.append(current.path)
        else:
            self._app.say(f"{LIMIT} runs are compared at once: take one out with Space", "warning")
        self._choose()

    @on(RowList.Chosen, "#run-rows")
    def action_open(self) -> None:
        """Open the run under the cursor."""
        if self._current:
            self.post_message(OpenRun(self._current.path))

    def action_resume(self) -> None:
        """Show the states of the run under the cursor, to go on from."""
        if self._current:
            self._app.resume_run(self._current.path)

    def action_clone(self) -> None:
        """Open the wizard with the settings of the run under the cursor."""
        if self._current:
            self._app.open_wizard(self._current.path / "run.toml")

    def action_copy(self) -> None:
        """Copy the command that trains the run again."""
        if self._current:
            command = command_again(self._current.path)
            self._app.say(f"{safe_text(command)}: {self._app.copy_text(command)}")

    @work(group="dialog")
    async def action_rename(self) -> None:
        """Ask for another name."""
        current = self._current
        if current is None:
            return
        old = current.path
        name = await self.app.push_screen_wait(
            TextDialog("Rename", "The folder's new name.", value=old.name, check=lambda name: new_path(old, name))
        )
        if name and name != current.path.name:
            self._move(current.path, lambda: rename(current.path, name), "renamed")

    @work(group="dialog")
    async def action_delete(self) -> None:
        """Ask, then move the run into the trash."""
        current = self._current
        if current is None:
            return
        choices = (
            Choice(value="", title="Keep it", text="Nothing happens."),
            Choice(value="yes", title="Move to the trash", text="z takes it back. The trash lies beside the run."),
        )
        held = f"It holds {plural(current.models, 'model')}."
        if await self.app.push_screen_wait(ChoiceDialog(f"Delete {current.name}", held, choices)):
            self._move(current.path, lambda: move_to_trash(current.path), "moved to the trash")

    def _move(self, path: Path, mover: Callable[[], Path], word: str) -> None:
        try:
            target = mover()
        except EngineError as error:
            self._app.say(str(error), "error")
            return
        self._undo.append((target, path))
        self._app.say(f"{safe_text(path.name)} {word} ({safe_text(target.name)}); z takes it back")
        self._scan()

    def action_undo(self) -> None:
        """Take the last move back."""
        if not self._undo:
            self._app.say("nothing to undo")
            return
        target, path = self._undo.pop()
        try:
            move_back(target, path)
            self._app.say(f"{safe_text(path.name)} is back")
        except EngineError as error:
            self._app.say(str(error), "error")
        self._scan()

    def action_sort(self) -> None:
        """Sort by the next column."""
        names = [*SORTS]
        self._sort = names[(names.index(self._sort) + 1) % len(names)]
        self._choose()

    def action_log_scale(self) -> None:
        """Switch the plot's scale."""
        self.query_one(Plot).toggle_log()
        self._draw()

    def action_smoothing(self) -> None:
        """Take the next smoothing."""
        self._decay = DECAYS[(DECAYS.index(self._decay) + 1) % len(DECAYS)]
        for loaded in self._loaded.values():
            loaded.state.curves.set_decay(self._decay)
        self._draw()

    def action_sample_step(self, by: int) -> None:
        """Compare samples of another step."""
        self.query_one(SameSamples).move_step(by)

    def action_prompt(self, by: int) -> None:
        """Compare samples of another prompt."""
        self.query_one(SameSamples).move_prompt(by)

    def action_filter(self) -> None:
        """Open the filter."""
        field = self.query_one("#run-filter", Input)
        field.display = True
        field.focus()

    @on(Input.Changed, "#run-filter")
    def _filter_changed(self, event: Input.Changed) -> None:
        self._filter = event.value.strip().casefold()
        self._choose()

    @on(Input.Submitted, "#run-filter")
    def _leave_filter(self) -> None:
        self.query_one("#run-filter", Input).display = bool(self._filter)
        self._table.focus()

    def action_close(self) -> None:
        """Leave the filter, or go back."""
        if self.query_one("#run-filter", Input).has_focus:
            self._leave_filter()
        else:
            self.dismiss()

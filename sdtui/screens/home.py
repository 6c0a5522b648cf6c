"""The first screen: start, open or attach, and what has run before. It imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Input, Static

from engine.paths import written_path
from engine.run import list_runs
from sdtui import recent
from sdtui.format import STATES, ago, fit, plural
from sdtui.keys import bindings, keys_of
from sdtui.messages import OpenRun
from sdtui.summary import RunSummary, command_again, summaries
from sdtui.terminal import Terminal
from sdtui.widgets.field import Field
from sdtui.widgets.key_footer import KeyFooter
from sdtui.widgets.row_list import Cell, RowList
from sdtui.widgets.status_line import StatusLine
from sdtui.widgets.too_small import TooSmall

if TYPE_CHECKING:
    from sdtui.app import SdtuiApp

MENU = (
    ("n", "new", "New run", "from a folder of pictures"),
    ("w", "draft", "Wizard", "on with the last draft"),
    ("o", "open", "Open run.toml", "yours or sd-scripts'"),
    ("r", "resume", "Resume", "from the newest state"),
    ("a", "attach", "Attach", "to a running training"),
    ("u", "runs", "Runs", "compare, rerun, delete"),
    ("d", "demo", "Demo", "the starter project"),
    ("D", "doctor", "Doctor", "terminal, GPU, disk"),
    ("q", "app.leave", "Quit", "close the program"),
)
STYLES = {"running": "good", "paused": "warn", "finished": "good", "failed": "bad", "crashed": "bad"}
SORTS = ("time", "name", "loss", "state")
REFRESH_SECONDS = 2.0


class HomeScreen(Screen[None]):
    """Where the app starts and always comes back to."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("home")]
    AUTO_FOCUS = "#menu"

    @dataclass
    class Scanned(Message):
        """The runs that are there."""

        runs: tuple[RunSummary, ...]

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal
        self._runs: tuple[RunSummary, ...] = ()
        self._filter = ""
        self._sort = "time"

    # ---- layout

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield Static(Content.assemble((" sdtui ", "bold reverse"), f"  {recent.shown_path(Path.cwd())}"), id="top")
        with Horizontal(id="upper"):
            with Vertical(classes="pane", id="start") as start:
                start.border_title = "Start"
                yield RowList(self._menu_row, name="menu")
            with Vertical(classes="pane", id="about") as about:
                about.border_title = "Selected run"
                yield Static("", markup=False, id="detail")
        with Vertical(classes="pane", id="recent") as pane:
            pane.border_title = "Recent runs"
            yield Static("", markup=False, id="heading", classes="heading")
            yield RowList(self._run_row, name="runs", empty="no run yet: n starts one, d opens the demo")
            yield Field(placeholder="show runs that hold this text", id="filter", compact=True)
        yield StatusLine()
        yield KeyFooter()
        yield TooSmall()

    def on_mount(self) -> None:
        """Fill the lists and look for runs again every two seconds."""
        self.query_one("#filter").display = False
        self._list("menu").show_rows(len(MENU))
        self._say(_hint(self._terminal))
        self.set_interval(REFRESH_SECONDS, self._scan_in_view)
        self._scan()

    def on_screen_resume(self) -> None:
        """Look at the runs anew when the screen comes back."""
        self._scan()

    @property
    def _app(self) -> "SdtuiApp":
        return cast("SdtuiApp", self.app)

    @property
    def selected(self) -> RunSummary | None:
        """The run under the cursor."""
        shown = self._shown
        index = self._list("runs").cursor
        return shown[index] if index < len(shown) else None

    @property
    def _shown(self) -> list[RunSummary]:
        wanted = self._filter.lower()
        runs = [run for run in self._runs if wanted in f"{run.name} {run.state} {run.family} {run.trains}".lower()]
        orders = {"name": lambda run: run.name, "state": lambda run: run.state, "loss": lambda run: run.loss or 1e9}
        return sorted(runs, key=orders[self._sort]) if self._sort in orders else runs

    def _list(self, name: str) -> RowList:
        return self.query_one(f"#{name}", RowList)

    def _say(self, text: str) -> None:
        self.query_one(StatusLine).say(text)

    def _menu_row(self, index: int, width: int) -> list[Cell]:
        key, _action, title, text = MENU[index]
        return [(f" {key}  ", "key"), (fit(title, 14), ""), (fit(text, width - 18), "dim")]

    def _run_row(self, index: int, width: int) -> Sequence[Cell]:
        return run_cells(self._shown[index], width)

    # ---- runs

    def _scan_in_view(self) -> None:
        # Below another screen each change of this one would paint the other anew.
        if self.app.screen is self:
            self._scan()

    @work(thread=True, exclusive=True, group="scan")
    def _scan(self) -> None:
        folders = [Path(entry.name) for entry in recent.recent("run")]
        here = [folder.path for parent in ("runs", "sdtui-demo") for folder in list_runs(Path.cwd() / parent)]
        self.post_message(self.Scanned(tuple(summaries([*folders, *here]))))

    @on(Scanned)
    def _show(self, event: Scanned) -> None:
        if event.runs != self._runs or not self._runs:
            selected = self.selected.path if self.selected else None
            self._runs = event.runs
            self._draw_runs(selected)

    def _draw_runs(self, selected: Path | None = None) -> None:
        shown = self._shown
        cursor = next((index for index, run in enumerate(shown) if run.path == selected), None)
        runs = self._list("runs")
        runs.show_rows(len(shown), cursor=cursor)
        title = f"Recent runs: {len(shown)}" + (f" of {len(self._runs)}" if len(shown) < len(self._runs) else "")
        self.query_one("#recent").border_title = Content(f"{title}   by {self._sort}")
        self.query_one("#heading", Static).update(Content(heading(runs.size.width)))
        self._describe()

    def on_resize(self) -> None:
        """Draw the heading for the new width."""
        self.call_after_refresh(self._draw_runs)

    @on(RowList.Moved, "#runs")
    def _describe(self) -> None:
        run = self.selected
        self.query_one("#about").border_title = Content(run.name if run else "First time here?")
        self.query_one("#detail", Static).update(Content(describe(run) if run else WELCOME))

    @on(RowList.Chosen, "#runs")
    def _open_run(self) -> None:
        self.action_attach()

    @on(RowList.Chosen, "#menu")
    async def _choose(self, event: RowList.Chosen) -> None:
        await self.run_action(MENU[event.index][1])

    # ---- actions

    def action_new(self) -> None:
        """Start a new run."""
        self._app.open_wizard()

    def action_draft(self) -> None:
        """Go on with the draft that was left last."""
        if draft := recent.newest_draft():
            self._app.open_wizard(draft)
        else:
            self._say("no draft was left: n starts one")

    @work(group="dialog")
    async def action_open(self) -> None:
        """Ask for a run.toml and open it."""
        from sdtui.screens.path_prompt import PathPrompt

        path = await self._app.push_screen_wait(PathPrompt("Open a run.toml", accepts="toml", check=_read_toml))
        if path:
            self._app.open_typed(path)

    def action_resume(self) -> None:
        """Show the states of the selected run, else of the newest that stopped, to go on from."""
        run = self.selected
        if self.focused is not self._list("runs"):
            run = next((run for run in self._runs if not run.is_alive and run.state != "finished"), run)
        if run is None:
            self._say("no run is listed here: o opens a run.toml, `sdtui resume DIR` goes on with any run folder")
            return
        self._app.resume_run(run.path)

    def action_attach(self) -> None:
        """Show the training screen of the selected run, else of the first that runs."""
        run = self.selected
        if self.focused is not self._list("runs"):
            run = next((run for run in self._runs if run.is_alive), run)
        if run:
            self._app.post_message(OpenRun(run.path))
        else:
            self._say("there is no run to attach to")

    def action_runs(self) -> None:
        """Compare runs."""
        run = self.selected
        self._app.open_screen("runs", run.path.parent if run else Path.cwd() / "runs")

    def action_demo(self) -> None:
        """Open the starter project."""
        self._app.open_demo()

    def action_doctor(self) -> None:
        """Open the doctor."""
        self._app.open_screen("doctor", self._app.terminal)

    def _wanted(self) -> RunSummary | None:
        if self.selected is None:
            self._say("no run is listed: n starts one")
        return self.selected

    def action_clone(self) -> None:
        """Open the wizard with a copy of the selected run's settings."""
        if run := self._wanted():
            self._app.open_wizard(run.path / "run.toml")

    def action_copy(self) -> None:
        """Copy the command that trains the selected run's settings again."""
        if run := self._wanted():
            self._say(self._app.copy_text(command_again(run.path)))

    def action_forget(self) -> None:
        """Take the selected run off the list."""
        if run := self._wanted():
            recent.forget("run", run.path)
            self._say(f"{run.name} is off this list; its files stay (runs under ./runs are always listed)")
            self._scan()

    def action_sort(self) -> None:
        """Sort by the next column."""
        self._sort = SORTS[(SORTS.index(self._sort) + 1) % len(SORTS)]
        self._draw_runs()

    def action_filter(self) -> None:
        """Show the filter."""
        self.query_one("#filter").display = True
        self.query_one("#filter").focus()

    @on(Input.Changed, "#filter")
    def _filter_changed(self, event: Input.Changed) -> None:
        self._filter = event.value
        self._draw_runs()

    @on(Input.Submitted, "#filter")
    def _filter_done(self) -> None:
        self.query_one("#filter").display = bool(self._filter)
        self._list("runs").focus()

    def key_escape(self) -> None:
        """Leave the filter and show all."""
        self.query_one("#filter", Input).value = self._filter = ""
        self._filter_done()


WELCOME = (
    "Press n, then name a model\n"
    "and a folder of pictures;\n"
    "the rest has a default.\n\n"
    "Pages 1 Model to 5 Review:\n"
    "nothing is trained before you\n"
    "start it on the last."
)


def _read_toml(path: str) -> None:
    from sdtui.draft import read_text

    read_text(written_path(path))


def _hint(terminal: Terminal) -> str:
    if terminal.multiplexer:
        return f"inside {terminal.multiplexer}: this window may be closed while a training runs"
    return "closing this window or losing the connection never ends a training"


def heading(width: int) -> str:
    """Return the column heads of the runs."""
    head = "   " + fit("name", _name_width(width)) + fit("state", 10) + fit("step", 14, is_right=True)
    head += fit("loss", 9, is_right=True) + fit("when", 9, is_right=True)
    return head + ("   " + fit("base", 8) + fit("trains", 22) + fit("models", 6, is_right=True) if width >= 100 else "")


def run_cells(run: RunSummary, width: int) -> Sequence[Cell]:
    """Return the row of a run."""
    style = STYLES.get(run.state, "dim")
    loss = "" if run.loss is None else f"{run.loss:.4f}"
    cells = [
        (f" {STATES[run.state]} ", style),
        (fit(run.name, _name_width(width)), ""),
        (fit(run.state, 10), style),
        (fit(f"{run.step}/{run.steps}" if run.steps else "", 14, is_right=True), ""),
        (fit(loss, 9, is_right=True), ""),
        (fit(ago(run.time), 9, is_right=True), "dim"),
    ]
    if width >= 100:
        cells += [
            ("   " + fit(run.family, 8) + fit(run.trains, 22) + fit(str(run.models or ""), 6, is_right=True), "dim")
        ]
    return cells


def _name_width(width: int) -> int:
    return max(10, width - 3 - 10 - 14 - 9 - 9 - (39 if width >= 100 else 0) - 1)


def describe(run: RunSummary) -> str:
    """Return the selected run in a few lines."""
    share = f"  {100 * run.step / run.steps:.0f} %" if run.steps else ""
    lines = [f"{STATES[run.state]} {run.state}  {run.step}/{run.steps}{share}"]
    if run.loss is not None:
        lines.append(f"loss {run.loss:.4f} (last 50 steps)")
    then = ago(run.time)
    lines.append(f"{plural(run.models, 'model')} saved   {then if then == 'now' else f'{then} ago'}")
    if run.message:
        lines += ["", run.message]
    return "\n".join([*lines, "", recent.shown_path(run.path)])


def menu_matches_keys() -> bool:
    """Tell whether every entry of the menu is a key of this screen (a test asks)."""
    known = {(key.key, key.action) for key in keys_of("home")}
    return all((key, action) in known for key, action, _title, _text in MENU)

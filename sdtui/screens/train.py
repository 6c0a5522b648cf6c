"""The training screen: draws a run from its files alone, so it is the same for a run here, elsewhere, or finished."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Static

from engine.errors import safe_text
from engine.events import Requested, Started
from engine.run import RunFolder, Verb
from sdtui.curvestore import RunReader, Update
from sdtui.keys import bindings
from sdtui.pace import SHORTEST, Pace
from sdtui.runstate import ENDED, RunState
from sdtui.screens import train_view
from sdtui.terminal import Terminal, picture_mode
from sdtui.widgets.event_log import EventLog
from sdtui.widgets.gallery import Gallery
from sdtui.widgets.key_footer import KeyFooter
from sdtui.widgets.meter import Meter
from sdtui.widgets.plot import Plot
from sdtui.widgets.row_list import Cell, RowList
from sdtui.widgets.run_plot import RunPlot, traces
from sdtui.widgets.status_line import StatusLine

if TYPE_CHECKING:
    from sdtui.app import SdtuiApp


class Engine(Protocol):
    """An engine in a thread of this process; its error is all there is when it could not start."""

    error: str

    @property
    def is_running(self) -> bool:
        """Tell whether it has not ended yet."""


class TrainScreen(Screen[None]):
    """Shows a run and sends it requests."""

    CSS_PATH = "train.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("train")]
    AUTO_FOCUS = "#event-rows"

    @dataclass
    class Read(Message):
        """A thread has read a piece of the run's files."""

        update: Update

    @dataclass
    class CadenceRead(Message):
        """A thread has read when the run saves of itself."""

        cadence: train_view.Cadence

    def __init__(self, folder: RunFolder, engine: Engine | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.state = RunState()
        self._engine = engine
        self._reader = RunReader(folder)
        self._cadence = train_view.Cadence()
        self._pace = Pace()
        self._is_reading = False
        self._was_live = False
        self._drawn_at = 0.0
        self._typed: list[str] = []
        self._now: list[tuple[str, str, str]] = []
        self._timeline: list[list[Cell]] = []

    # ---- layout

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        is_ascii = self._terminal.use_ascii
        yield Meter(name="top")
        yield Static("", markup=False, id="ending")
        with Container(id="train-grid"):
            yield RunPlot(self.state, name="main", is_ascii=is_ascii)
            with Vertical(id="side"):
                for name, title in (("lr-plot", "learning rate"), ("norm-plot", "gradient norm")):
                    with Vertical(classes="pane") as pane:
                        pane.border_title = title
                        yield Plot(name=name, is_ascii=is_ascii)
            with Vertical(classes="pane", id="now") as now:
                now.border_title = "Now"
                yield RowList(self._now_row, name="now-rows")
            yield Gallery(self.folder.path, picture_mode(self._terminal), name="gallery")
            yield EventLog(name="events")
            with Vertical(classes="pane", id="timeline") as timeline:
                timeline.border_title = "Models"
                yield RowList(self._timeline_row, name="timeline-rows", empty="none saved yet")
        yield StatusLine()
        yield KeyFooter(lambda action: train_view.offers(self.state, action))

    def on_mount(self) -> None:
        """Begin to follow the run."""
        self.query_one("#now-rows", RowList).can_focus = False
        self._read_cadence()
        self._poll()

    @property
    def _app(self) -> "SdtuiApp":
        return cast("SdtuiApp", self.app)

    @property
    def _terminal(self) -> Terminal:
        return self._app.terminal

    @property
    def _plot(self) -> RunPlot:
        return self.query_one(RunPlot)

    def on_screen_resume(self) -> None:
        """Send pictures again that another screen has covered."""
        self.query_one(Gallery).redraw()

    # ---- following

    def _poll(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._read()
        self._timer = self.set_timer(self._pace.delay(), self._poll)

    def _hurry(self) -> None:
        """Look at once, and often for a moment: somebody waits for an answer."""
        self._pace.hurry()
        self._timer.stop()
        self._timer = self.set_timer(SHORTEST, self._poll)

    @work(thread=True, group="read")
    def _read(self) -> None:
        while True:
            update = self._reader.read()
            self.post_message(self.Read(update))
            if not update.has_more:
                return

    @work(thread=True, group="cadence")
    def _read_cadence(self) -> None:
        self.post_message(self.CadenceRead(train_view.read_cadence(self.folder.path / "run.toml")))

    @on(CadenceRead)
    def _take_cadence(self, message: CadenceRead) -> None:
        self._cadence = message.cadence

    @on(Read)
    def _take(self, message: Read) -> None:
        update = message.update
        self._is_reading = update.has_more
        events = self.state.apply(update)
        log = self.query_one(EventLog)
        for event in events:
            if isinstance(event, Started) and event.resumed_from is not None:
                log.clear_after(event.resumed_from)
            log.add([event])
            if isinstance(event, Started) and update.is_alive:
                self._app.say(f"engine pid {event.pid}: closing this screen or losing SSH does not stop it")
            if isinstance(event, Requested) and self._was_live:
                self._app.say(event.message, "info" if event.accepted else "warning")
        now = time.monotonic()
        if not update.has_more or now - self._drawn_at > SHORTEST:
            is_changed = bool(len(update.rows) or update.events)
            self._drawn_at = now
            self._draw(is_changed=is_changed)
        if not update.has_more:
            self._tell_ending()
            self._was_live = self.state.phase not in ENDED

    def _tell_ending(self) -> None:
        """Reach a user who looks elsewhere, once, when the run ends while it is watched."""
        if self._was_live and self.state.phase in ENDED:
            text, _style = train_view.ending(self.state)
            self._app.notify_terminal("sdtui", text.partition("\n")[0])
            self._app.say("the run has ended: q goes back")

    # ---- drawing

    def _draw(self, *, is_changed: bool = True) -> None:
        is_wide = self.app.size.width >= 120
        self.query_one("#top", Meter).show(*train_view.header(self.state, name=self.folder.path.name, is_wide=is_wide))
        now = train_view.now_rows(self.state)
        if now != self._now:
            self._now = now
            self.query_one("#now-rows", RowList).show_rows(len(now))
        self._draw_ending()
        if not is_changed:
            return
        self._draw_plots()
        self.query_one(Gallery).show(self.state.samples)
        if self.query_one("#timeline").display:
            self._timeline = train_view.timeline_rows(self.state, self._cadence)
            self.query_one("#timeline-rows", RowList).show_rows(len(self._timeline))

    def _draw_ending(self) -> None:
        text, style = train_view.ending(self.state)
        if self._engine is not None and not self._engine.is_running and self._engine.error:
            text, style = f"\u2717 NOT STARTED: {safe_text(self._engine.error, limit=1200)}", "-failed"
        panel = self.query_one("#ending", Static)
        if panel.display != bool(text) or str(panel.content) != text:
            panel.display = bool(text)
            panel.set_classes(style)
            panel.update(Content(text))
            self.query_one(KeyFooter).refresh()

    def _draw_plots(self) -> None:
        self._plot.draw()
        if self.query_one("#side").display:
            for name, metric in (("#lr-plot", "learning_rate"), ("#norm-plot", "grad_norm")):
                self.query_one(name, Plot).show(traces(self.state, metric, ""), last=self.state.step)

    def _now_row(self, index: int, width: int) -> list[Cell]:
        label, text, style = self._now[index]
        return [(f" {label:<7}", "dim"), (text[: max(0, width - 8)], style)]

    def _timeline_row(self, index: int, _width: int) -> list[Cell]:
        return self._timeline[index]

    # ---- asking the engine

    def _ask(self, verb: Verb, said: str, **arguments: object) -> None:
        if self.state.phase in ENDED:
            self._app.say(f"the run has ended: nothing to {verb}", "warning")
            return
        try:
            self.folder.request(verb, **arguments)
        except OSError as error:
            reason = safe_text(error.strerror or str(error))
            self._app.say(f"the request can't be written ({reason}): {safe_text(str(self.folder.path))}", "error")
            return
        self._app.say(said)
        self._hurry()

    def action_pause(self) -> None:
        """Pause, or go on."""
        if self.state.is_paused:
            self._ask("continue", "going on")
        else:
            self._ask("pause", "pausing after this step")

    def action_save(self) -> None:
        """Save a model."""
        self._ask("save", "saving after this step")

    @work(group="dialog")
    async def action_sample(self) -> None:
        """Ask which prompt to draw, all of the run's where none is typed."""
        from sdtui.screens.prompt_dialog import PromptDialog

        if self.state.phase in ENDED:
            self._app.say("the run has ended: nothing to sample", "warning")
            return
        line = await self.app.push_screen_wait(PromptDialog(self.folder.path, self._typed))
        if line is None:
            return
        if line:
            self._typed = [*(one for one in self._typed if one != line), line]
        self._ask("sample", "drawing after this step", **({"prompt": line} if line else {}))

    @work(group="dialog")
    async def action_stop(self) -> None:
        """Ask how to stop, and for a typed word where work would be lost."""
        from sdtui.screens.train_dialogs import DISCARD, TextDialog, stop_dialog

        if self.state.phase in ENDED:
            self._app.say("the run has ended: nothing to stop", "warning")
            return
        when = await self.app.push_screen_wait(stop_dialog())
        if when == "discard":
            typed = await self.app.push_screen_wait(
                TextDialog(DISCARD, f"No model of this run is saved beyond the last one. Type {DISCARD} to go on.")
            )
            if typed != DISCARD:
                self._app.say("not stopped")
                return
            self._ask("stop", "stopping after this step, without saving", when="step", save=False)
        elif when:
            self._ask("stop", f"stopping after this {when}, saving", when=when, save=True)

    @work(group="dialog")
    async def action_cadence(self) -> None:
        """Ask how often samples are drawn."""
        from sdtui.screens.train_dialogs import TextDialog

        text = "Draw samples every so many steps; 0 for never."
        typed = await self.app.push_screen_wait(TextDialog("Sampling", text, is_number=True))
        if typed is not None:
            said = f"sampling every {typed} steps"
            self._ask("set", said, key="sample_every_n_steps", value=int(typed))

    def action_detach(self) -> None:
        """Close the screen; the run goes on."""
        self.dismiss()

    def action_close(self) -> None:
        """Leave the filter, put the cursor away, or close the screen."""
        if self.query_one(EventLog).close_filter():
            return
        if self._plot.plot.cursor is not None:
            self._plot.toggle_cursor()
            return
        self.dismiss()

    # ---- looking

    def action_metric(self) -> None:
        """Plot the next metric."""
        self._plot.next_metric()

    def action_band(self) -> None:
        """Plot the loss by band of timesteps, or as one."""
        self._plot.toggle_split("band")

    def action_bucket(self) -> None:
        """Plot the loss by bucket, or as one."""
        self._plot.toggle_split("bucket")

    def action_smoothing(self) -> None:
        """Take the next smoothing."""
        self._plot.next_smoothing()

    def action_log_scale(self) -> None:
        """Switch the scale."""
        self._plot.toggle_log()

    def action_zoom_in(self) -> None:
        """Zoom in."""
        self._plot.zoom(0.5)

    def action_zoom_out(self) -> None:
        """Zoom out."""
        self._plot.zoom(2.0)

    def action_fit(self) -> None:
        """Show the whole run."""
        self._plot.fit()

    def action_pan(self, direction: int) -> None:
        """Move the cursor where there is one, else the window."""
        self._plot.move(direction)

    def action_cursor(self) -> None:
        """Put the cursor on the newest step, or take it away."""
        self._plot.toggle_cursor()

    @on(Plot.CursorMoved, "#plot")
    def _scrub(self, message: Plot.CursorMoved) -> None:
        """Show the samples of the step under the cursor."""
        if message.step is not None:
            self.query_one(Gallery).go_to(message.step)

    def action_gallery(self, by: int) -> None:
        """Show the samples of another step."""
        self.query_one(Gallery).move(by)

    @on(Gallery.StepChosen)
    def _follow_gallery(self, message: Gallery.StepChosen) -> None:
        """Take the plot's cursor along, so that picture and loss belong together."""
        if self._plot.plot.cursor is not None:
            with self.prevent(Plot.CursorMoved):
                self._plot.plot.put_cursor(message.step)
            self._plot.describe()

    @on(RowList.Chosen)
    def action_view(self) -> None:
        """Show the samples large."""
        from sdtui.screens.train_dialogs import SampleDialog

        gallery = self.query_one(Gallery)
        if gallery.step is None:
            self._app.say("no samples yet: P draws some", "info")
            return
        mode = picture_mode(self._terminal)
        self.app.push_screen(SampleDialog(self.folder.path, self.state.samples, step=gallery.step, mode=mode))

    def action_log(self) -> None:
        """Show log.txt."""
        from sdtui.screens.train_dialogs import LogDialog

        self.app.push_screen(LogDialog(self.folder.log_path))

    def action_filter(self) -> None:
        """Filter the events."""
        self.query_one(EventLog).start_filter()

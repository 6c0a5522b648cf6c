"""The app: screens, themes, terminal, and the training that may run in its process. Torch-free, and light to import."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on, work
from textual.app import App, SystemCommand
from textual.binding import BindingType
from textual.command import Provider
from textual.driver import Driver
from textual.filter import LineFilter
from textual.screen import Screen
from textual.worker import get_current_worker

from engine.errors import EngineError
from engine.paths import written_path
from engine.run import RunFolder
from sdtui import guard, recent
from sdtui.breath import Breath
from sdtui.keys import bindings
from sdtui.messages import OpenRun, OpenToml, Say
from sdtui.pages import SCREENS, load
from sdtui.screens.home import HomeScreen
from sdtui.terminal import Terminal, TextFilter, clipboard_sequences, detect, notification
from sdtui.themes import CYCLE, THEMES, default_theme, extra_variables
from sdtui.widgets.status_line import StatusLine
from sdtui.widgets.too_small import MIN_HEIGHT, MIN_WIDTH, TooSmall

if TYPE_CHECKING:
    from engine.headless import EngineThread
    from engine.resume import Resume
    from engine.settings_io import LoadedSettings
    from sdtui.driver import TerminalFile


WARM_MODULES = (
    "engine.settings_io", "sdtui.draft", "sdtui.screens.wizard", "sdtui.screens.model", "sdtui.screens.data",
    "sdtui.screens.buckets", "sdtui.screens.options", "sdtui.screens.review", "engine.pixels", "engine.headless",
)  # fmt: skip


def _key_provider() -> type[Provider]:
    from sdtui.palette import KeyProvider

    return KeyProvider


class SdtuiApp(App[str]):
    """Home at the bottom of the stack, everything else above it. The result is how it ended."""

    TITLE = "sdtui"
    CSS_PATH = "app.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("app")]
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {
        *App.COMMANDS,
        _key_provider,
    }
    HORIZONTAL_BREAKPOINTS = [  # noqa: RUF012 - Textual declares it so
        (0, "-tiny"), (MIN_WIDTH, "-narrow"), (120, "-wide"),
    ]  # fmt: skip
    VERTICAL_BREAKPOINTS = [  # noqa: RUF012 - Textual declares it so
        (0, "-flat"), (MIN_HEIGHT, "-low"), (21, "-short"), (36, "-tall"),
    ]  # fmt: skip

    def __init__(
        self, *, open_path: Path | None = None, attach: Path | None = None, terminal: Terminal | None = None
    ) -> None:
        self.terminal: Terminal = terminal or detect()
        self.tty: TerminalFile | None = None
        super().__init__()
        self.engine: EngineThread | None = None
        self.crash: Exception | None = None
        self.ending = ""
        """Why the screen was ended from outside: lost, SIGTERM, SIGINT; empty while it was not."""
        self._open_path = open_path
        self._attach_to = attach
        self._text_filter = TextFilter(self.terminal)
        self._loop: asyncio.AbstractEventLoop | None = None
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = default_theme(self.terminal)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Return our own colour variables for the themes that do not define them."""
        return extra_variables(self.current_theme)

    # ---- terminal

    def get_driver_class(self) -> type[Driver]:
        """Return the driver that survives the loss of its terminal, where there is one."""
        return _driver_class(super().get_driver_class())

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Return Textual's filters, and the one that lets no control character pass."""
        return [*super().get_line_filters(), self._text_filter]

    def copy_text(self, text: str) -> str:
        """Copy text to the terminal's clipboard and to a file, and return a line that says so."""
        path = recent.data_dir() / "clipboard.txt"
        try:
            recent.write_private(path, text)
            kept = f"; also in {recent.shown_path(path)}"
        except OSError:
            kept = ""
        self._clipboard = text
        sequences = clipboard_sequences(text, self.terminal)
        for sequence in sequences:
            self.write_raw(sequence)
        if not sequences:
            return f"too long for the clipboard{kept}"
        if self.terminal.is_browser:
            return f"copied, if your browser allows it{kept}"
        through = f" through {self.terminal.multiplexer}" if self.terminal.multiplexer else ""
        return f"copied by OSC 52{through}, if your terminal allows it{kept}"

    def copy_to_clipboard(self, text: str) -> None:
        """Copy text as `copy_text` does; Textual's own widgets call this."""
        self.copy_text(text)

    def notify_terminal(self, title: str, text: str) -> None:
        """Tell a user who looks elsewhere: OSC 9 and the bell."""
        self.write_raw(notification(title, text, self.terminal))

    def write_raw(self, sequence: str) -> None:
        """Write an escape sequence of ours to the terminal."""
        if self._driver is not None and not self.is_headless:
            self._driver.write(sequence)

    # ---- life

    def on_mount(self) -> None:
        """Show Home, and what the command line asked for above it."""
        self._loop = asyncio.get_running_loop()
        if self.tty is not None:
            self.tty.on_lost = lambda: self.end_from_outside("lost")
            self.tty.on_resumed = lambda: self.soon(self._repaint)
            self.set_interval(1.0, self.tty.check)
        self.push_screen(HomeScreen(self.terminal))
        if self.ending:
            self._end()
        self.set_timer(0.3, self._after_first_paint)

    def _after_first_paint(self) -> None:
        if self._attach_to is not None:
            self.post_message(OpenRun(self._attach_to))
            return
        if self._open_path is not None:
            self.open_wizard(self._open_path)
        self._warm_up()

    @work(thread=True, group="warm-up")
    def _warm_up(self) -> None:
        """Import what the wizard and its pages need before it is asked for, so that no key waits for it."""
        breath = Breath(self.soon, lambda: False)
        for name in WARM_MODULES:
            import_module(name)
            time.sleep(0.05)
            breath()

    def _repaint(self) -> None:
        self.screen.refresh(layout=True)

    def soon(self, callback: Callable[[], object]) -> None:
        """Call something in the event loop as soon as it comes round; may be called from any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # It has ended.
                self._loop.call_soon_threadsafe(callback)

    def end_from_outside(self, ending: str) -> None:
        """End the screen because of a signal or a lost terminal; may be called from any thread or signal handler."""
        self.ending = self.ending or ending
        self.soon(self._end)

    def _end(self) -> None:
        self.exit(self.ending)

    def _handle_exception(self, error: Exception) -> None:
        """End the screen with one sentence; the traceback goes to the log, without local variables."""
        guard.log_error(error)
        if self.ending:
            # A screen that is ended half mounted fails here and there; nobody is there to be told.
            self._close_messages_no_wait()
            return
        self.crash = error
        self._return_code = 1
        if self._exception is None:
            self._exception = error
            self._exception_event.set()
        self._close_messages_no_wait()

    def on_resize(self) -> None:
        """Put the line for small terminals on the present screen; the style sheet decides when it shows."""
        if self.screen.is_mounted and not self.screen.query(TooSmall):
            self.screen.mount(TooSmall())

    # ---- screens

    def open_screen(self, name: str, *arguments: object) -> None:
        """Push a screen by its name; its module is imported now."""
        if name != "help":
            self.say("")  # What led here is done, and would be stale news when the present screen comes back.
        screen: Screen[Any] = load(SCREENS[name])(*arguments)
        self.push_screen(screen)

    def open_wizard(self, path: Path | None = None) -> None:
        """Open the wizard on a file, or on a new draft."""
        from sdtui.draft import new_draft, open_draft

        try:
            draft = open_draft(path, recent.drafts_dir()) if path else new_draft(Path.cwd(), recent.drafts_dir())
        except EngineError as error:
            self.say(str(error), "error")
            return
        self.open_screen("wizard", draft)

    def open_typed(self, path: str) -> None:
        """Open the wizard on a path as somebody typed it."""
        try:
            self.open_wizard(written_path(path))
        except EngineError as error:
            self.say(str(error), "error")

    def open_demo(self) -> None:
        """Write the starter project to ./sdtui-demo, unless it is there, and open it."""
        self.say("writing the starter project to ./sdtui-demo ...")
        self._write_demo(Path("sdtui-demo").absolute())

    @work(thread=True, exclusive=True, group="demo")
    def _write_demo(self, folder: Path) -> None:
        from sdtui.demo import write_project

        try:
            write_project(folder)
        except EngineError as error:
            self.post_message(Say(str(error), "error"))
        else:
            self.post_message(OpenToml(folder / "run.toml"))

    @on(OpenToml)
    def _open_toml(self, event: OpenToml) -> None:
        self.open_wizard(event.path)

    @on(OpenRun)
    def _open_run(self, event: OpenRun) -> None:
        folder = RunFolder(event.path)
        if not folder.events_path.exists():
            self.say(f"no run lies in {recent.shown_path(event.path)}", "error")
            return
        recent.remember("run", event.path.absolute())
        self.open_screen("train", folder)

    @work(group="dialog")
    async def resume_run(self, folder: Path) -> None:
        """Ask from which state a run goes on, and train on in this process."""
        from sdtui.screens.resume_menu import ask_and_resume

        await ask_and_resume(self, folder)

    def start_here(self, loaded: "LoadedSettings", resume: "Resume | None" = None) -> None:
        """Train in this process, perhaps from a state on, and show the training screen."""
        from engine.headless import start_in_thread

        if self.engine is not None and self.engine.is_running:
            self.say("a training runs in this process already: start this one in the background", "error")
            return
        log = RunFolder(Path(loaded.settings.saving.output_dir)).log_path
        watcher = guard.RunWatcher(log, has_own_terminal=self.tty is not None)
        if self.tty is not None:
            self.tty.tell_training(goes_on=True)  # Before it begins: who hears of none may end this process.
        self.engine = start_in_thread(loaded, listeners=[watcher], resume=resume)
        recent.remember("run", self.engine.folder.path)
        self.open_screen("train", self.engine.folder, self.engine)

    def start_background(self, run_toml: Path, folder: Path) -> None:
        """Train in a process of its own and show its training screen once it has begun."""
        from sdtui.launch import start_background

        try:
            pid = start_background(run_toml, recent.data_dir() / "background.log")
        except EngineError as error:
            self.say(str(error), "error")
            return
        recent.remember("run", folder.absolute())
        self.say(f"started in a process of its own (pid {pid}); waiting for its first event")
        self._wait_for_run(folder)

    @work(thread=True, exclusive=True, group="background")
    def _wait_for_run(self, folder: Path) -> None:
        worker = get_current_worker()
        for _attempt in range(600):
            if worker.is_cancelled:
                return
            if RunFolder(folder).events_path.exists():
                self.post_message(OpenRun(folder))
                return
            time.sleep(0.1)
        log = recent.shown_path(recent.data_dir() / "background.log")
        self.post_message(Say(f"the training has not begun within a minute; see {log}", "error"))

    @on(Say)
    def _say_message(self, event: Say) -> None:
        self.say(event.text, event.severity)

    def say(self, text: str, severity: Any = "info") -> None:  # noqa: ANN401 - engine.errors.Severity or Textual's
        """Show a line in the present screen's status row."""
        for line in self.screen.query(StatusLine):
            line.say(text, severity)

    # ---- actions

    @work(group="dialog")
    async def action_leave(self) -> None:
        """Close the screen; while a training runs in this process, ask what becomes of it."""
        from sdtui.screens.leave import leave_dialog

        if self.engine is None or not self.engine.is_running:
            self.exit("quit")
            return
        answer = await self.push_screen_wait(leave_dialog(self.engine.folder.path))
        if answer == "stop":
            self.engine.control.stop("user")
        if answer in ("stop", "detach"):
            self.exit("detached")

    def action_copy_or_hint(self) -> None:
        """Copy the selected text, or say how to leave."""
        selected = self.screen.get_selected_text()
        self.say(self.copy_text(selected) if selected else "Ctrl+Q closes the screen; nothing to copy")

    def action_help(self) -> None:
        """Show the keys."""
        if not any(type(screen).__name__ == "HelpScreen" for screen in self.screen_stack):
            self.open_screen("help", self.screen)

    def action_next_theme(self) -> None:
        """Take the next theme and remember it."""
        names = [*CYCLE]
        current = names.index(self.theme) if self.theme in names else -1
        self.theme = names[(current + 1) % len(names)]
        recent.set_preference("theme", self.theme)
        self.say(f"theme {self.theme}")

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Return Textual's own palette entries that make sense here."""
        wanted = ("theme", "screenshot")
        return [
            command
            for command in super().get_system_commands(screen)
            if any(word in command.title.lower() for word in wanted)
        ]


def _driver_class(standard: type[Driver]) -> type[Driver]:
    """Return the driver for the terminal that the guard provides; it looks at the app when it is made."""
    if standard.__name__ != "LinuxDriver":
        return standard
    from sdtui.driver import SafeDriver

    return SafeDriver

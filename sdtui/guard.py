"""Runs the app so that neither a closed window nor a signal nor a bug of the screen ends a training of this process.

The engine is a plain thread. While the screen is up, signals end the screen and leave the thread alone; afterwards the
process waits for the thread, with plain lines where there still is a terminal. Library output goes to a log: Textual
draws on a descriptor of its own, and 1 and 2, which C code writes to, point elsewhere.
"""

import contextlib
import gc
import os
import signal
import stat
import sys
import traceback
import types
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING

from engine.events import Event, Started
from sdtui.recent import data_dir

if TYPE_CHECKING:
    from engine.headless import EngineThread
    from sdtui.app import SdtuiApp

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}
MAX_LOG_BYTES = 1_000_000


def run_app(app: "SdtuiApp") -> int:
    """Run the app to its end, then the training of this process, and return the exit code."""
    guard = _Guard(app)
    with guard.signals(), _own_terminal(app):
        # Started under Textual, whose stderr has no descriptor, the tracker would fail (CPython: bad value in
        # fds_to_keep); started before, it would hold the pipe to a browser's server open.
        with contextlib.suppress(OSError, ValueError):
            resource_tracker.ensure_running()
        app.run(mouse=True)
    return guard.finish()


class RunWatcher:
    """Listens to the engine of this process: what has to happen once its libraries are loaded."""

    def __init__(self, log: Path, *, has_own_terminal: bool) -> None:
        self._log = log
        self._has_own_terminal = has_own_terminal

    def emit(self, event: Event) -> None:
        """When training begins, keep the imported half million objects out of garbage collections.

        Each collection of them would stop the screen for 0.2 s.
        """
        if isinstance(event, Started):
            gc.freeze()
            if self._has_own_terminal:
                point_output_at(self._log)

    def close(self) -> None:
        """Nothing is held open."""


def point_output_at(path: Path) -> None:
    """Send what C code and child processes print to a file."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)


def log_error(error: BaseException) -> None:
    """Write a traceback to the log, without local variables: they may hold tokens."""
    path = log_path()
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)


def log_path() -> Path:
    """Return the log of the screen itself; a run has its own."""
    return data_dir() / "sdtui.log"


class _Guard:
    """Owns the signals for as long as the process lives, so that none of them finds a default action."""

    def __init__(self, app: "SdtuiApp") -> None:
        self._app = app
        self._is_over = False

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Take SIGHUP, SIGTERM and SIGINT; they are never given back, since the process ends with this."""
        for name in ("SIGHUP", "SIGTERM", "SIGINT"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._on_signal)
        yield
        self._is_over = True

    def _on_signal(self, number: int, _frame: types.FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self._is_over:
            self._app.end_from_outside("lost" if name == "SIGHUP" else name)
        elif name == "SIGHUP":
            _drop_terminal()
        else:
            self._stop_engine(name)

    def _stop_engine(self, name: str) -> None:
        engine = self._app.engine
        if engine is None or not engine.is_running:
            return
        if engine.control.stop_reason and name == "SIGINT":
            os._exit(EXIT_CODES["SIGINT"])  # Asked twice: the thread can't be ended any other way.
        engine.control.stop(name)

    def finish(self) -> int:
        """Say what happened, wait for a training of this process, and return the exit code."""
        ending = self._app.ending or "quit"
        engine = self._app.engine
        if ending == "lost":
            _drop_terminal()
        elif self._app.crash is not None:
            kind = type(self._app.crash).__name__
            _say(f"sdtui: the screen failed ({kind}); details in {log_path()}. Saved runs and drafts are unharmed.")
        if engine is not None and engine.is_running:
            if ending in EXIT_CODES:
                engine.control.stop(ending)
            _wait_for(engine, is_shown=ending != "lost" and not self._app.terminal.is_browser)
            return engine.exit_code or EXIT_CODES.get(ending, 0)
        return EXIT_CODES.get(ending, 1 if self._app.crash else 0)


def _wait_for(engine: "EngineThread", *, is_shown: bool) -> None:
    """Wait for the engine's thread, showing what it does as plain lines."""
    from engine.display import PlainDisplay

    tail = engine.folder.follow()
    display = PlainDisplay()
    shown = engine.folder.path
    if is_shown:
        list(tail.read())  # What the screen has shown already.
        _say(f"the training goes on in this process (pid {os.getpid()}); this window may be closed")
        _say(f"the screen again: sdtui attach {shown}      stop after the step and save: Ctrl+C")
    while engine.is_running:
        engine.thread.join(0.25)
        for event in tail.read() if is_shown else ():
            display.emit(event)
    for event in tail.read() if is_shown else ():
        display.emit(event)


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _drop_terminal() -> None:
    """Point the standard descriptors away from a terminal that is gone: a write to it would raise in any thread."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        # Not isatty: it says no for a terminal that has hung up.
        if stat.S_ISCHR(os.fstat(number).st_mode):
            os.dup2(null, number)
    os.close(null)


@contextlib.contextmanager
def _own_terminal(app: "SdtuiApp") -> Iterator[None]:
    """Give the app a descriptor of its own for the terminal while 1 and 2 go to the log."""
    if app.terminal.is_browser:
        with _own_pipe(app):
            yield
        return
    descriptor = next((number for number in (2, 1) if os.isatty(number)), None)
    if sys.platform == "win32" or descriptor is None:
        yield
        return
    from sdtui.driver import TerminalFile

    app.tty = TerminalFile(descriptor, encoding="utf-8" if app.terminal.is_utf8 else "ascii")
    saved = [os.dup(number) for number in (1, 2)]
    _use_log()
    try:
        yield
    finally:
        for number, old in zip((1, 2), saved, strict=True):
            os.dup2(old, number)
            os.close(old)


@contextlib.contextmanager
def _own_pipe(app: "SdtuiApp") -> Iterator[None]:
    """Give the app the pipe to the server of a browser; 1 and 2 go to the log for good, nobody reads them any more."""
    from sdtui.browser.driver import PacketPipe

    app.tty = pipe = PacketPipe(1)
    _use_log()
    try:
        yield
    finally:
        pipe.tell_training(goes_on=app.engine is not None and app.engine.is_running)
        pipe.end()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)


def _use_log() -> None:
    """Send 1 and 2 to the log, a new one where it has become long."""
    with contextlib.suppress(OSError):
        if log_path().stat().st_size > MAX_LOG_BYTES:
            log_path().replace(log_path().with_suffix(".old.log"))
    point_output_at(log_path())

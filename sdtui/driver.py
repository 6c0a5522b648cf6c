"""Textual's Linux driver on a terminal of its own: it neither blocks nor fails when that stalls or goes away."""

import errno
import os
import select
import termios
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from textual.drivers.linux_driver import LinuxDriver

if TYPE_CHECKING:
    from textual.app import App

STALL_SECONDS = 2.0
_CANCEL = "\x18"  # Ends an escape sequence that was cut.


class TerminalFile:
    """The writing end of a terminal. Text that it doesn't take within two seconds is dropped, and repainted later."""

    encoding = "utf-8"

    def __init__(self, descriptor: int, *, encoding: str = "utf-8") -> None:
        self._descriptor = _reopened(descriptor)
        self.encoding = encoding
        self.is_lost = False
        self._is_stalled = False
        self.on_lost: Callable[[], None] = lambda: None
        self.on_resumed: Callable[[], None] = lambda: None

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether there still is a terminal."""
        return not self.is_lost

    def flush(self) -> None:
        """Nothing is held back."""

    def tell_training(self, *, goes_on: bool) -> None:
        """Nobody behind a terminal needs to be told; a browser's server does."""

    def write(self, text: str) -> int:
        """Write text, or drop it; never raises and waits at most `STALL_SECONDS`."""
        was_stalled = self._is_stalled
        data = ((_CANCEL if was_stalled else "") + text).encode(self.encoding, "replace")
        # After a stall nothing waits any more, until a whole text was taken.
        self._is_stalled = bool(self._write_all(data, patience=0.0 if was_stalled else STALL_SECONDS))
        if was_stalled and not self._is_stalled:
            self.on_resumed()
        return len(text)

    def check(self) -> None:
        """Look whether the terminal is still there; a hung-up one refuses to tell its attributes."""
        try:
            termios.tcgetattr(self._descriptor)
        except (termios.error, OSError):
            self._lose()

    def size(self) -> tuple[int, int] | None:
        """Return columns and rows, or None where they are not known."""
        try:
            return tuple(os.get_terminal_size(self._descriptor))  # type: ignore[return-value]
        except OSError:
            return None

    def _write_all(self, data: bytes, *, patience: float) -> bytes:
        """Write what is taken in time and return the rest; a terminal that is gone takes everything."""
        end = time.monotonic() + patience
        while data and not self.is_lost:
            if not self._is_ready(max(0.0, end - time.monotonic())):
                return data
            taken = self._write_some(data)
            data = data[taken:]
            if taken:
                end = time.monotonic() + patience
            elif time.monotonic() > end:  # Called ready, but it takes nothing.
                return data
        return b""

    def _is_ready(self, seconds: float) -> bool:
        return bool(select.select([], [self._descriptor], [], seconds)[1])

    def _write_some(self, data: bytes) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.EINTR:
                return 0
            self._lose()
            return len(data)

    def _lose(self) -> None:
        if not self.is_lost:
            self.is_lost = True
            self.on_lost()


def _reopened(descriptor: int) -> int:
    """Open the terminal anew, so that not waiting for it does not change the shell's own descriptor."""
    try:
        return os.open(os.ttyname(descriptor), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return os.dup(descriptor)


class SafeDriver(LinuxDriver):
    """Draws on the app's `TerminalFile`; the standard descriptors are left to a log."""

    def __init__(
        self, app: "App[Any]", *, debug: bool = False, mouse: bool = True, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        file: TerminalFile | None = getattr(app, "tty", None)
        self._tty = file
        if file is not None:
            self._file = file  # type: ignore[assignment]

    def _get_terminal_size(self) -> tuple[int, int]:
        return (self._tty and self._tty.size()) or super()._get_terminal_size()

    def _run_input_thread(self) -> None:
        try:
            self.run_input_thread()
        except (OSError, ValueError):  # A terminal that is gone can't be read.
            if self._tty is not None:
                self._tty.check()

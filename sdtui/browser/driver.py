"""Textual's web driver on pipes of our own: it neither blocks nor fails when the browser stalls or goes away."""

import asyncio
import json
import os
import select
import signal
from typing import TYPE_CHECKING, Any

from textual.drivers.web_driver import WebDriver

from sdtui.driver import TerminalFile

if TYPE_CHECKING:
    from textual.app import App

# The event loop waits for it, once: a first screen is larger than a pipe, and a live server empties that at once.
STALL_SECONDS = 0.5


class PacketPipe(TerminalFile):
    """The writing end of the pipe to the server, which takes whole packets only: the rest of a cut one goes first."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        os.set_blocking(self._descriptor, False)
        self._rest = b""

    def send(self, packet: bytes) -> int:
        """Write a packet, or drop it while an earlier one is stuck; what was dropped is painted again later."""
        if not self._rest:
            self._rest = self._write_all(packet, patience=STALL_SECONDS)
        else:
            self._push()
        return len(packet)

    def tell_training(self, *, goes_on: bool) -> None:
        """Tell the server whether this process trains; never dropped, since it ends a hanging process without one."""
        meta = json.dumps({"type": "training", "goes_on": goes_on}).encode()
        was_stuck = bool(self._rest)
        self._rest += b"M" + len(meta).to_bytes(4, "big") + meta
        self._rest = self._write_all(self._rest, patience=STALL_SECONDS)
        if was_stuck and not self._rest:
            self.on_resumed()

    def check(self) -> None:
        """Look whether the server is still there, and whether a stuck packet passes now."""
        poll = select.poll()
        poll.register(self._descriptor, 0)  # Errors are told unasked.
        if poll.poll(0):
            self._lose()
        elif self._rest:
            self._push()

    def end(self) -> None:
        """Let the server read to the end; the number stays taken, so that a late write can't reach another file."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._descriptor, inheritable=False)
        os.close(null)

    def _push(self) -> None:
        self._rest = self._write_all(self._rest, patience=0.0)
        if not self._rest:
            self.on_resumed()


class BrowserDriver(WebDriver):
    """Draws on the app's `PacketPipe` and leaves the signals to the guard."""

    def __init__(
        self, app: "App[Any]", *, debug: bool = False, mouse: bool = True, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        pipe = getattr(app, "tty", None)
        if isinstance(pipe, PacketPipe):
            self._write = pipe.send  # type: ignore[assignment]

    def start_application_mode(self) -> None:
        """Start, and undo what Textual does to the signals: they must save a training, not only end the screen."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        handlers = [signal.getsignal(number) for number in numbers]
        super().start_application_mode()
        loop = asyncio.get_running_loop()
        for number, handler in zip(numbers, handlers, strict=True):
            loop.remove_signal_handler(number)
            signal.signal(number, handler)

    def run_input_thread(self) -> None:
        """Read keys until the end; an end that nobody asked for is a lost connection."""
        super().run_input_thread()
        if not self.exit_event.is_set():
            self._lose()

    def on_meta(self, packet_type: str, payload: dict[str, object]) -> None:
        """Take the closed tab, which Textual reads as "quit", for a lost terminal."""
        if packet_type == "quit":
            self._lose()
        else:
            super().on_meta(packet_type, payload)

    def _lose(self) -> None:
        self._app.end_from_outside("lost")  # type: ignore[attr-defined]

"""Asks the terminal whether it draws kitty or sixel pictures; only the doctor does, while the screen stands aside."""

import os
import select
import sys
import time
from typing import TYPE_CHECKING

from textual.app import SuspendNotSupported

if TYPE_CHECKING:
    from sdtui.app import SdtuiApp

# A kitty query, then the device attributes, which every terminal answers: no answer to the first means no.
QUERY = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[c"
WAIT_SECONDS = 0.5


def ask_graphics(app: "SdtuiApp") -> str:
    """Return "kitty", "sixel", "kitty and sixel", or "no" with the reason."""
    if app.tty is None or sys.platform == "win32":
        return "no terminal to ask"
    try:
        with app.suspend():
            reply = _ask(app.tty.fileno())
    except SuspendNotSupported:
        return "no terminal to ask"
    return read_reply(reply)


def read_reply(reply: bytes) -> str:
    """Return what a terminal's answer means: kitty says OK, sixel is attribute 4."""
    names = ["kitty"] if b"_Gi=31;OK" in reply else []
    attributes = reply.rpartition(b"\x1b[?")[2].partition(b"c")[0].split(b";")
    if b"4" in attributes[1:] or attributes == [b"4"]:
        names.append("sixel")
    if names:
        return " and ".join(names)
    return "no" if reply else "no answer"


def _ask(output: int) -> bytes:
    import termios
    import tty

    before = termios.tcgetattr(0)
    reply, end = b"", time.monotonic() + WAIT_SECONDS
    try:
        tty.setcbreak(0, termios.TCSANOW)
        os.write(output, QUERY)
        while time.monotonic() < end and not (b"\x1b[?" in reply and reply.endswith(b"c")):
            if select.select([0], [], [], end - time.monotonic())[0]:
                reply += os.read(0, 1024)
    finally:
        termios.tcsetattr(0, termios.TCSANOW, before)
    return reply

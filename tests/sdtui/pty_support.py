"""Runs a Python script on a real pseudo-terminal of its own, as a terminal emulator does."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
STEPS = 40
# The app as the console script runs it, with an engine that only counts.
SCRIPT = """
import sys, threading, time
from pathlib import Path
from engine.run import RunFolder
from engine.control import Control
from sdtui.app import SdtuiApp
from sdtui.terminal import browser_terminal
from sdtui.guard import run_app

class Engine:
    def __init__(self, folder):
        self.folder, self.control = RunFolder(folder), Control()
        self.exit_code, self.error = None, ""
        self.thread = threading.Thread(target=self.work, name="engine")
        self.thread.start()
    is_running = property(lambda self: self.thread.is_alive())
    def work(self):
        for step in range({steps}):
            time.sleep(0.05)
            (self.folder.path / "steps.txt").write_text(str(step + 1))
            print("library noise")
            if self.control.stop_reason:
                (self.folder.path / "stopped.txt").write_text(self.control.stop_reason)
                self.exit_code = {{"SIGINT": 130, "SIGTERM": 143}}.get(self.control.stop_reason, 0)
                return
        self.exit_code = 0

app = SdtuiApp({app})
app.engine = Engine(Path({folder!r}))
{extra}
sys.exit(run_app(app))
"""


def training_app(folder, *, app="", extra="", steps=STEPS):
    """The script of an app whose engine counts steps into a folder; `app` are its arguments."""
    return SCRIPT.format(steps=steps, folder=str(folder), app=app, extra=extra)


class PtyProcess:
    """A process that leads a session whose controlling terminal is ours."""

    def __init__(self, script, *, env=None, size=(80, 24), cwd=None):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        self.modes_before = termios.tcgetattr(slave)
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=slave, stdout=slave, stderr=slave, cwd=cwd, close_fds=True, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no threads here
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(env or {})},
        )  # fmt: skip
        os.close(slave)
        self.output = b""

    def read_until(self, wanted, seconds=10.0):
        """Read what is drawn until some bytes appear; return the seconds since the start."""
        end = time.monotonic() + seconds
        while wanted not in self.output:
            left = end - time.monotonic()
            assert left > 0, f"{wanted!r} was not drawn: {self.output[-2000:]!r}"
            self._read(left)
        return time.monotonic() - self.started

    def _read(self, seconds):
        if select.select([self.master], [], [], seconds)[0]:
            try:
                self.output += os.read(self.master, 65_536)
            except OSError:
                time.sleep(0.02)

    def drain(self):
        """Forget what has been drawn so far."""
        while select.select([self.master], [], [], 0)[0]:
            self._read(0)
        self.output = b""

    def press(self, keys):
        """Type."""
        os.write(self.master, keys)

    def hang_up(self):
        """Close the terminal."""
        os.close(self.master)
        self.master = -1

    def send(self, number):
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, seconds=15.0):
        """Wait for the end, reading on; return the exit code."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end:
            self._read(0.05) if self.master >= 0 else time.sleep(0.05)
        assert self.process.poll() is not None, "it did not end"
        if self.master >= 0:
            self._read(0.1)
        return self.process.returncode

    def close(self):
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        if self.master >= 0:
            os.close(self.master)

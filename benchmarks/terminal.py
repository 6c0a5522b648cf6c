"""A pseudo-terminal that is read all the time, as a terminal would, and asked how soon a key draws something."""

import tempfile
import threading
import time
from collections.abc import Callable
from typing import Self

from tests.sdtui.pty_support import PtyProcess

SIZE = (120, 40)


class Terminal:
    """A screen on a pseudo-terminal whose output is read all the time."""

    def __init__(self, script: str, *, home: str = "") -> None:
        self.process = PtyProcess(script, size=SIZE, env={"HOME": home or tempfile.mkdtemp()})
        self._stops = threading.Event()
        self._reader = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stops.set()
        self._reader.join()
        self.process.close()

    def _read(self) -> None:
        while not self._stops.is_set():
            self.process._read(0.05)  # noqa: SLF001
            if len(self.process.output) > 1_000_000:
                self.process.output = self.process.output[-1000:]

    def until(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            assert self.process.process.poll() is None, self.process.output[-2000:]
            time.sleep(0.05)

    def answer_seconds(self, key: bytes, wanted: bytes) -> float:
        """Return how long a key takes to draw something."""
        self.process.output = b""
        began = time.perf_counter()
        self.process.press(key)
        while wanted not in self.process.output:
            assert time.perf_counter() - began < 20, (key, wanted, self.process.output[-2000:])
            time.sleep(0.0005)
        return time.perf_counter() - began

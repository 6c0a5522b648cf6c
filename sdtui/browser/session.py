"""One browser tab: its app in a process of its own, which outlives the tab while it trains."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable

from textual_serve.app_service import AppService

APP = (sys.executable, "-P", "-m", "sdtui.browser")  # -P: no module of the current folder is run.
CLOSE_SECONDS = 5.0
LINGER_SECONDS = 2.0
END_SECONDS = 4.0  # For what is being written; together with CLOSE_SECONDS within the server's own end.
MAX_CELLS = 1000


class Session(AppService):
    """textual-serve's pipes to an app, without a shell, and apart from the signals of this terminal."""

    is_training = False
    """What the app said last about a training in its process."""
    was_ended = False
    """Whether it had no training, yet didn't end by itself."""

    def _build_environment(self, width: int = 80, height: int = 24) -> dict[str, str]:
        environment = super()._build_environment(width, height)
        environment["TEXTUAL_DRIVER"] = "sdtui.browser.driver:BrowserDriver"
        return environment

    async def _open_app_process(self, width: int = 80, height: int = 24) -> Process:
        self._process = process = await asyncio.create_subprocess_exec(
            *APP,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=self._build_environment(width, height),
            start_new_session=True,
        )
        self._stdin = process.stdin
        return process

    async def open(self, width: int, height: int, on_end: Callable[[], Awaitable[None]]) -> None:
        """Start the app, and call `on_end` when it has closed its screen or failed to show one."""
        await self.start(width, height)
        assert self._task is not None
        self._ended = asyncio.create_task(_after(self._task, on_end))

    async def on_data(self, payload: bytes) -> None:
        """Pass on what is drawn; a socket that is gone must not keep what the app says at its end from being read."""
        with contextlib.suppress(ConnectionError, RuntimeError):
            await super().on_data(payload)

    async def on_meta(self, data: bytes) -> None:
        """Note whether the app trains; the rest is textual-serve's."""
        meta = json.loads(data)
        if meta["type"] == "training":
            self.is_training = meta["goes_on"]
            return
        with contextlib.suppress(ConnectionError, RuntimeError):
            await super().on_meta(data)

    async def set_terminal_size(self, width: object, height: object) -> None:
        """Pass on a size that is one."""
        if type(width) is int and type(height) is int:
            await super().set_terminal_size(cells(width), cells(height))

    async def stop(self) -> None:
        """Close the screen; a training goes on. An app that doesn't answer loses its pipes, and notices that."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(super().stop(), CLOSE_SECONDS)
        if self._stdin is not None:
            self._stdin.close()
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), LINGER_SECONDS if self.is_training else END_SECONDS)
            except TimeoutError:
                if not self.is_training:
                    await self._end(self._process)

    async def _end(self, process: Process) -> None:
        self.was_ended = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(
                process.pid, signal.SIGTERM
            )  # A probe that it started; a background training is in no such group.
            process.kill()
        await process.wait()

    @property
    def trains_on(self) -> int:
        """The id of the process if it outlived its screen for a training, else 0."""
        process = self._process
        return process.pid if self.is_training and process is not None and process.returncode is None else 0

    @property
    def exit_code(self) -> int | None:
        """How the process ended; None while it lives."""
        return self._process.returncode if self._process is not None else None


def cells(number: int) -> int:
    """Return a width or height that a screen can have."""
    return min(max(number, 1), MAX_CELLS)


async def _after(task: "asyncio.Task[None]", callback: Callable[[], Awaitable[None]]) -> None:
    await asyncio.wait([task])
    await callback()

"""One browser tab: its app in a process of its own, which outlives the tab while it trains."""

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable

from textual_serve.app_service import AppService

APP = (sys.executable, "-m", "sdtui.browser")
CLOSE_SECONDS = 5.0
LINGER_SECONDS = 2.0


class Session(AppService):
    """textual-serve's pipes to an app, without a shell, and apart from the signals of this terminal."""

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

    async def stop(self) -> None:
        """Close the screen; a training goes on. An app that doesn't answer loses its pipes, and notices that."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(super().stop(), CLOSE_SECONDS)
        if self._stdin is not None:
            self._stdin.close()
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), LINGER_SECONDS)

    @property
    def trains_on(self) -> int:
        """The id of the process if it outlived its screen, else 0."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else 0

    @property
    def exit_code(self) -> int | None:
        """How the process ended; None while it lives."""
        return self._process.returncode if self._process is not None else None


async def _after(task: "asyncio.Task[None]", callback: Callable[[], Awaitable[None]]) -> None:
    await asyncio.wait([task])
    await callback()

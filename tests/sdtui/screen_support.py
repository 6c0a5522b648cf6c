"""Runs single screens in the real app, and compares what they draw with text files."""

import asyncio
import os
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from textual.worker import WorkerCancelled

import sdtui.app
from sdtui.app import SdtuiApp

SNAPSHOTS = Path(__file__).parent / "snapshots"


class Host(SdtuiApp):
    """The app without what it does in the background after its first paint."""

    CSS_PATH = Path(sdtui.app.__file__).with_name("app.tcss")

    def _after_first_paint(self):
        """Start nothing."""


@asynccontextmanager
async def shown(name, *arguments, size=(80, 24)):
    """Show a screen of the app by its name; yields app and pilot once it has drawn."""
    app = Host()
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        app.open_screen(name, *arguments)
        await settle(pilot)
        yield app, pilot


async def settle(pilot):
    """Wait until all workers are done and what they posted is drawn."""
    for _ in range(4):
        await pilot.pause()
        for worker in list(pilot.app.workers):
            # A dialog's worker waits for the user; one that another has replaced was cancelled.
            if worker.group != "dialog":
                with suppress(WorkerCancelled):
                    await worker.wait()
    await pilot.pause()


async def press(pilot, *keys):
    """Press keys, each drawn before the next."""
    for key in keys:
        await pilot.press(key)
    await settle(pilot)


async def until(pilot, condition):
    """Wait for something that a timer brings about."""
    for _ in range(100):
        if condition():
            return
        await asyncio.sleep(0.05)
        await pilot.pause()
    raise AssertionError("it did not happen within five seconds")


def text_of(app):
    """What the present screen shows, as text without trailing blanks."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)


def styles_of(app):
    """All segments of the present screen."""
    return [segment for strip in app.screen._compositor.render_strips() for segment in strip]


def matches_snapshot(app, name):
    """Compare with snapshots/<name>.txt; SDTUI_SNAPSHOTS=write records it anew."""
    path = SNAPSHOTS / f"{name}.txt"
    text = text_of(app) + "\n"
    if os.environ.get("SDTUI_SNAPSHOTS") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.read_text("utf-8") == text
    return True

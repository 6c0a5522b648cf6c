"""Draws the pictures of README: drives the starter project from Home to a finished training and exports its screens.

    python docs/images/make.py            # 500 steps at 120x40, and the first pages at 80x24

The program itself is driven by keys, on a terminal that is not there; the training is a real one.
"""

import argparse
import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from sdtui.app import SdtuiApp

HERE = Path(__file__).parent
Condition = Callable[[], bool]


async def until(pilot: Pilot[Any], condition: Condition, *, seconds: float = 900.0) -> None:
    """Wait for what a thread of the program brings about."""
    for _ in range(int(seconds * 5)):
        if condition():
            return
        await asyncio.sleep(0.2)
        await pilot.pause()
    raise TimeoutError("the program did not get there")


async def drive(steps: int) -> None:
    """Go through the wizard by keys and keep a picture of each screen."""
    app = SdtuiApp()
    async with app.run_test(size=(80, 24)) as pilot:

        async def keep(name: str) -> None:
            await asyncio.sleep(1.0)
            await pilot.pause()
            (HERE / f"{name}.svg").write_text(app.export_screenshot(title="sdtui", simplify=True), encoding="utf-8")

        def screen() -> str:
            return type(app.screen).__name__

        await until(pilot, lambda: screen() == "HomeScreen")
        await keep("home-80x24")
        await pilot.press("d")
        await until(pilot, lambda: screen() == "WizardScreen")
        await pilot.press("2")
        await until(pilot, lambda: getattr(app.screen, "plan", None) is not None)
        await keep("data-80x24")
        await pilot.resize_terminal(120, 40)
        await pilot.press("3")
        await keep("buckets-120x40")
        await pilot.press("4")
        await keep("options-120x40")
        await pilot.press("5")
        await keep("review-120x40")
        app.screen.draft.change({"max_train_steps": steps, "sample_every_n_steps": max(1, steps // 5)})  # type: ignore[attr-defined]
        await pilot.press("s")
        await until(pilot, lambda: screen() == "TrainScreen")
        await until(pilot, lambda: app.screen.state.step >= steps * 3 // 5)  # type: ignore[attr-defined]
        await keep("training-120x40")
        await until(pilot, lambda: app.engine is not None and not app.engine.is_running)
        await pilot.resize_terminal(80, 24)
        await keep("finished-80x24")


def main() -> None:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=500, help="optimizer steps [500]")
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "HOME": folder,
            "SDTUI_DATA_DIR": f"{folder}/data",
            "SDTUI_CACHE_DIR": f"{folder}/cache",
            "COLORTERM": "truecolor",
        }
        os.chdir(folder)
        run: Awaitable[None] = drive(steps)
        asyncio.run(run)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

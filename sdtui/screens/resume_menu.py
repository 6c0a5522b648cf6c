"""The resume menu: a run's states, the newest first, and going on from the one that is chosen."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from engine.display import size
from engine.errors import EngineError, ProblemsError, safe_text
from engine.resume import FROM_START
from engine.run import RunFolder
from engine.states import list_states
from sdtui.format import ago
from sdtui.screens.choice import Choice, ChoiceDialog

if TYPE_CHECKING:
    from sdtui.app import SdtuiApp

_CHANGED = "changed"


def state_choices(folder: Path) -> list[Choice]:
    """Return the states of a run as choices: the newest intact one first, then the others, then step 0.

    A damaged state is shown with its reason, and can't be gone on from.
    """
    states = list_states(folder)
    intact = [state for state in states if state.is_intact]
    choices = [
        Choice(
            value=state.path.name,
            title=f"step {state.step:<9} {size(state.bytes):>9}   {ago(state.time)}",
            text="Every byte of it is checked before anything starts.",
        )
        for state in intact
    ]
    if intact:
        text = "Take the newest state although pictures or captions have changed; the run is then not bit for bit."
        choices.append(Choice(value=_CHANGED, title="newest, with changed pictures", text=text))
    choices += [
        Choice(value="", title=f"step {state.step:<9} damaged", text=safe_text(state.reason))
        for state in states
        if not state.is_intact
    ]
    text = "Train again from the base model; what the log says of earlier steps no longer counts."
    return [*choices, Choice(value=FROM_START, title="from the start, step 0", text=text)]


async def ask_and_resume(app: "SdtuiApp", folder: Path) -> None:
    """Ask from which state a run goes on, check it, and go on in this process."""
    if RunFolder(folder).is_alive():
        app.say(f"{safe_text(folder.name)} is running: a shows it", "warning")
        return
    choices = await asyncio.to_thread(state_choices, folder)
    answer = await app.push_screen_wait(ChoiceDialog(f"Resume {safe_text(folder.name)}", "", choices))
    if answer is None:
        return
    if not answer:
        app.say("this state is damaged and can't be gone on from: choose another", "error")
        return
    await _go_on(app, folder, answer)


async def _go_on(app: "SdtuiApp", folder: Path, answer: str) -> None:
    from engine.resume import resume_run

    app.say("checking the state ...")
    try:
        loaded, resume = await asyncio.to_thread(
            resume_run,
            folder,
            chosen="" if answer == _CHANGED else answer,
            accepts_changed_data=answer == _CHANGED,
        )
    except ProblemsError as error:
        app.say("; ".join(str(problem) for problem in error.problems if problem.severity == "error"), "error")
        return
    except EngineError as error:
        app.say(str(error), "error")
        return
    app.start_here(loaded, resume)

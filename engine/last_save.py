"""The save that must not be lost: the one at a run's end, tried again and at last put where there is room."""

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from engine.checkpoint import Due, ModelSaver, Saveable
from engine.errors import EngineError, safe_text
from engine.events import Saved
from engine.space import NotWrittenError

RETRY_SECONDS = (1.0, 4.0)
"""Waits before each further attempt: a network disk is often back within seconds, a batch system kills after thirty."""


def save_at_last(
    saver: ModelSaver, model: Saveable, due: Due, *, counts: tuple[int, int], warn: Callable[[str], None], spare: Path
) -> Saved:
    """Save the model of a run's end; where its folder refuses for good, into `spare` or the system's temporary folder.

    Args:
        saver: Saves into the run folder.
        model: What to save.
        due: Its name.
        counts: (epoch, step).
        warn: Is told of each failed attempt.
        spare: A folder that is likely to be on another disk.

    Raises:
        EngineError: It was saved elsewhere, and the message says where; or nowhere, and it says why.
    """
    epoch, step = counts
    refusal: NotWrittenError | None = None
    for wait_seconds in (0.0, *RETRY_SECONDS):
        time.sleep(wait_seconds)
        try:
            return saver.save(model, due, epoch=epoch, step=step)
        except NotWrittenError as error:
            refusal = error
            warn(f"{error}; it is tried again")
    places = [folder / f"sdtui-rescued-{os.getpid()}" for folder in (spare, Path(tempfile.gettempdir()))]
    path = _save_elsewhere(saver, model, due, counts=counts, places=places)
    rescue = (
        f"the model of step {step} lies in {safe_text(str(path))} instead: move it to a safe place"
        if path
        else f"no other folder takes it either ({', '.join(safe_text(str(place)) for place in places)})"
    )
    raise EngineError(f"{refusal}; {rescue}") from refusal


def _save_elsewhere(
    saver: ModelSaver, model: Saveable, due: Due, *, counts: tuple[int, int], places: Iterable[Path]
) -> Path | None:
    epoch, step = counts
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            elsewhere = replace(saver, folder=place, written={})
            elsewhere.save(model, due, epoch=epoch, step=step)
        except (OSError, NotWrittenError):
            continue
        return elsewhere.path_for(due.stem)
    return None

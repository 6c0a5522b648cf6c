"""Going back to the last good state, with half the learning rate, when a loss is not finite."""

from dataclasses import replace
from pathlib import Path

from engine.finite import NotFiniteError
from engine.parts import Parts
from engine.restore import restore
from engine.snapshot import History
from engine.states import StateInfo, list_states, newest_intact
from engine.telling import Teller


def roll_back(parts: Parts, error: NotFiniteError, *, folder: Path, used: int, tell: Teller) -> tuple[Parts, int]:
    """Return the parts as they were at the newest intact state, with half the rate, and that state's step.

    Args:
        parts: The run, whose weights were not updated by the step that failed.
        error: What was not finite.
        folder: The run folder.
        used: Rollbacks so far.
        tell: Hears of it.

    Raises:
        NotFiniteError: No rollback is left, or no state is there to go back to.
    """
    state: StateInfo | None = None
    if used < parts.settings.training.nan_rollbacks:
        state, _ = newest_intact(list_states(folder))
    if state is None:
        raise error
    optimizer = parts.settings.optimizer
    rates = {"learning_rate": optimizer.learning_rate / 2}
    if optimizer.learning_rate_te:
        rates["learning_rate_te"] = optimizer.learning_rate_te / 2
    tell.listeners.remove(parts.history)
    parts.optimizer.zero_grad(set_to_none=True)
    earlier = replace(parts, settings=parts.settings.replace(**rates), history=History())
    restore(earlier, state.path, tell=tell)
    tell.warn("rolled-back", f"{error}; back to step {state.step} with learning_rate = {rates['learning_rate']:g}")
    return earlier, state.step

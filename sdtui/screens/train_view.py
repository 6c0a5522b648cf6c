"""What the training screen says in words: header, present numbers, models, ending; pure functions of a run's state."""

import math
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from engine.display import STAGES, duration, size
from engine.errors import safe_text
from engine.events import Failed, Finished, Interrupted
from sdtui.format import STATES, ago, number
from sdtui.runstate import ENDED, RunState
from sdtui.widgets.event_log import clock
from sdtui.widgets.row_list import Cell

PHASE_WORDS = {
    "starting": "starting", "running": "training", "paused": "paused", "finished": "finished",
    "stopped": "stopped", "failed": "failed", "crashed": "engine gone",
}  # fmt: skip
STEERING = frozenset(("pause", "save", "sample", "stop", "detach", "cadence"))
SILENT_SECONDS = 60.0  # Longer without an event is worth a warning.


@dataclass(frozen=True, slots=True, kw_only=True)
class Cadence:
    """When the run saves of itself, from its run.toml."""

    every_steps: int = 0
    every_epochs: int = 0


def read_cadence(run_toml: Path) -> Cadence:
    """Return when the run of a run.toml saves; never, where that can't be read."""
    try:
        saving = tomllib.loads(run_toml.read_text("utf-8")).get("saving", {})
        steps, epochs = (saving.get(f"save_every_n_{unit}", 0) for unit in ("steps", "epochs"))
    except (OSError, ValueError, AttributeError):
        return Cadence()
    if not isinstance(steps, int) or not isinstance(epochs, int):
        return Cadence()
    return Cadence(every_steps=max(0, steps), every_epochs=max(0, epochs))


def header(state: RunState, *, name: str, is_wide: bool) -> tuple[str, float, str]:
    """Return what stands left of the progress bar, its share, and what stands right of it."""
    mark, word = STATES[state.phase], PHASE_WORDS[state.phase]
    left = f" {safe_text(name, limit=40 if is_wide else 24)}  {mark} {word}"
    if state.phase == "starting" and state.progress and state.started is None:
        done = state.progress
        share = done.done / done.total if done.total else 0.0
        return left, share, f"{STAGES.get(done.stage, done.stage)} {done.done}/{done.total} "
    if state.started is None:
        return left, 0.0, "waiting for the engine " if not state.first_time else ""
    share = state.step / state.steps if state.steps else 0.0
    epochs = (
        f"epoch {_epoch(state)}/{state.started.epochs}" if is_wide else f"ep {_epoch(state)}/{state.started.epochs}"
    )
    left += f"  {'step ' if is_wide else ''}{state.step}/{state.steps}  {epochs}"
    right = f"{share:.0%}"
    if is_wide or state.phase not in ("running", "paused"):
        right += f"  elapsed {duration(state.elapsed())}"
    if state.phase in ("running", "paused") and not math.isnan(state.eta()):
        right += f"  eta {duration(state.eta())}"
    return left, share, right + " "


def _epoch(state: RunState) -> int:
    if state.last_step:
        return state.last_step.epoch
    per_epoch = state.started.steps_per_epoch if state.started else 0
    return -(-state.step // per_epoch) if per_epoch > 0 else 0


def now_rows(state: RunState) -> list[tuple[str, str, str]]:
    """Return the present numbers as label, text and style."""
    found = state.curves.loss.at(math.inf if not len(state.curves.loss) else state.step)
    if found is None or state.last_step is None:
        return [("state", PHASE_WORDS[state.phase], ""), last_event(state)]
    _step, loss, ema = found
    step = state.last_step
    seconds = state.curves.seconds_per_step()
    smoothed = "" if math.isnan(ema) else f"  ema {_loss(ema)}"
    speed = f"{1 / seconds:.2f} it/s" if 0 < seconds < 1 else f"{seconds:.2f} s/it"
    images = f"{step.images / seconds:.1f} a second" if seconds > 0 else ""
    wait = step.wait_seconds / step.seconds if step.seconds > 0 else 0.0
    wait_word = "ok" if wait < 0.1 else "slow disk or decode"
    return [
        ("loss", f"{_loss(loss)}{smoothed}", ""),
        ("lr", number(float(f"{step.learning_rate:.3g}")), ""),
        ("norm", f"{step.grad_norm:.3g}", ""),
        ("speed", speed, ""),
        ("wait", f"{step.wait_seconds * 1000:.0f} ms  {wait:.0%}  {wait_word}", "" if wait < 0.1 else "warn"),
        ("memory", f"{size(step.peak_memory_bytes)} peak" if step.peak_memory_bytes else "not measured", ""),
        last_event(state),
        ("images", images, ""),
        ("bucket", f"{step.bucket[0]}x{step.bucket[1]}, {step.images} images", ""),
        ("device", safe_text(state.started.device, limit=60) if state.started else "", ""),
        ("saved", f"{len(state.saves)} models, {sum(map(len, state.samples.values()))} samples", ""),
    ]


def _loss(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def last_event(state: RunState) -> tuple[str, str, str]:
    """Return how old the newest event is: a view that has gone stale must say so."""
    if not state.last_time:
        return "event", "none yet", "dim"
    age = max(0.0, time.time() - state.last_time)
    is_live = state.phase in ("running", "starting")
    text = f"{age:.0f} s ago" if age < 60 else f"{ago(state.last_time)} ago".replace("now ago", "now")
    return (
        "event",
        text + ("  silent" if is_live and age > SILENT_SECONDS else ""),
        ("warn" if is_live and age > SILENT_SECONDS else ""),
    )


def timeline_rows(state: RunState, cadence: Cadence) -> list[list[Cell]]:
    """Return models saved, the newest first, below the saves that are to come."""
    rows: list[list[Cell]] = []
    if state.phase in ("running", "paused") and state.started:
        seconds = state.curves.seconds_per_step()
        every = cadence.every_steps or cadence.every_epochs * state.started.steps_per_epoch
        planned = range((state.step // every + 1) * every, state.steps, every)[:3] if every > 0 else ()
        for step in reversed([*planned, state.steps]):
            eta = "" if math.isnan(seconds) else f"in {duration((step - state.step) * seconds)}"
            rows.append([("\u25b3 ", "dim"), (f"{step:>7} ", "dim"), (f"planned  {eta}", "dim")])
        rows.append([("\u25cf ", "accent"), (f"{state.step:>7} ", "accent"), ("now", "accent")])
    removed = {path for save in state.saves for path in save.removed}
    for save in reversed(state.saves):
        is_gone = save.path in removed
        text = f"{clock(save.time)}  {'removed' if is_gone else size(save.bytes)}"
        rows.append(
            [("\u25b2 ", "dim" if is_gone else "good"), (f"{save.step:>7} ", ""), (text, "dim" if is_gone else "")]
        )
    return rows


def ending(state: RunState) -> tuple[str, str]:
    """Return how the run ended and the class of its panel, or nothing while it goes on."""
    match state.ending:
        case Failed() as event:
            cause = safe_text(event.message, limit=1200)
            return (
                f"\u2717 FAILED at step {event.step}: {cause}\nl log   q back",
                "-failed",
            )
        case Finished() as event:
            path = safe_text(event.path)
            text = (
                f"\u2713 FINISHED {event.step} steps in {duration(event.seconds)}, mean loss {event.loss:.4f}: {path}"
            )
            return text, "-finished"
        case Interrupted() as event:
            kept = f"saved {safe_text(event.saved)}" if event.saved else "nothing saved"
            return f"\u25a0 STOPPED at step {event.step} by {safe_text(event.reason)}, {kept}", "-stopped"
    if state.phase == "crashed":
        text = f"\u2717 ENGINE GONE at step {state.step}: its process ended without a word (killed, or out of memory)"
        return text + "\nl log   q back", "-failed"
    return "", ""


def offers(state: RunState, action: str) -> bool | None:
    """Tell whether the footer offers an action; None leaves it to the table of keys.

    Nothing steers a run that has ended: what is left is to look, and to go back.
    """
    if state.phase not in ENDED:
        return None
    return {"close": True, "view": True}.get(action, False if action in STEERING else None)

"""Writes the states of a run: from a copy while training goes on where memory allows it, else piece by piece."""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from engine.checkpoint import StateDue
from engine.dataset.ledger import ledger
from engine.envelope import envelope
from engine.errors import EngineError
from engine.events import Event, Saved, Warned
from engine.models.lazy import lazy
from engine.parts import Parts
from engine.settings_io import relative_values
from engine.snapshot import Snapshot, names_of, optimizer_values, weights_of
from engine.states import FOLDER, remove_replaced, state_name

ROOM_FACTOR = 1.2  # Free memory over the state's size from which on it is copied.


@dataclass(slots=True, kw_only=True)
class StateSaver:
    """Writes one state at a time; what came of it is asked for by `told`, between two steps."""

    parts: Parts
    folder: Path
    saved_at: int = -1
    _copy: Snapshot | None = None
    """The last copy, kept to be written over by the next while memory is not short."""
    _thread: threading.Thread | None = None
    _told: list[Event] = field(default_factory=list)

    def save(self, due: StateDue, *, step: int, models: list[str], waits: bool = False) -> None:
        """Write the state after `step` steps; with `waits`, return when it is on disk and never copy it.

        A refusal is told, not raised: a state that can't be saved is no reason to end a training.
        """
        self.wait()
        if self.saved_at == step:
            return
        began = time.perf_counter()
        epoch = -(-step // self.parts.plan.steps_per_epoch)
        snapshot = take_snapshot(self.parts, step=step, models=models)
        held = self._copy.num_bytes if self._copy else 0
        is_copied = not waits and psutil.virtual_memory().available + held >= ROOM_FACTOR * snapshot.num_bytes
        if not is_copied:
            self._copy = None
            self._write(snapshot, due, epoch=epoch, began=began, blocked=None)
            return
        snapshot = self._copy = snapshot.copied(self._copy)
        blocked = time.perf_counter() - began
        self._thread = threading.Thread(
            target=self._write,
            args=(snapshot, due),
            kwargs={"epoch": epoch, "began": began, "blocked": blocked},
            name="states",
        )
        self._thread.start()

    def _write(self, snapshot: Snapshot, due: StateDue, *, epoch: int, began: float, blocked: float | None) -> None:
        step = snapshot.step
        try:
            snapshot.write(self.folder)
        except EngineError as error:
            message = f"{error}; training goes on, the states there are untouched, and the next one is tried when due"
            self._told.append(Warned(step=step, code="state-not-saved", message=message))
            return
        removed = remove_replaced(self.folder, up_to_step=due.replaces_up_to) if due.replaces_up_to > 0 else ()
        seconds = time.perf_counter() - began
        self.saved_at = step
        self._told.append(
            Saved(
                step=step,
                path=f"{FOLDER}/{state_name(step)}",
                bytes=snapshot.num_bytes,
                seconds=seconds,
                epoch=epoch,
                removed=removed,
                mode="streamed" if blocked is None else "copied",
                blocked_seconds=seconds if blocked is None else blocked,
            )
        )

    def told(self) -> list[Event]:
        """Return what there is to tell since the last call."""
        events, self._told = self._told, []
        return events

    def wait(self) -> None:
        """Wait until the state that is being written is on disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def take_snapshot(parts: Parts, *, step: int, models: list[str]) -> Snapshot:
    """Return the content of a state, its tensors still those of the run: write or copy it before the next update."""
    denoiser: Any = parts.accelerator.unwrap_model(parts.denoiser)
    plan, raw = parts.plan, parts.optimizer
    optimizer: Any = getattr(raw, "optimizer", raw)
    values, record = optimizer_values(optimizer, names_of(denoiser.parts()))
    tensors = {
        **weights_of(denoiser.parts()),
        "optimizer.safetensors": values,
        "history.safetensors": parts.history.lazy(),
    }
    if parts.ema is not None:
        tensors["ema.safetensors"] = {name: lazy(average) for name, average in parts.ema.state_dict().items()}
    scaler = parts.accelerator.scaler
    epoch, index = divmod(step, plan.steps_per_epoch)
    state = {
        "step": step,
        "epoch": epoch,
        "step_in_epoch": index,
        "batches_per_step": plan.batches_per_step,
        "steps_per_epoch": plan.steps_per_epoch,
        "ema_updates": parts.ema.num_updates if parts.ema else 0,
        "scaler": scaler.state_dict() if scaler is not None else None,
        "optimizer": record,
        "models": models,
        "settings": relative_values(parts.settings, folder=parts.preview.folder.parent),
        "base": dict(parts.base),
        "trains": list(parts.trains),
        "family": parts.model.family,
        "prediction_type": parts.model.prediction_type,
    }
    return Snapshot(
        step=step,
        tensors=tensors,
        state=state,
        dataset={"pictures": ledger(plan.catalog, parts.source.contents())},
        facts={"envelope": envelope(parts.accelerator.device, world=parts.ranks.world)},
    )

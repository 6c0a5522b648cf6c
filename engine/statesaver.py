"""Writes the states of a run: from a copy while training goes on where memory allows it, else piece by piece."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from engine.checkpoint import StateDue, is_state_to_come
from engine.dataset.ledger import ledger
from engine.envelope import envelope
from engine.errors import EngineError
from engine.events import Event, Saved, Warned
from engine.hardware import is_out_of_memory
from engine.models.lazy import LazyTensor, lazy
from engine.parts import Parts
from engine.settings_io import relative_values
from engine.snapshot import Snapshot, Tensors, names_of, num_bytes_of, optimizer_values, room_for, weights_of
from engine.states import FOLDER, remove_replaced, state_name

ROOM_FACTOR = 1.2  # Free memory over the state's size from which on it is copied.


@dataclass(slots=True, kw_only=True)
class StateSaver:
    """Writes one state at a time; what came of it is asked for by `told`, between two steps."""

    parts: Parts
    folder: Path
    saved_at: int = -1
    _room: Tensors = field(default_factory=dict)
    """Memory for the next copy, kept while it is not short and a state is to come."""
    _is_prepared: bool = False
    _thread: threading.Thread | None = None
    _told: list[Event] = field(default_factory=list)

    def prepare(self, step: int) -> None:
        """After a run's first step, get memory for the copy while training goes on: that takes longer than the copy."""
        if self._is_prepared:
            return
        self._is_prepared = True
        tensors, _ = _tensors_of(self.parts)
        if self._is_one_to_come(step) and self._fits(num_bytes_of(tensors)):
            self._start(self._make_room, tensors)

    def _make_room(self, tensors: Tensors) -> None:
        with _memory_may_be_short():
            self._room = room_for(tensors)

    def save(self, due: StateDue, *, step: int, models: list[str], waits: bool = False) -> None:
        """Write the state after `step` steps; with `waits`, return when it is on disk and never copy it.

        A refusal is told, not raised: a state that can't be saved is no reason to end a training.
        """
        began = time.perf_counter()
        self.wait()
        if self.saved_at == step:
            return
        epoch = -(-step // self.parts.plan.steps_per_epoch)
        snapshot = take_snapshot(self.parts, step=step, models=models)
        copy = None if waits else self._copied(snapshot)
        self._room, self._is_prepared = copy.tensors if copy and self._is_one_to_come(step) else {}, True
        if copy is None:
            self._write(snapshot, due, epoch=epoch, began=began, blocked=None)
            return
        self._start(self._write, copy, due, epoch=epoch, began=began, blocked=time.perf_counter() - began)

    def _copied(self, snapshot: Snapshot) -> Snapshot | None:
        """Return a copy, or None where memory is short."""
        if self._fits(snapshot.num_bytes):
            with _memory_may_be_short():
                return snapshot.copied(self._room)
        return None

    def _fits(self, num_bytes: int) -> bool:
        return psutil.virtual_memory().available + num_bytes_of(self._room) >= ROOM_FACTOR * num_bytes

    def _is_one_to_come(self, step: int) -> bool:
        plan, saving = self.parts.plan, self.parts.settings.saving
        return is_state_to_come(saving, step=step, steps=plan.steps, steps_per_epoch=plan.steps_per_epoch)

    def _start(self, act: Callable[..., None], *arguments: object, **named: object) -> None:
        self._thread = threading.Thread(target=act, args=arguments, kwargs=named, name="states")
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


@contextmanager
def _memory_may_be_short() -> Iterator[None]:
    """Pass over the system's refusal of memory: it may be less than what is reported as free, as in containers."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise


def take_snapshot(parts: Parts, *, step: int, models: list[str]) -> Snapshot:
    """Return the content of a state, its tensors still those of the run: write or copy it before the next update."""
    tensors, record = _tensors_of(parts)
    plan = parts.plan
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


def _tensors_of(parts: Parts) -> tuple[dict[str, dict[str, LazyTensor]], dict[str, Any]]:
    """Return the tensors of a state, those of the run, and the table of the optimizer's values."""
    denoiser: Any = parts.accelerator.unwrap_model(parts.denoiser)
    raw = parts.optimizer
    optimizer: Any = getattr(raw, "optimizer", raw)
    values, record = optimizer_values(optimizer, names_of(denoiser.parts()))
    tensors = {
        **weights_of(denoiser.parts()),
        "optimizer.safetensors": values,
        "history.safetensors": parts.history.lazy(),
    }
    if parts.ema is not None:
        tensors["ema.safetensors"] = {name: lazy(average) for name, average in parts.ema.state_dict().items()}
    return tensors, record

"""When models and states are saved, under which names, and which older ones are removed."""

import contextlib
import errno
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from engine.events import Saved
from engine.settings import SavingSettings
from engine.space import refused, writing

Occasion = Literal["epoch", "step", "last", "stop"]


class Saveable(Protocol):
    """What a model family offers for saving; see `engine.models.sd`."""

    def save(
        self,
        path: Path,
        save_model_as: str,
        *,
        save_precision: str | None,
        metadata: Mapping[str, str],
        counts: tuple[int, int],
    ) -> None:
        """Write the model; `counts` are (epoch, step)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A save that is due after a step."""

    occasion: Occasion
    stem: str
    """File name without extension."""
    replaces: str = ""
    """Stem of the older save that this one makes superfluous."""


def due_saves(saving: SavingSettings, *, step: int, steps_per_epoch: int, epochs: int) -> tuple[Due, ...]:
    """Return the saves due after `step`, by epochs first; the one at the end of training is not among them.

    Names and keep-last rules are sd-scripts': save_last_n_epochs counts saves, save_last_n_steps counts steps, rounded
    up to the next save. The last epoch is left to the save at the end.
    """
    name, due = saving.output_name, []
    epoch, rest = divmod(step, steps_per_epoch)
    every = epoch_interval(saving, epochs)
    if every and rest == 0 and epoch < epochs and epoch % every == 0:
        oldest = epoch - every * saving.save_last_n_epochs if saving.save_last_n_epochs else 0
        replaced = f"{name}-{oldest:06d}" if oldest > 0 else ""
        due.append(Due(occasion="epoch", stem=f"{name}-{epoch:06d}", replaces=replaced))
    every = saving.save_every_n_steps
    if every and step % every == 0:
        oldest = (step - saving.save_last_n_steps - 1) // every * every if saving.save_last_n_steps else 0
        replaced = f"{name}-step{oldest:08d}" if oldest > 0 else ""
        due.append(Due(occasion="step", stem=f"{name}-step{step:08d}", replaces=replaced))
    return tuple(due)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDue:
    """A state that is due; those of steps up to `replaces_up_to` are replaced by it, 0 for none."""

    replaces_up_to: int = 0


def due_state(saving: SavingSettings, *, step: int, steps_per_epoch: int, epochs: int) -> StateDue | None:
    """Return the state that is due after `step`: with each model, and kept by rules of its own; None where none is."""
    dues = due_saves(saving, step=step, steps_per_epoch=steps_per_epoch, epochs=epochs)
    if not saving.save_state or not dues:
        return None
    replaced = 0
    by_epochs = saving.save_last_n_epochs_state or saving.save_last_n_epochs
    by_steps = saving.save_last_n_steps_state or saving.save_last_n_steps
    if by_epochs and dues[0].occasion == "epoch":
        every = epoch_interval(saving, epochs) or 1
        replaced = (step // steps_per_epoch - every * by_epochs) * steps_per_epoch
    if by_steps and dues[-1].occasion == "step":
        every = saving.save_every_n_steps or 1
        replaced = max(replaced, (step - by_steps - 1) // every * every)
    return StateDue(replaces_up_to=max(0, replaced))


def is_state_to_come(saving: SavingSettings, *, step: int, steps: int, steps_per_epoch: int) -> bool:
    """Tell whether a state is due after a later one of the run's `steps`; that of the end is not counted."""
    epochs = -(-steps // steps_per_epoch)
    by_epochs, by_steps = epoch_interval(saving, epochs), saving.save_every_n_steps
    next_epoch = (step // steps_per_epoch // by_epochs + 1) * by_epochs if by_epochs else epochs
    next_step = (step // by_steps + 1) * by_steps if by_steps else steps + 1
    return saving.save_state and (next_epoch < epochs or next_step <= steps)


def epoch_interval(saving: SavingSettings, epochs: int) -> int | None:
    """Return after how many epochs a model is saved; save_n_epoch_ratio asks for about so many saves in all."""
    if saving.save_n_epoch_ratio:
        return max(1, epochs // saving.save_n_epoch_ratio)
    return saving.save_every_n_epochs


@dataclass(slots=True, kw_only=True)
class ModelSaver:
    """Saves models into the run folder and removes the ones they replace; only ever what this run has written."""

    folder: Path
    saving: SavingSettings
    metadata: Callable[[], Mapping[str, str]]
    is_hypernetwork: bool = False
    written: dict[str, Path] = field(default_factory=dict)
    _anchor: Path = field(init=False)

    def __post_init__(self) -> None:
        """Remember what shows that the folder is there: the lock of a run, which no mount point without disk has."""
        lock = self.folder / "lock"
        self._anchor = lock if lock.exists() else self.folder

    def save(self, model: Saveable, due: Due, *, epoch: int, step: int) -> Saved:
        """Write one model, then remove the one it replaces, and return the event that tells of both.

        Raises:
            NotWrittenError: The disk refuses it; nothing was removed.
            EngineError: The model is not finite.
        """
        began = time.perf_counter()
        path = self.path_for(due.stem)
        if not self._anchor.exists():  # What lies under an unmounted disk's folder is another disk.
            raise refused(self.folder, FileNotFoundError(errno.ENOENT, ""))
        with writing(path):
            model.save(
                path,
                self.saving.save_model_as,
                save_precision=self.saving.save_precision,
                metadata=self.metadata(),
                counts=(epoch, step),
            )
        self.written[due.stem] = path
        removed = self._remove(due.replaces)
        return Saved(
            step=step,
            path=path.name,
            bytes=size_of(path),
            seconds=time.perf_counter() - began,
            epoch=epoch,
            removed=removed,
        )

    def take_over(self, stems: Iterable[str]) -> None:
        """Count models that this run saved before it was resumed as its own."""
        self.written |= {stem: path for stem in stems if (path := self.path_for(stem)).exists()}

    def path_for(self, stem: str) -> Path:
        """Return where a model of that stem goes: a file with its extension, or a diffusers folder."""
        return self.folder / f"{stem}{model_suffix(self.saving, is_hypernetwork=self.is_hypernetwork)}"

    def _remove(self, stem: str) -> tuple[str, ...]:
        path = self.written.pop(stem, None)
        if path is None:
            return ()
        with contextlib.suppress(OSError):  # It stays, which is no reason to end a training.
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        return () if path.exists() else (path.name,)


def model_suffix(saving: SavingSettings, *, is_hypernetwork: bool) -> str:
    """Return what the names of saved models end in, "" for folders; A1111 looks for hypernetworks named .pt."""
    kind = saving.save_model_as
    if is_hypernetwork and kind == "ckpt":
        return ".pt"
    return "" if kind.startswith("diffusers") else f".{kind}"


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size

"""What happens between two steps: saves, samples, requests, pauses; and the beginning and end of a run."""

import itertools
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from engine.checkpoint import Due, ModelSaver, Saveable, StateDue, due_saves, due_state
from engine.control import Control
from engine.errors import EngineError, safe_text
from engine.events import Continued, Finished, Interrupted, Paused, Requested, Sampled, Saved, Started
from engine.halving import free_memory
from engine.hardware import is_out_of_memory
from engine.last_save import save_at_last
from engine.loading import Window, WindowLoader
from engine.optim import averaged
from engine.parts import Parts
from engine.plan import Plan
from engine.prompts import SamplePrompt, read_prompt
from engine.run import Request, cache_dir
from engine.settings import TrainingSettings
from engine.sharding import has_all_state, is_sharded
from engine.space import NotWrittenError
from engine.states import FOLDER, state_name
from engine.statesaver import StateSaver
from engine.telling import Teller
from engine.validation import validate

POLL_SECONDS = 0.2


class NotDrawnError(EngineError):
    """Samples that memory is too short for; training, which needs other memory, goes on."""


@dataclass(slots=True, kw_only=True)
class Border:
    """Does what is due after each step and answers requests; says why the run should stop, or ""."""

    parts: Parts
    tell: Teller
    control: Control
    resumed_from: int | None = None
    saver: ModelSaver = field(init=False)
    states: StateSaver = field(init=False)
    _began: float = field(default_factory=time.monotonic)
    _sample_every_steps: int = 0
    _sample_every_epochs: int = 0
    _stops_at_epoch_end: bool = False
    _discards: bool = False
    _is_paused: bool = False
    _saved_at: int = -1
    _are_samples_refused: bool = False
    _asked: list[SamplePrompt] = field(default_factory=list)
    """Prompts that came with requests."""

    def __post_init__(self) -> None:
        sampling = self.parts.settings.sampling
        self._sample_every_epochs = sampling.sample_every_n_epochs or 0
        self._sample_every_steps = 0 if self._sample_every_epochs else sampling.sample_every_n_steps or 0
        folder, saving = self.parts.preview.folder.parent, self.parts.settings.saving
        self.saver = ModelSaver(
            folder=folder,
            saving=saving,
            metadata=self.parts.metadata,
            is_hypernetwork=self.parts.settings.training.train_hypernetwork,
        )
        self.saver.take_over(self.parts.history.models)
        self.states = StateSaver(parts=self.parts, folder=folder)
        self.tell.listeners.append(self.parts.history)

    def before(self, step: int) -> str:
        """Announce the run, draw the samples to compare with, and return why to stop, or ""."""
        return self._together(lambda: self._before(step))

    def _before(self, step: int) -> str:
        settings, plan = self.parts.settings, self.parts.plan
        self.tell(
            Started(
                step=step,
                name=settings.saving.output_name,
                steps=plan.steps,
                epochs=plan.epochs,
                steps_per_epoch=plan.steps_per_epoch,
                images=plan.num_images - len(plan.held_out_rows),
                held_out=len(plan.held_out_rows),
                seed=settings.training.seed,
                pid=os.getpid(),
                device=str(self.parts.accelerator.device),
                family=self.parts.model.family,
                trains=self.parts.trains,
                resumed_from=self.resumed_from,
            )
        )
        if plan.held_out_rows and step == 0:
            self._validate(step)
        if settings.sampling.sample_at_first and step == 0:
            self._sample(step=0)
        return self._answer_requests(step)

    def next_window(self, windows: WindowLoader, step: int) -> Window:
        """Return the next window; pictures left out are told, and where it can't be had model and state are saved.

        Raises:
            EngineError: A picture can't be read, and skip_bad_images is not set.
        """
        try:
            window = next(windows)
        except EngineError:
            if self.parts.ranks.world == 1 and step > 0:
                self._keep(step)
            raise
        for refusal in (refusal for batch in window for refusal in batch.refusals):
            self.tell.warn("bad-image", refusal)
        return window

    def after(self, step: int) -> str:
        """Save and sample what is due, answer requests, wait out a pause; return why to stop, or "".

        The main process does so; the others wait for its word, which all of them hear.
        """
        return self._together(lambda: self._after(step))

    def _together(self, act: Callable[[], str]) -> str:
        """Act as the main process, or go along with it as another; return the decision that all of them share."""
        ranks = self.parts.ranks
        reason = act() if ranks.is_main else self.control.stop_reason
        self.parts.go_along()
        return ranks.agree(reason)

    def _after(self, step: int) -> str:
        plan, settings = self.parts.plan, self.parts.settings
        epoch, rest = divmod(step, plan.steps_per_epoch)
        for due in due_saves(settings.saving, step=step, steps_per_epoch=plan.steps_per_epoch, epochs=plan.epochs):
            self._save_due(due, step=step)
        state = due_state(settings.saving, step=step, steps_per_epoch=plan.steps_per_epoch, epochs=plan.epochs)
        if state is not None:
            self.save_state(step, state)
        self.states.prepare(step)
        self._tell_of_states()
        if is_validation_due(settings.training, step, plan):
            self._validate(step)
        by_epochs = self._sample_every_epochs and rest == 0 and epoch % self._sample_every_epochs == 0
        if by_epochs or (self._sample_every_steps and step % self._sample_every_steps == 0):
            self._sample(step=step, epoch=epoch if by_epochs else None)
        reason = self._answer_requests(step)
        return reason or ("request" if self._stops_at_epoch_end and rest == 0 else "")

    def end(self, step: int, stopped_by: str) -> None:
        """Save the model of the end, or of the stop, and say how the run ended."""
        self._together(lambda: self._end(step, stopped_by))

    def _end(self, step: int, stopped_by: str) -> str:
        saving = self.parts.settings.saving
        seconds = time.monotonic() - self._began
        if not stopped_by:
            path = self.save(Due(occasion="last", stem=saving.output_name), step=step, is_last=True)
            if saving.save_state or saving.save_state_on_train_end:
                self.save_state(step, waits=True)
            self._tell_of_states(waits=True)
            self.tell(Finished(step=step, path=path, seconds=seconds, loss=self.tell.mean_loss))
            return ""
        keeps = not self._discards and step > 0
        saved = self._keep(step) if keeps else ""
        self._tell_of_states(waits=True)
        state = f"{FOLDER}/{state_name(step)}" if keeps and self.states.saved_at == step else ""
        self.tell(Interrupted(step=step, reason=stopped_by, saved=saved, state=state))
        return ""

    def _keep(self, step: int) -> str:
        """Save the model and a state before the run ends early; return the model's path."""
        due = Due(occasion="stop", stem=f"{self.parts.settings.saving.output_name}-step{step:08d}")
        saved = self.save(due, step=step, is_last=True)
        if has_all_state(self.parts.accelerator):
            self.save_state(step, waits=True)
        self._tell_of_states(waits=True)
        return saved

    def save_state(self, step: int, due: StateDue = StateDue(), *, waits: bool = False) -> None:  # noqa: B008 - frozen
        """Write a resumable state; what came of it is told at a later border, or with `waits` at this one."""
        self.states.save(due, step=step, models=list(self.saver.written), waits=waits)

    def _tell_of_states(self, *, waits: bool = False) -> None:
        if waits:
            self.states.wait()
        for event in self.states.told():
            self.tell(event)

    def save(self, due: Due, *, step: int, is_last: bool = False) -> str:
        """Save a model, the average where one is kept, and return its path in the run folder.

        Raises:
            NotWrittenError: The disk refuses it; the last save of a run tries harder.
        """
        epoch = -(-step // self.parts.plan.steps_per_epoch)
        known = self.saver.written.get(due.stem)
        if known is not None and self._saved_at == step:
            return known.name
        with self._weights_to_keep():
            model = self.parts.model_to_save()
            if is_last:
                saved = self._save_at_last(model, due, (epoch, step))
            else:
                saved = self.saver.save(model, due, epoch=epoch, step=step)
        self.tell(saved)
        self._saved_at = step
        return saved.path

    def _save_at_last(self, model: Saveable, due: Due, counts: tuple[int, int]) -> Saved:
        spare = Path(self.parts.settings.memory.cache_dir or cache_dir())
        return save_at_last(
            self.saver,
            model,
            due,
            counts=counts,
            warn=lambda message: self.tell.warn("not-saved", message),
            spare=spare,
        )

    def _save_due(self, due: Due, *, step: int) -> None:
        """Save, or warn: a full disk costs this save, never the training."""
        try:
            self.save(due, step=step)
        except NotWrittenError as error:
            self.tell.warn("not-saved", f"{error}; training goes on, and the next save is tried when it is due")

    def _weights_to_keep(self) -> AbstractContextManager[None]:
        return self.parts.ema.swapped_in() if self.parts.ema else averaged(self.parts.optimizer)

    def _validate(self, step: int) -> None:
        with self._weights_to_keep():
            self.tell(validate(self.parts, step=step))

    def _sample(self, *, step: int, epoch: int | None = None) -> None:
        """Draw the samples that are due; what keeps them from being drawn is named once, until they are again."""
        try:
            self._draw(self.parts.prompts, step=step, epoch=epoch)
            self._are_samples_refused = False
        except (NotWrittenError, NotDrawnError) as error:
            if not self._are_samples_refused:
                self.tell.warn("not-sampled", f"{error}; training goes on without samples until that works")
            self._are_samples_refused = True

    def _draw(
        self, prompts: Sequence[SamplePrompt], *, step: int, epoch: int | None = None, first_index: int = 0
    ) -> None:
        """Draw samples and tell of each.

        Raises:
            NotDrawnError: Memory is short.
            NotWrittenError: The disk refuses them.
        """
        try:
            with self._weights_to_keep():
                images = self.parts.draw_samples(prompts, step=step, epoch=epoch, first_index=first_index)
                # Many prompts take minutes: a stop waits for one picture only.
                for image in itertools.takewhile(lambda _: not self.control.stop_reason, images):
                    self.tell(
                        Sampled(
                            step=step,
                            path=f"sample/{image.path.name}",
                            prompt=image.prompt,
                            index=image.index,
                            seed=image.seed,
                            epoch=epoch or 0,
                            seconds=image.seconds,
                        )
                    )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            return
        # Outside the handler: the error's traceback holds the tensors of the picture.
        free_memory()
        raise NotDrawnError("a sample does not fit into memory: ask for a smaller one, such as --w 512 --h 512")

    def _answer_requests(self, step: int) -> str:
        """Answer what came in; while paused, wait for more."""
        while True:
            for request in self.control.take():
                self._answer(request, step)
            if self.control.stop_reason or not self._is_paused:
                return self.control.stop_reason
            time.sleep(POLL_SECONDS)

    def _answer(self, request: Request | str, step: int) -> None:
        if isinstance(request, str):
            self.tell(Requested(step=step, verb="unknown", accepted=False, message=request))
            return
        answer = {
            "stop": self._stop,
            "pause": self._pause,
            "continue": self._continue,
            "save": self._save_now,
            "sample": self._sample_now,
            "set": self._set,
        }[request.verb]
        try:
            message, accepted = answer(request, step), True
        except EngineError as error:
            message, accepted = str(error), False
        self.tell(Requested(step=step, verb=request.verb, accepted=accepted, message=message))

    def _stop(self, request: Request, _step: int) -> str:
        self._discards = request.arguments.get("save", True) is False
        self._is_paused = False
        if request.arguments.get("when") == "epoch":
            self._stops_at_epoch_end = True
            return "stopping at the end of this epoch"
        self.control.stop("request")
        return "stopping after this step"

    def _pause(self, _request: Request, step: int) -> str:
        if not self._is_paused:
            self._is_paused = True
            self.tell(Paused(step=step))
        return "paused"

    def _continue(self, _request: Request, step: int) -> str:
        if self._is_paused:
            self._is_paused = False
            self.tell(Continued(step=step))
        return "going on"

    def _save_now(self, _request: Request, step: int) -> str:
        stem = f"{self.parts.settings.saving.output_name}-step{step:08d}"
        path = self.save(Due(occasion="step", stem=stem), step=step)
        if step and has_all_state(self.parts.accelerator):
            self.save_state(step)
        return f"saved {path}"

    def _sample_now(self, request: Request, step: int) -> str:
        """Draw a prompt that comes with the request, as sd-scripts writes it, or without one all of the run's."""
        line = request.arguments.get("prompt", "")
        if not isinstance(line, str):
            raise EngineError(f"prompt = {safe_text(str(line))}: should be a text")
        if not line.strip():
            self._need_prompts()
            self._draw(self.parts.prompts, step=step)
        else:
            prompt = read_prompt(line)
            self._draw([prompt], step=step, first_index=self._index_of(prompt))
        return "samples drawn"

    def _index_of(self, prompt: SamplePrompt) -> int:
        """Return the number of a prompt: its place in the run's file, or one after it that stays its own.

        Raises:
            EngineError: No process has the whole model.
        """
        if is_sharded(self.parts.accelerator):
            raise EngineError("samples can't be drawn under FSDP, where no process has the whole model")
        known = [*self.parts.prompts, *self._asked]
        if prompt not in known:
            self._asked.append(prompt)
            return len(known)
        return known.index(prompt)

    def _need_prompts(self) -> None:
        if not self.parts.prompts:
            raise EngineError("no prompts are given: set sample_prompts before the run starts")

    def _set(self, request: Request, _step: int) -> str:
        """Change how often samples are drawn; nothing else may change in a run."""
        name, value = request.arguments.get("key"), request.arguments.get("value")
        if name not in ("sample_every_n_steps", "sample_every_n_epochs"):
            raise EngineError(f"{safe_text(str(name))} can't be changed while training; only the sampling cadence can")
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise EngineError(f"{name} = {safe_text(str(value))}: a whole number from 0 on is needed")
        self._need_prompts()
        if name == "sample_every_n_steps":
            self._sample_every_steps, self._sample_every_epochs = value, 0
        else:
            self._sample_every_epochs = value
        return f"{name} = {value}"


def is_validation_due(training: TrainingSettings, step: int, plan: Plan) -> bool:
    """Tell whether the loss on pictures held out is measured after a step; after each epoch if nothing is set."""
    if not plan.held_out_rows:
        return False
    every_steps, every_epochs = training.validate_every_n_steps, training.validate_every_n_epochs
    if every_steps is None and every_epochs is None:
        every_epochs = 1
    epoch, rest = divmod(step, plan.steps_per_epoch)
    is_epoch_due = every_epochs is not None and rest == 0 and epoch % every_epochs == 0
    return is_epoch_due or (every_steps is not None and step % every_steps == 0) or step == plan.steps

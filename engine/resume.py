"""From a run folder or a state to what has to be known before a run goes on: settings, state, differences. Torch-free.

A setting that differs from the state's is one of three kinds: free (told), warned about (the run goes on, but is not
the one that it would have been), or refused (the state does not fit any more).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.errors import EngineError, Problem, ProblemsError, Severity, safe_text
from engine.hypernetworks import STRUCTURE_SETTINGS
from engine.ranks import Ranks
from engine.run import RunFolder, list_runs
from engine.settings import SECTION_OF
from engine.settings_io import LoadedSettings, load_run, relative_values
from engine.states import FOLDER, MANIFEST, Progress, StateInfo, list_states, newest_intact, read_json, verify

FROM_START = "start"  # Chosen like a state: step 0.
_FREE_SECTIONS = {"saving", "sampling", "logging"}
_FREE = {
    "max_train_epochs", "sdpa", "cache_latents", "cache_latents_to_disk", "cache_dir", "vae_batch_size",
    "max_data_loader_n_workers", "ddp_timeout", "max_image_pixels", "skip_bad_images", "train_data_dir", "in_json",
    "dataset_config", "pretrained_model_name_or_path", "vae", "hypernetwork_weights",
}  # fmt: skip
_REFUSED = {
    "v2": "the state is of the other family",
    "v_parameterization": "the state was trained to predict something else",
    "train_text_encoder": "the state holds the parts that were trained",
    "train_hypernetwork": "the state holds the parts that were trained",
    **dict.fromkeys(STRUCTURE_SETTINGS, "the state holds a hypernetwork of the other structure"),
    "optimizer_type": "the state holds this optimizer's values",
    "full_fp16": "the state holds weights of another precision",
    "full_bf16": "the state holds weights of another precision",
    "seed": "order, noise and captions are drawn from it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """How a run goes on: from which state (None: from step 0 again), in its own folder or, with `resume`, another."""

    source: Path | None
    step: int = 0
    is_in_place: bool = True
    only_weights: bool = False
    notes: tuple[Problem, ...] = ()
    accepts_changed_data: bool = False


def resume_run(
    folder: Path,
    *,
    chosen: str = "",
    overrides: Sequence[str] = (),
    restarts: bool = False,
    accepts_changed_data: bool = False,
    progress: Progress | None = None,
) -> tuple[LoadedSettings, Resume]:
    """Return the settings and the state with which the run in a folder goes on.

    Args:
        folder: The run folder.
        chosen: A state's name, step or path; "" takes the newest intact one, "start" none: training begins again.
        overrides: `key=value` texts, as for `train`.
        restarts: Start again at step 0 where no state is intact.
        accepts_changed_data: Go on with a data set that differs from the state's.
        progress: Hears how far the state is checked.

    Raises:
        EngineError: There is no run, it is still running, or it can't go on; the message says what can be done.
    """
    _refuse_no_run(folder)
    if RunFolder(folder).is_alive():
        raise EngineError(f"{safe_text(str(folder))}: an engine is running in this folder; `sdtui attach` shows it")
    loaded = load_run(folder / "run.toml", overrides)
    loaded = replace(loaded, settings=loaded.settings.replace(output_dir=str(folder.resolve()), resume=None))
    if chosen == FROM_START:
        return loaded, Resume(source=None)
    state, damaged = _choose(folder, chosen, progress)
    notes = [_note("damaged-state", "warning", f"{bad.path.name} is passed over: {bad.reason}") for bad in damaged]
    if state is None:
        return loaded, _restart(folder, notes, restarts=restarts)
    loaded, differing = fitted(loaded, state.path, folder=folder)
    return loaded, Resume(
        source=state.path,
        step=state.step,
        notes=(*notes, *differing),
        accepts_changed_data=accepts_changed_data,
    )


def resume_setting(loaded: LoadedSettings, progress: Progress | None = None) -> tuple[LoadedSettings, Resume | None]:
    """Return how the setting `resume` starts a run: from a state, or a run folder's newest one, in a new folder.

    Raises:
        EngineError: It names no state, or a damaged one.
    """
    saving = loaded.settings.saving
    if saving.resume is None:
        return loaded, None
    source = Path(saving.resume)
    if saving.resume_from_huggingface:
        from engine.models.hub import fetch_state

        source = fetch_state(saving.resume, saving.huggingface_token)
    is_ours = (source / MANIFEST).exists() or (source / FOLDER).is_dir()
    if not is_ours and (source / "model.safetensors").exists():
        return loaded, Resume(source=source, is_in_place=False, only_weights=True)
    if (source / FOLDER).is_dir():
        state, _ = newest_intact(list_states(source), progress)
    else:
        state = verify(source, progress)
    if state is None or not state.is_intact:
        why = state.reason if state else "it holds no intact state"
        raise EngineError(f"resume = {safe_text(str(source))}: {why}; name a folder such as {FOLDER}/step-00000500")
    if saving.resume_weights_only:
        return loaded, Resume(source=state.path, is_in_place=False, only_weights=True)
    loaded, differing = fitted(loaded, state.path, folder=state.path.parents[1])
    return loaded, Resume(source=state.path, step=state.step, is_in_place=False, notes=differing)


def fitted(loaded: LoadedSettings, state: Path, *, folder: Path) -> tuple[LoadedSettings, tuple[Problem, ...]]:
    """Return settings that keep the state's steps with this number of processes, and the differences to its settings.

    Raises:
        ProblemsError: A setting differs that must not.
    """
    record = read_json(state)
    problems = list(setting_differences(record["settings"], relative_values(loaded.settings, folder=folder)))
    if any(problem.severity == "error" for problem in problems):
        raise ProblemsError(problems)
    accumulation, world = loaded.settings.training.gradient_accumulation_steps, Ranks.here().world
    wanted = record["batches_per_step"]
    is_unchanged = accumulation == record["settings"]["gradient_accumulation_steps"]
    if is_unchanged and accumulation * world != wanted:
        if wanted % world:
            raise EngineError(
                f"a step of this run has {wanted} batches, which {world} processes can't share evenly: "
                f"launch a number of processes that divides {wanted}, or set gradient_accumulation_steps yourself"
            )
        loaded = replace(loaded, settings=loaded.settings.replace(gradient_accumulation_steps=wanted // world))
        text = f"gradient_accumulation_steps = {wanted // world}, for steps of {wanted} batches"
        problems.append(_note("processes", "info", text))
    return loaded, tuple(problems)


def setting_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Problem]:
    """Return each difference as info (free), warning or error (refused)."""
    found = []
    for name in SECTION_OF:
        # A setting that came with a later version was at its default.
        old, new = before.get(name, now[name]), now[name]
        if old == new:
            continue
        shown = f"{name} was {_shown(old)} and is {_shown(new)}"
        severity, reason = _class_of(name, old, new, curve=str(now["lr_scheduler"]))
        fix = f"set {name} as it was, or start a new run with resume_weights_only" if severity == "error" else ""
        text = f"{shown}: {reason}" if reason else shown
        found.append(Problem(code="resume", severity=severity, where=name if fix else "", message=text, fix=fix))
    return found


def _class_of(name: str, old: object, new: object, *, curve: str) -> tuple[Severity, str]:
    """Return how grave a difference is, and why."""
    if name in _REFUSED:
        return "error", _REFUSED[name]
    if name == "use_ema" and new and not old:
        return "error", "the state holds no average weights"
    if SECTION_OF[name] in _FREE_SECTIONS or name in _FREE:
        return "info", ""
    if name == "max_train_steps" and curve.startswith("constant"):
        return "info", ""
    return "warning", "from here on this is another run than it would have been"


def _shown(value: Any) -> str:  # noqa: ANN401 - any setting's value
    return "not set" if value is None else safe_text(str(value), 80)


def _note(code: str, severity: Severity, message: str) -> Problem:
    return Problem(code=code, severity=severity, where="", message=message)


def _refuse_no_run(folder: Path) -> None:
    if RunFolder(folder).holds_run() and (folder / "run.toml").exists():
        return
    runs = [run.path for run in list_runs(folder) if run.path != folder]
    shown = safe_text(str(folder))
    if not runs:
        raise EngineError(f"{shown} holds no run; name the output_dir of one")
    lines = "\n".join(f"  {safe_text(str(path))}  {_state_line(path)}" for path in runs)
    raise EngineError(f"{shown} holds {len(runs)} runs; name one of them:\n{lines}")


def _state_line(path: Path) -> str:
    intact = [state for state in list_states(path) if state.is_intact]
    return f"state of step {intact[0].step}" if intact else "no state"


def _choose(folder: Path, chosen: str, progress: Progress | None) -> tuple[StateInfo | None, tuple[StateInfo, ...]]:
    states = list_states(folder)
    if not chosen:
        return newest_intact(states, progress)
    for state in states:
        if chosen in (state.path.name, str(state.step)) or Path(chosen).resolve() == state.path.resolve():
            checked = verify(state.path, progress)
            if not checked.is_intact:
                raise EngineError(f"{state.path.name} is damaged: {checked.reason}; leave out --from for the best one")
            return checked, ()
    there = ", ".join(state.path.name for state in states) or "none"
    raise EngineError(f"--from {safe_text(chosen)}: no such state; there are: {there}")


def _restart(folder: Path, notes: list[Problem], *, restarts: bool) -> Resume:
    if restarts:
        return Resume(source=None, notes=tuple(notes))
    reasons = "".join(f"; {note.message}" for note in notes)
    raise EngineError(
        f"{safe_text(str(folder))} has no intact state to go on from{reasons}: "
        "`--restart` starts again at step 0 in this folder, save_state = true keeps states from then on"
    )

"""Runs the engine from checked settings to an exit code: folder, log, plan, model, training."""

import logging
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.control import STOP_CODES, Control, detach
from engine.dataset.ledger import DATASET_FILE, find_changes
from engine.display import make_display
from engine.errors import EngineError, Problem, ProblemsError, Severity, safe_text
from engine.events import EventLog, Failed, Warned, rebuild_metrics
from engine.finite import NotFiniteError
from engine.hardware import is_out_of_memory, share_cores
from engine.librarylog import library_log, quieten
from engine.pixels import content_of_file
from engine.plan import Plan, make_plan
from engine.preflight import completed, look_at_files
from engine.ranks import ALONE, Ranks
from engine.resume import Resume, resume_setting
from engine.room import needs_of
from engine.rules import find_problems
from engine.rules.plan import RULES as PLAN_RULES
from engine.rules.plan import PlanSubject
from engine.rules.rule import applied
from engine.run import RunFolder, cache_dir, missing_folders
from engine.runfiles import write_run_files
from engine.settings_io import LoadedSettings
from engine.space import find_space_problems
from engine.speed import SpeedLog, device_name, key_of
from engine.states import clear_leftovers, read_json
from engine.telling import Listener, Teller
from engine.tracking import trackers

if TYPE_CHECKING:
    from engine.parts import Parts

_log = logging.getLogger(__name__)
DONE, FAILED = 0, 1


def train_headless(
    loaded: LoadedSettings,
    listeners: Sequence[Listener] = (),
    *,
    keeps_log: bool = False,
    resume: Resume | None = None,
) -> int:
    """Train with a display on stderr, SIGINT and SIGTERM ending the run after a step; return the exit code.

    Raises:
        EngineError: Settings, data or model are wrong; nothing was started.
        KeyboardInterrupt: A signal, named by its argument, came before training began.
    """
    ranks = Ranks.here()
    if not ranks.is_main:
        return follow_main(loaded, ranks, resume=resume)
    display = make_display(loaded.settings.logging)
    try:
        return run_engine(loaded, listeners=[display, *listeners], is_alone=True, keeps_log=keeps_log, resume=resume)
    finally:
        try:
            display.close()
            sys.stderr.flush()
        except OSError:  # The terminal is gone; Python's last flush at exit would fail on it too.
            detach()


def run_engine(
    loaded: LoadedSettings,
    *,
    listeners: Sequence[Listener] = (),
    make_control: Callable[[RunFolder], Control] = Control,
    is_alone: bool = False,
    keeps_log: bool = False,
    resume: Resume | None = None,
) -> int:
    """Train in the calling thread and return the exit code; of several processes the main one calls this.

    Args:
        loaded: Settings and where they stand.
        listeners: Who is told the events, besides the run's own files.
        make_control: Makes what steers the run.
        is_alone: The process is this run's: it takes the signals, and what libraries print.
        keeps_log: Leave log.txt there if nothing was started.
        resume: From where the run goes on.

    Raises:
        EngineError: Settings, data or model are wrong; nothing was started, and a new run folder is removed again.
    """
    # Only a process of its own can be one of several: a wizard may itself have been started by a launcher.
    ranks = Ranks.here() if is_alone else ALONE
    if resume is None:
        loaded, resume = resume_setting(loaded)
    is_in_place = resume is not None and resume.is_in_place
    files = look_at_files(loaded)
    found = (*find_problems(completed(loaded.settings, files.info), loaded.places), *files.problems)
    # A run that goes on finds its own files in its folder.
    problems = tuple(problem for problem in found if not (is_in_place and problem.code == "output"))
    _raise_errors(problems)
    with ExitStack() as stack:
        tell = Teller([])
        folder = RunFolder(Path(loaded.settings.saving.output_dir))
        if resume is not None and is_in_place:
            notice = _take_old(folder, stack, step=resume.step)
        else:
            notice = _take_new(folder, stack, tell, keeps_log=keeps_log)
        control = make_control(folder)
        if is_alone:
            stack.enter_context(control.signals())
        key = key_of(loaded.settings, files.info, device_name(ranks.world))
        own = [SpeedLog(cache_dir=cache_dir_for(loaded), key=key), *trackers(loaded.settings, folder, tell.warn)]
        _open_logs(folder, own, stack, tell)
        tell.listeners += [control, *listeners]
        if notice:
            tell.warn("lock", notice)
        stack.enter_context(library_log(folder.log_path, takes_output=is_alone))
        job = _Job(
            loaded=loaded,
            problems=problems,
            folder=folder,
            control=control,
            tell=tell,
            ranks=ranks,
            resume=resume,
        )
        return _guarded(job)


def _open_logs(folder: RunFolder, own: list[Listener], stack: ExitStack, tell: Teller) -> None:
    """Let the run's own files hear of it until the end."""
    tell.log = EventLog(folder.path)
    tell.listeners += own
    for log in (tell.log, *own):
        stack.callback(log.close)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What a run is started with."""

    loaded: LoadedSettings
    problems: Sequence[Problem]
    folder: RunFolder
    control: Control
    tell: Teller
    ranks: Ranks
    resume: Resume | None


def _take_new(folder: RunFolder, stack: ExitStack, tell: Teller, *, keeps_log: bool) -> str:
    """Make and own the folder of a new run, which is as before if nothing is started; return the lock's notice."""
    made = missing_folders(folder.path)
    RunFolder.create(folder.path)
    stack.callback(lambda: None if tell.has_started else folder.discard(made, keeps_log=keeps_log))
    notice = stack.enter_context(folder.locked())
    folder.refuse_run()  # Another engine may have come and gone since.
    folder.clear()
    return notice


def _take_old(folder: RunFolder, stack: ExitStack, *, step: int) -> str:
    """Own the folder of a run that goes on, without what its end left half done; return the lock's notice."""
    folder.check_writable()
    notice = stack.enter_context(folder.locked())
    clear_leftovers(folder.path)
    rebuild_metrics(folder.path, up_to_step=step)
    return notice


def follow_main(loaded: LoadedSettings, ranks: Ranks, *, resume: Resume | None = None) -> int:
    """Train as one of several processes that is not the main one: nothing is written, nobody is told.

    Raises:
        EngineError: Something is wrong in this process; the message names it.
    """
    if resume is None:
        loaded, resume = resume_setting(loaded)
    problems = find_problems(loaded.settings, loaded.places)
    control = Control()
    try:
        _raise_errors(problems)
        with control.signals():
            job = _Job(
                loaded=loaded,
                problems=(),
                folder=RunFolder(Path(loaded.settings.saving.output_dir)),
                control=control,
                tell=Teller([control]),
                ranks=ranks,
                resume=resume,
            )
            return _prepare_and_train(job)
    except EngineError as error:
        raise EngineError(f"process {ranks.rank}: {error}") from error


def _guarded(job: _Job) -> int:
    """Train; an error after the start becomes the run's last event and exit code 1, one before it is raised."""
    tell = job.tell
    try:
        return _prepare_and_train(job)
    except EngineError as error:
        if not tell.has_started:
            raise
        message = str(error)
    except Exception as error:  # The outermost boundary: a bug must end as a sentence too.
        _log.exception("internal error")
        message = _out_of_memory(error) or _lost_process(error, job.ranks) or internal_error(error, job.folder)
        if not tell.has_started and _out_of_memory(error):
            raise EngineError(message) from error
        if not tell.has_started:
            raise
    tell(Failed(step=tell.step, message=message))
    return FAILED


def _prepare_and_train(job: _Job) -> int:
    loaded, tell, ranks, resume = job.loaded, job.tell, job.ranks, job.resume
    settings = loaded.settings
    cache = cache_dir_for(loaded)
    plan = make_plan(settings, cache_dir=cache, progress=tell.progress("scan"), processes=ranks.world)
    space = find_space_problems(needs_of(loaded, plan, cache_dir=cache)) if ranks.is_main else ()
    _raise_errors((*plan.problems, *space))
    planned = applied(PLAN_RULES, PlanSubject(plan=plan), loaded.places)
    notes = _notes(resume, plan) if resume is not None else ()
    for problem in (*loaded.warnings, *job.problems, *plan.problems, *planned, *space, *notes):
        if problem.severity == "warning":
            tell(Warned(code=problem.code, message=str(problem)))
    first = resume.step if resume is not None else 0
    if first >= plan.steps:
        raise EngineError(f"all {plan.steps} steps are done; `--set max_train_steps={2 * plan.steps}`, say, adds more")
    # Torch is imported here and not before, so that wrong settings are refused at once.
    share_cores()
    from engine.gauge import gauge_for
    from engine.parts import prepare
    from engine.restore import restore, restore_weights

    quieten()
    parts = prepare(settings, plan, folder=job.folder.path, cache_dir=cache, tell=tell, ranks=ranks)
    if resume is not None and resume.source is not None:
        bring_back = restore_weights if resume.only_weights else restore
        bring_back(parts, resume.source, tell=tell)
    gauge = gauge_for(parts, cache_dir=cache, tell=tell)
    if gauge is not None:
        tell.listeners.append(gauge)
    if ranks.is_main:
        write_run_files(job.folder.path, settings, plan.config)
    job.control.is_training = True
    try:
        return _train_on(parts, job, first=first)
    finally:
        parts.ranks.leave()


def _train_on(parts: "Parts", job: _Job, *, first: int) -> int:
    """Train to the end, going back to the last state where a loss is not finite and that is asked for."""
    from engine.rollback import roll_back
    from engine.train import train

    resumed_from, used = (first if job.resume else None), 0
    while True:
        try:
            ending = train(parts, tell=job.tell, control=job.control, first_step=first, resumed_from=resumed_from)
        except NotFiniteError as error:
            parts, first = roll_back(parts, error, folder=job.folder.path, used=used, tell=job.tell)
            resumed_from, used = first, used + 1
            if job.tell.log is not None:
                job.tell.log.void_after(first)
        else:
            return STOP_CODES.get(ending.stopped_by, DONE)


def _notes(resume: Resume, plan: Plan) -> tuple[Problem, ...]:
    """Return what to tell of a resume: settings and pictures that differ.

    Raises:
        ProblemsError: The pictures differ and nobody has said to go on with them.
    """
    if resume.source is None or resume.only_weights:
        return resume.notes
    changes = find_changes(read_json(resume.source, DATASET_FILE)["pictures"], plan.catalog, content_of_file)
    severity: Severity = "warning" if resume.accepts_changed_data else "error"
    fix = "" if resume.accepts_changed_data else "bring them back, or add --changed_data to go on, not bit for bit"
    what = "pictures differ from the state's"
    found = tuple(
        Problem(code="changed-data", severity=severity, where="", message=f"{what}: {line}", fix=fix)
        for line in changes.lines()
    )
    _raise_errors(found)
    return (*resume.notes, *found)


def cache_dir_for(loaded: LoadedSettings) -> Path:
    """Return the folder of caches: the setting, else the user's."""
    chosen = loaded.settings.memory.cache_dir
    return Path(chosen) if chosen else cache_dir()


def _raise_errors(problems: Sequence[Problem]) -> None:
    if any(problem.severity == "error" for problem in problems):
        raise ProblemsError(problems)


def _lost_process(error: Exception, ranks: Ranks) -> str:
    """Put into words that a collective failed, which is how the end of another process shows."""
    if ranks.world == 1 or not isinstance(error, RuntimeError):
        return ""
    return (
        f"one of the {ranks.world} processes ended or can't be reached any more; its own message, or that of the "
        "system that ended it, says why: continue with the same launch command and `resume`"
    )


def _out_of_memory(error: Exception) -> str:
    if not is_out_of_memory(error):
        return ""
    return (
        "memory ran out, and smaller batches did not help or were not possible: lower train_batch_size or resolution, "
        "set gradient_checkpointing, mixed_precision=bf16, cache_latents or optimizer_type=AdamW8bit"
    )


def internal_error(error: Exception, folder: RunFolder | None = None) -> str:
    """Return a bug as one sentence, with the place in the code where it came up."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = safe_text(" ".join(str(error).split()))
    details = f" (details: {folder.log_path.name})" if folder else ""
    return f"internal error, {type(error).__name__} in {Path(last.filename).name}:{last.lineno}: {text}{details}"


@dataclass(slots=True)
class EngineThread:
    """An engine in a thread of this process; screens follow `folder`, as they would any other run's."""

    folder: RunFolder
    control: Control
    thread: threading.Thread
    exit_code: int | None = None
    error: str = ""

    @property
    def is_running(self) -> bool:
        """Tell whether the engine has not ended yet."""
        return self.thread.is_alive()


def start_in_thread(
    loaded: LoadedSettings, listeners: Sequence[Listener] = (), *, resume: Resume | None = None
) -> EngineThread:
    """Start a run, or go on with one, in a plain thread, which outlives the screen that started it."""
    folder = RunFolder(Path(loaded.settings.saving.output_dir))
    control = Control(folder)

    def work() -> None:
        try:
            engine.exit_code = run_engine(
                loaded, listeners=listeners, make_control=lambda _folder: control, resume=resume
            )
        except EngineError as error:
            engine.error, engine.exit_code = str(error), 2
        except Exception as error:  # noqa: BLE001 - a thread that dies unseen tells nobody
            engine.error, engine.exit_code = internal_error(error), FAILED

    engine = EngineThread(folder=folder, control=control, thread=threading.Thread(target=work, name="engine"))
    engine.thread.start()
    return engine

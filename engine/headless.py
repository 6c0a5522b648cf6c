"""Runs the engine from checked settings to an exit code: folder, log, plan, model, training."""

import logging
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.control import Control
from engine.display import make_display
from engine.errors import EngineError, Problem, ProblemsError, safe_text
from engine.events import EventLog, Failed, Warned
from engine.plan import make_plan
from engine.rules import find_problems
from engine.run import RunFolder, cache_dir
from engine.runfiles import write_run_files
from engine.settings_io import LoadedSettings
from engine.telling import Listener, Teller

DONE, FAILED = 0, 1
STOP_CODES = {"SIGINT": 130, "SIGTERM": 143}


def train_headless(loaded: LoadedSettings) -> int:
    """Train with a display on stderr, SIGINT and SIGTERM ending the run after a step; return the exit code.

    Raises:
        EngineError: Settings, data or model are wrong; nothing was started.
    """
    display = make_display()
    try:
        return run_engine(loaded, listeners=[display], make_control=Control, with_signals=True)
    finally:
        display.close()


def run_engine(
    loaded: LoadedSettings,
    *,
    listeners: Sequence[Listener],
    make_control: Callable[[RunFolder], Control] = Control,
    with_signals: bool = False,
) -> int:
    """Train in the calling thread and return the exit code.

    Raises:
        EngineError: Settings, data or model are wrong; nothing was started, and a new run folder is removed again.
    """
    problems = find_problems(loaded.settings, loaded.places)
    _raise_errors(problems)
    folder = RunFolder.create(Path(loaded.settings.saving.output_dir))
    control = make_control(folder)
    with ExitStack() as stack:
        if with_signals:
            stack.enter_context(control.signals())
        stack.enter_context(folder.locked())
        log = EventLog(folder.path)
        tell = Teller([log, *listeners])
        stack.callback(log.close)
        stack.enter_context(_library_log(folder.log_path))
        try:
            return _prepare_and_train(loaded, problems, folder=folder, control=control, tell=tell)
        except EngineError as error:
            if not tell.has_started:
                raise
            tell(Failed(message=str(error)))
            return FAILED
        except Exception as error:  # The outermost boundary: a bug must end as a sentence too.
            logging.getLogger("sdtui").exception("internal error")
            message = _internal_error(error, folder)
            if not tell.has_started:
                raise EngineError(message) from error
            tell(Failed(message=message))
            return FAILED
        finally:
            if not tell.has_started:
                stack.callback(folder.discard)


def _prepare_and_train(
    loaded: LoadedSettings, problems: Sequence[Problem], *, folder: RunFolder, control: Control, tell: Teller
) -> int:
    settings = loaded.settings
    plan = make_plan(settings, cache_dir=cache_dir_for(loaded), progress=tell.progress("scan"))
    _raise_errors(plan.problems)
    for problem in (*problems, *plan.problems):
        if problem.severity == "warning":
            tell(Warned(code=problem.code, message=str(problem)))
    # Torch is imported here and not before, so that wrong settings are refused at once.
    from engine.parts import prepare
    from engine.train import train

    parts = prepare(settings, plan, folder=folder.path, cache_dir=cache_dir_for(loaded), tell=tell)
    write_run_files(folder.path, settings, plan.config)
    ending = train(parts, tell=tell, control=control)
    return STOP_CODES.get(ending.stopped_by, DONE)


def cache_dir_for(loaded: LoadedSettings) -> Path:
    """Return the folder of caches: the setting, else the user's."""
    chosen = loaded.settings.memory.cache_dir
    return Path(chosen) if chosen else cache_dir()


def _raise_errors(problems: Sequence[Problem]) -> None:
    if any(problem.severity == "error" for problem in problems):
        raise ProblemsError(problems)


def _internal_error(error: Exception, folder: RunFolder) -> str:
    kind = type(error).__name__
    if kind == "OutOfMemoryError":
        return (
            "the graphics card ran out of memory: lower train_batch_size or resolution, set gradient_checkpointing, "
            "mixed_precision=bf16, cache_latents or optimizer_type=AdamW8bit"
        )
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = safe_text(" ".join(str(error).split()))
    return (
        f"internal error, {kind} in {Path(last.filename).name}:{last.lineno}: {text} (details: {folder.log_path.name})"
    )


@contextmanager
def _library_log(path: Path) -> Iterator[None]:
    """Send what libraries log and warn into log.txt while a run goes on."""
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.captureWarnings(True)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        logging.captureWarnings(False)
        handler.close()


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


def start_in_thread(loaded: LoadedSettings, listeners: Sequence[Listener] = ()) -> EngineThread:
    """Start a run in a plain thread, which outlives the screen that started it."""
    folder = RunFolder(Path(loaded.settings.saving.output_dir))
    control = Control(folder)

    def work() -> None:
        try:
            engine.exit_code = run_engine(loaded, listeners=listeners, make_control=lambda _folder: control)
        except EngineError as error:
            engine.error, engine.exit_code = str(error), 2

    engine = EngineThread(folder=folder, control=control, thread=threading.Thread(target=work, name="engine"))
    engine.thread.start()
    return engine

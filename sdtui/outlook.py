"""What the wizard says about a draft: its plan, the problems by page, and what the run will take."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError, Problem, ProblemsError, Severity
from engine.run import RunFolder, cache_dir
from engine.settings import SECTION_OF, Settings
from sdtui import format as fmt
from sdtui.dataset_file import publish
from sdtui.draft import Draft, read_text
from sdtui.memory_meter import memory_words
from sdtui.pages import page_of

if TYPE_CHECKING:
    from engine.plan import Plan

# A change of any other setting leaves the plan as it is.
PLANNED = frozenset(name for name, section in SECTION_OF.items() if section in ("dataset", "training")) | {
    "max_token_length",
    "cache_dir",
    "pretrained_model_name_or_path",
    "vae",
}
TAKEN = Problem(
    code="run-exists",
    severity="error",
    where="output_dir",
    message="the folder already holds a run",
    fix="take the next free name",
)
REPORT_SECONDS = 0.1


def find_plan(
    settings: Settings, *, report: Callable[[int, int], None], is_cancelled: Callable[[], bool]
) -> tuple["Plan | None", tuple[Problem, ...]]:
    """Scan the pictures and return the plan with its problems; without a plan they say why there is none.

    Reads the disk for as long as it takes, so it belongs into a thread; `report(done, total)` is called at most ten
    times a second, with a total of 0 while that is not known.
    """
    dataset = settings.dataset
    if not (dataset.dataset_config or dataset.train_data_dir or dataset.in_json):
        return None, ()
    from engine.plan import make_plan

    last = 0.0

    def progress(done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > REPORT_SECONDS or done == total:
            last = now
            report(done, total or 0)

    folder = Path(settings.memory.cache_dir) if settings.memory.cache_dir else cache_dir()
    try:
        plan = make_plan(settings, cache_dir=folder, progress=progress, cancel=is_cancelled)
    except ProblemsError as error:
        return None, error.problems
    except EngineError as error:
        return None, (Problem(code="no-plan", severity="error", where="train_data_dir", message=str(error)),)
    return plan, plan.problems


def marks(problems: Iterable[Problem]) -> dict[str, tuple[Severity, int]]:
    """Return for each page the gravest severity of its problems, errors before warnings, and how many have it."""
    found: dict[str, tuple[Severity, int]] = {}
    for problem in problems:
        if problem.severity == "info":
            continue
        name = page_of(problem.about)
        severity, count = found.get(name, (problem.severity, 0))
        if severity == problem.severity:
            found[name] = (severity, count + 1)
        elif problem.severity == "error":
            found[name] = ("error", 1)
    return found


def forecast(plan: "Plan | None", settings: Settings) -> str:
    """Return what a run will take in a few words: of the card, and once there is a plan, of pictures and steps."""
    memory = memory_words(settings, plan)
    if plan is None:
        return memory
    gap = "  " if memory else ""
    return f"{memory}{gap}{fmt.count(plan.num_images)} img  {fmt.count(plan.steps)} steps  {fmt.count(plan.epochs)} ep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The disk as it was: the file's text if it was changed, its time of change, whether the run's folder is taken."""

    text: str | None
    stamp: int
    is_taken: bool


def look(target: Path, stamp: int, *, output_dir: str) -> Seen:
    """Look whether somebody else has changed the file since `stamp` (-1: there was none), and at the run's folder."""
    is_taken = bool(output_dir) and RunFolder(Path(output_dir)).holds_run()
    try:
        now = target.stat().st_mtime_ns
        text = read_text(target) if stamp not in (-1, now) else None
    except (OSError, EngineError):
        return Seen(text=None, stamp=-1, is_taken=is_taken)
    return Seen(text=text, stamp=now, is_taken=is_taken)


def save_draft(draft: Draft) -> int:
    """Write a draft's run.toml, and the dataset.toml it owns beside it; return the run.toml's time of change.

    Raises:
        OSError: One of them can't be written.
    """
    changes = publish(draft, draft.target.parent)
    if changes:
        draft.change(changes, label="dataset.toml saved beside the run.toml")
    return write_toml(draft.target, draft.text())


def write_toml(path: Path, text: str) -> int:
    """Write a run.toml so that a reader never sees half of it, and return its time of change in nanoseconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path.stat().st_mtime_ns

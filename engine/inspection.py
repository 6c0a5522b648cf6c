"""All that can be known of a run before it starts: settings, files, model, pictures, plan, machine. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from engine.errors import EngineError, Problem, ProblemsError
from engine.hardware import Card, graphics_cards
from engine.memory.forecast import Forecast
from engine.memory.of_run import memory_outlook
from engine.outlay import disk_bytes, disk_needs, prompts_of
from engine.preflight import Files, completed, look_at_files
from engine.probe_results import known_results
from engine.rules import find_problems
from engine.rules.machine import RULES as MACHINE_RULES
from engine.rules.machine import MachineSubject
from engine.rules.plan import RULES as PLAN_RULES
from engine.rules.plan import PlanSubject
from engine.rules.probed import RULES as PROBE_RULES
from engine.rules.probed import ProbedSubject
from engine.rules.rule import applied
from engine.settings import SECTION_OF, Settings
from engine.settings_io import LoadedSettings
from engine.speed import device_name

if TYPE_CHECKING:
    from engine.plan import Plan
    from engine.plan_facts import PlanFacts

_RANK = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found; `plan` and `facts` are None where the pictures can't be read, which a problem says."""

    problems: tuple[Problem, ...]
    files: Files
    plan: "Plan | None" = None
    facts: "PlanFacts | None" = None
    disk: Mapping[str, int | None]
    """Bytes by kind; see `engine.outlay.disk_bytes`."""
    card: Card | None = None
    memory: Forecast | None = None
    """What the graphics card has to hold; None where the model is not known."""
    cache_dir: Path

    @property
    def has_errors(self) -> bool:
        """Whether a run would be refused."""
        return any(problem.severity == "error" for problem in self.problems)


def inspect_run(loaded: LoadedSettings, *, cache_dir: Path, card: Card | None = None) -> Inspection:
    """Look at everything, errors or not, and return all that was found, the gravest first.

    Args:
        loaded: Settings and where they stand.
        cache_dir: Where the scan index and caches are.
        card: A card to compare with instead of this machine's.
    """
    files = look_at_files(loaded)
    settings = completed(loaded.settings, files.info)
    problems = [*loaded.warnings, *find_problems(settings, loaded.places), *files.problems]
    plan, facts, found = _plan(settings, cache_dir, loaded.places)
    problems += found
    disk = disk_bytes(plan, files.info, files.source) if plan else {}
    cards = (card,) if card else graphics_cards()
    subject = MachineSubject(
        settings=settings,
        cards=cards,
        is_named=card is not None,
        info=files.info,
        disks=disk_needs(plan, disk, cache_dir=cache_dir) if plan else (),
        available_bytes=psutil.virtual_memory().available,
    )
    problems += applied(MACHINE_RULES, subject, loaded.places)
    results = known_results(cache_dir, files.source, settings, cards[0].name if cards else device_name())
    problems += applied(PROBE_RULES, ProbedSubject(settings=settings, results=results), loaded.places)
    prompts = prompts_of(plan) if plan else ()
    outlook = memory_outlook(
        settings, plan=plan, files=files, prompts=prompts, card=cards[0] if cards else None, cache_dir=cache_dir
    )
    problems += outlook.problems
    return Inspection(
        problems=_unique(problems),
        files=files,
        plan=plan,
        facts=facts,
        disk=disk,
        card=cards[0] if cards else None,
        memory=outlook.memory,
        cache_dir=cache_dir,
    )


def _plan(
    settings: Settings, cache_dir: Path, places: Mapping[str, str]
) -> "tuple[Plan | None, PlanFacts | None, tuple[Problem, ...]]":
    from engine.plan import make_plan
    from engine.plan_facts import gather_facts

    dataset = settings.dataset
    setting = next((name for name in ("dataset_config", "in_json", "train_data_dir") if getattr(dataset, name)), "")
    if not setting:
        return None, None, ()
    try:
        plan = make_plan(settings, cache_dir=cache_dir)
        facts = gather_facts(plan, cache_dir=cache_dir, v2=bool(settings.model.v2))
    except ProblemsError as error:
        return None, None, tuple(placed(problem, places) for problem in error.problems)
    except EngineError as error:
        where = places.get(setting, setting)
        problem = Problem(code="dataset", severity="error", where=where, message=str(error), setting=setting)
        return None, None, (problem,)
    found = applied(PLAN_RULES, PlanSubject(plan=plan, facts=facts), places)
    return plan, facts, (*(placed(problem, places) for problem in plan.problems), *found)


def placed(problem: Problem, places: Mapping[str, str]) -> Problem:
    """Return a problem that names a setting as its place with the file and line that gave it."""
    if problem.where not in SECTION_OF:
        return problem
    return replace(problem, where=places.get(problem.where, problem.where), setting=problem.where)


def _unique(problems: list[Problem]) -> tuple[Problem, ...]:
    """Return the problems, the gravest first; what a rule and the plan both say is said once."""
    first = {(problem.code, problem.where, problem.message): problem for problem in reversed(problems)}
    kept = [problem for problem in problems if first[problem.code, problem.where, problem.message] is problem]
    return tuple(sorted(kept, key=lambda problem: _RANK[problem.severity]))

"""What surrounds a draft - the model's file, the plan, the cards - and the problems that come of it at each key."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from engine.errors import Problem
from engine.rules import find_problems
from engine.rules.rule import applied
from engine.settings import Settings
from sdtui.draft import Draft, Snapshot

if TYPE_CHECKING:
    from engine.hardware import Card
    from engine.models.inspect import ModelInfo
    from engine.plan import Plan


@dataclass(slots=True)
class Around:
    """Facts that threads find, and what rules make of them together with the settings of the moment.

    The rules read columns of the plan and names of settings: with 100,000 pictures they take a few milliseconds, once
    for each change.
    """

    plan: "Plan | None" = None
    info: "ModelInfo | None" = None
    is_absent: bool = False
    """The model is on a hub and not on this machine."""
    cards: "tuple[Card, ...]" = ()
    file_problems: tuple[Problem, ...] = ()
    _seen: tuple[Any, ...] = ()
    _problems: tuple[Problem, ...] = field(default=())

    def look(self, settings: Settings) -> None:
        """Look at the model's file and ask the driver for cards; reads the disk, so it belongs into a thread."""
        from engine.hardware import graphics_cards
        from sdtui.model_facts import look_at

        self.cards = self.cards or graphics_cards()
        name = settings.model.pretrained_model_name_or_path
        if not name:
            self.info, self.is_absent, self.file_problems = None, False, ()
            return
        look = look_at(name, settings.model.vae)
        obstacle = f"{look.info.what}: {look.info.obstacle}" if look.info and look.info.obstacle else ""
        self.info, self.is_absent = look.info, look.is_absent_hub_id
        self.file_problems = _about_model(look.error or obstacle)

    def problems(self, draft: Draft) -> tuple[Problem, ...]:
        """Return what is wrong with the present settings beside their surroundings, found once for each state."""
        seen = (draft.now, self.plan, self.info, self.is_absent, self.cards)
        if len(seen) != len(self._seen) or any(now is not then for now, then in zip(seen, self._seen, strict=True)):
            self._seen, self._problems = seen, self._find(draft.now)
        return (*self.file_problems, *self._problems)

    def _find(self, snapshot: Snapshot) -> tuple[Problem, ...]:
        from engine.preflight import completed
        from engine.rules.machine import RULES as MACHINE_RULES
        from engine.rules.machine import MachineSubject
        from engine.rules.model import RULES as MODEL_RULES
        from engine.rules.model import ModelSubject
        from engine.rules.plan import RULES as PLAN_RULES
        from engine.rules.plan import PlanSubject
        from sdtui.memory_meter import memory_problem

        settings = snapshot.checked[0].settings
        full = completed(settings, self.info)
        known = {*snapshot.problems}
        found = [problem for problem in find_problems(full) if problem not in known] if full is not settings else []
        if self.info is not None or self.is_absent:
            found += applied(MODEL_RULES, ModelSubject(settings=settings, info=self.info))
        if self.plan is not None:
            found += applied(PLAN_RULES, PlanSubject(plan=replace(self.plan, settings=full)))
        if self.cards:  # Without one, this machine is rarely the one that trains.
            found += applied(MACHINE_RULES, MachineSubject(settings=full, cards=self.cards))
            memory = memory_problem(full, self.plan)
            found += [memory] if memory else []
        return tuple(found)


def _about_model(message: str) -> tuple[Problem, ...]:
    if not message:
        return ()
    name = "pretrained_model_name_or_path"
    return (Problem(code="model", severity="error", where=name, message=message, fix="choose another", setting=name),)

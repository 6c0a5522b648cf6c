"""What widgets tell each other: requests go up the tree, news goes down to the wizard's pages."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from textual.message import Message

from engine.errors import Problem, Severity

if TYPE_CHECKING:
    from engine.plan import Plan

# ---- upward: a widget asks


@dataclass
class ChangeSettings(Message):
    """Set settings of the draft; None takes a value back to its default. Text is read as `--set` reads it."""

    values: Mapping[str, object]
    label: str = ""
    origin: Literal["you", "preset"] = "you"


@dataclass
class FixProblem(Message):
    """Apply a problem's mechanical fix; None fixes all that can be fixed safely."""

    problem: Problem | None


@dataclass
class OpenStep(Message):
    """Show a wizard page by name, and there the given setting."""

    name: str
    setting: str = ""


@dataclass
class MakePlan(Message):
    """Scan the pictures and plan again, even if no setting has changed."""


@dataclass
class CancelPlan(Message):
    """Stop the scan that is going on."""


@dataclass
class Say(Message):
    """Show one line in the status row."""

    text: str
    severity: Severity = "info"


@dataclass
class OpenRun(Message):
    """Open the training screen on a run folder."""

    path: Path


@dataclass
class OpenToml(Message):
    """Open the wizard on a run.toml."""

    path: Path


@dataclass
class StartRun(Message):
    """Save the draft and train it: in this process, or in a process of its own."""

    where: Literal["here", "background"] = "here"


# ---- downward: the wizard tells its pages; these do not bubble


@dataclass
class DraftChanged(Message, bubble=False):
    """The draft's settings or problems have changed; `names` are the settings, empty when it was opened."""

    names: frozenset[str] = frozenset()


@dataclass
class PlanChanged(Message, bubble=False):
    """A new plan is there, or None while the pictures are unknown or being scanned."""

    plan: "Plan | None"


@dataclass
class PlanProgress(Message, bubble=False):
    """The scan has got this far."""

    done: int
    total: int


@dataclass
class PlanFailed(Message, bubble=False):
    """The pictures can't be planned; these say why."""

    problems: tuple[Problem, ...]

"""What a rule is: a pure function with a code, a severity, a reason and the reason's source. Torch-free."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.errors import Problem, Severity, Values

# What a rule looks at: the settings alone, or these with the model, the plan or the machine.
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a rule found: the setting it is about, the facts, the remedy, and the change of settings that is it.

    In `values` None stands for the default. `severity` is given where a case weighs less than the rule. `where` is
    the place of what is no setting, such as a file.
    """

    setting: str
    message: str
    fix: str
    values: Values = ()
    severity: Severity | None = None
    where: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule(Generic[T]):
    """One rule. `why` is the reason in a sentence, `source` where it is known from; docs/checks.md lists both."""

    code: str
    severity: Severity
    what: str
    why: str
    source: str
    find: Callable[[T], Iterator[Finding]]


def rule(
    code: str, severity: Severity, *, why: str, source: str
) -> Callable[[Callable[[T], Iterator[Finding]]], Rule[T]]:
    """Make a rule of a function; its docstring says what is found, in one sentence."""

    def made(find: Callable[[T], Iterator[Finding]]) -> Rule[T]:
        what = (find.__doc__ or "").strip().split("\n")[0]
        return Rule(code=code, severity=severity, what=what, why=why, source=source, find=find)

    return made


def applied(rules: Iterable[Rule[T]], subject: T, places: Mapping[str, str] | None = None) -> tuple[Problem, ...]:
    """Return what the rules find; `places` maps a setting to the file and line that gave it."""
    known = places or {}
    return tuple(
        Problem(
            code=each.code,
            severity=finding.severity or each.severity,
            where=finding.where or known.get(finding.setting, finding.setting),
            message=finding.message,
            fix=finding.fix,
            reason=f"{each.why} Source: {each.source}.",
            setting=finding.setting,
            values=finding.values,
        )
        for each in rules
        for finding in each.find(subject)
    )


def to_default(*names: str) -> Values:
    """Return the change that takes settings back to their defaults."""
    return tuple((name, None) for name in names)


def set_to(**values: object) -> Values:
    """Return the change that gives settings these values."""
    return tuple(values.items())

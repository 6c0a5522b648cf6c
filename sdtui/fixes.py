"""One-key fixes: what a problem's remedy means as a change of settings, offered only when trying it helps."""

import re
from collections.abc import Iterator, Mapping

from engine.errors import Problem
from engine.settings import SECTION_OF
from sdtui.draft import Draft, Snapshot

Changes = Mapping[str, object]

_MEANT = re.compile(r"did you mean '([^']+)'")


def fix_for(draft: Draft, problem: Problem) -> Changes | None:
    """Return the change that removes a problem without causing another error, or None where a person must decide."""
    errors = _errors(draft.now)
    for changes in _candidates(draft, problem):
        after = draft.with_values(changes)
        is_gone = (problem.code, problem.where) not in {(left.code, left.where) for left in after.problems}
        if is_gone and _errors(after) <= errors:
            return changes
    return None


def fix_text(changes: Changes) -> str:
    """Return a fix in a few words, such as "lr_warmup_steps back to default"."""
    return ", ".join(
        f"{name} {'to default' if value is None else f'= {_short(value)}'}" for name, value in changes.items()
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"...{text[-20:]}"


def _errors(snapshot: Snapshot) -> set[tuple[str, str]]:
    return {(problem.code, problem.where) for problem in snapshot.problems if problem.severity == "error"}


def _candidates(draft: Draft, problem: Problem) -> Iterator[Changes]:
    """Yield what the problem proposes, the spelling it asks about, and the removal of a value that is refused."""
    if problem.values:
        yield dict(problem.values)
    yield from _meant(draft, problem)
    if not problem.reason and problem.where in draft.now.entries:  # Not from a rule: a name or value that is refused.
        yield {problem.where: None}


def _meant(draft: Draft, problem: Problem) -> Iterator[Changes]:
    found = _MEANT.search(problem.message)
    entry = draft.now.entries.get(problem.where)
    if not found or not entry:
        return
    if problem.code == "unknown-key" and found[1] not in draft.now.entries:
        yield {problem.where: None, found[1]: entry.given.value}
    elif problem.where in SECTION_OF:
        yield {problem.where: found[1]}

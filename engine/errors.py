"""What can go wrong in a way that a person can mend, and text from outside made safe to show.

EngineError            one sentence: what, where, the value, the remedy
+-- ProblemsError      several of them, found together
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]
Values = tuple[tuple[str, object], ...]
"""Settings and what to set them to, None for the default."""

# What reorders or hides text on a terminal: bidi controls, zero-width and blank letters, separators, BOM.
_HIDDEN = frozenset(
    [
        0x00AD,
        0x061C,
        0x115F,
        0x1160,
        0x3164,
        0xFFA0,
        0x180E,
        0xFEFF,
        *range(0x200B, 0x2010),
        *range(0x2028, 0x202F),
        *range(0x2060, 0x2070),
        *range(0xFFF9, 0xFFFC),
    ]
)


class EngineError(Exception):
    """A failure that the user can mend; its message is one sentence for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A finding about settings, data or the machine, with its place and its remedy.

    `reason` is why it matters and how that is known; `setting` the setting it is about, where it is about one;
    `values` the remedy as a change of settings, where it is one that needs no thought; `ways` remedies to choose
    among, the best first.
    """

    code: str
    severity: Severity
    where: str
    message: str
    fix: str = ""
    reason: str = ""
    setting: str = ""
    values: Values = ()
    ways: tuple[tuple[str, Values], ...] = ()
    """What each costs in words, and its change of settings."""

    @property
    def about(self) -> str:
        """The setting it is about, else its place."""
        return self.setting or self.where

    def __str__(self) -> str:
        """Return the finding as one line for a terminal or a log."""
        place = f"{self.where}: " if self.where else ""
        remedy = f" ({self.fix})" if self.fix else ""
        return f"{place}{self.message}{remedy}"

    def as_json(self) -> dict[str, Any]:
        """Return the finding as the JSON object of `check --json`; in `set`, null is the default."""
        return {
            "code": self.code,
            "severity": self.severity,
            "where": self.where,
            "message": self.message,
            "fix": self.fix,
            "reason": self.reason,
            "setting": self.setting,
            "set": dict(self.values),
            "ways": [{"set": dict(values), "cost": words} for words, values in self.ways],
        }


class ProblemsError(EngineError):
    """Several findings at once, at least one of them an error."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems if problem.severity == "error"))


def _is_unsafe(code: int) -> bool:
    return code < 0x20 or 0x7F <= code < 0xA0 or code in _HIDDEN or 0xD800 <= code < 0xE000 or code >= 0xE0000


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def safe_text(text: str, limit: int = 200) -> str:
    r"""Return text from outside with every control, bidi and invisible character shown as an escape such as `\x1b`.

    Text beyond `limit` characters is cut and the cut is shown.
    """
    cut = text[:limit]
    shown = "".join(_escape(ord(char)) if _is_unsafe(ord(char)) else char for char in cut)
    return shown if len(text) <= limit else f"{shown}... ({len(text)} characters)"

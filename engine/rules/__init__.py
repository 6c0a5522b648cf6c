"""What is wrong with a run before anything is loaded: rules by theme, each a small pure function. Torch-free.

docs/checks.md lists them all, with their reasons and sources.
"""

from collections.abc import Mapping

from engine.errors import Problem
from engine.rules import basics, data, hypernetwork, idle, learning, noise, precision
from engine.rules.rule import Rule, applied
from engine.settings import Settings

SETTINGS_RULES: tuple[Rule[Settings], ...] = (
    *basics.RULES, *learning.RULES, *noise.RULES, *precision.RULES, *data.RULES,
    *hypernetwork.RULES, *idle.RULES,
)  # fmt: skip


def find_problems(settings: Settings, places: Mapping[str, str] | None = None) -> tuple[Problem, ...]:
    """Return every problem of the settings alone; `places` maps a setting to where it was given."""
    return applied(SETTINGS_RULES, settings, places)

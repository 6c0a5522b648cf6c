"""Compares runs: settings that differ, samples of the same prompt at the same step; and moves run folders about."""

import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.errors import EngineError, safe_text
from engine.events import Sampled
from engine.run import RunFolder
from sdtui.format import setting

TRASH = ".sdtui-trash"
FORBIDDEN = frozenset('/\\:*?"<>|')
NAME_LIMIT = 100


def read_settings(path: Path) -> dict[str, str]:
    """Return the settings of a run.toml as section.name and text; empty where there is none that can be read."""
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    found: dict[str, str] = {}
    for section, values in data.items():
        if isinstance(values, dict):
            found |= {f"{section}.{name}": _text(value) for name, value in values.items()}
        else:
            found[section] = _text(values)
    return found


def _text(value: object) -> str:
    shown = setting(value) if not isinstance(value, list) else ",".join(str(part) for part in value)
    return safe_text(shown)


def differences(settings: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """Return name and values of each setting that differs; a value that is left out is shown as a dash.

    Of a single run all settings are returned.
    """
    names = dict.fromkeys(name for one in settings for name in one)
    rows = [(name, [one.get(name, "-") for one in settings]) for name in names]
    return [(name, values) for name, values in rows if len(settings) == 1 or len(set(values)) > 1]


Samples = Mapping[int, Mapping[int, Sampled]]


def common_steps(samples: Sequence[Samples], prompt: int) -> list[int]:
    """Return the steps at which every run that has samples of a prompt has one, else those of any run."""
    sets = [{step for step, drawn in one.items() if prompt in drawn} for one in samples]
    sets = [steps for steps in sets if steps]
    if not sets:
        return []
    return sorted(set.intersection(*sets) or set.union(*sets))


def prompts_of(samples: Sequence[Samples]) -> list[int]:
    """Return the numbers of all prompts that any run has drawn."""
    return sorted({index for one in samples for drawn in one.values() for index in drawn})


def move_to_trash(path: Path) -> Path:
    """Move a run folder into the trash beside it and return where it lies.

    Raises:
        EngineError: Its engine runs, or it can't be moved.
    """
    _check_at_rest(path)
    trash = path.parent / TRASH
    try:
        trash.mkdir(exist_ok=True)
        return path.rename(trash / f"{time.time_ns()}-{path.name}")
    except OSError as error:
        raise EngineError(f"{safe_text(str(path))} can't be moved to the trash ({error.strerror})") from error


def rename(path: Path, name: str) -> Path:
    """Give a run folder another name and return its new path.

    Raises:
        EngineError: Its engine runs, the name is not one, or it is taken.
    """
    _check_at_rest(path)
    return move_back(path, new_path(path, name))


def new_path(path: Path, name: str) -> Path:
    """Return a run folder's path under another name, which may be its own.

    Raises:
        EngineError: The name is not one, or it is taken.
    """
    is_name = name.isprintable() and not FORBIDDEN & set(name) and name.strip(". ") == name and name
    if not is_name or len(name) > NAME_LIMIT:
        raise EngineError(f"{safe_text(name)!r} can't be a folder's name: use letters, digits, - and _")
    target = path.with_name(name)
    if target != path and target.exists():
        raise EngineError(f"{safe_text(name)} is there already: choose another name")
    return target


def move_back(path: Path, target: Path) -> Path:
    """Move a folder where it was before.

    Raises:
        EngineError: Something else is there, or it can't be moved.
    """
    try:
        if target.exists():
            raise FileExistsError(17, "something of that name is there")
        return path.rename(target)
    except OSError as error:
        raise EngineError(
            f"{safe_text(str(path))} can't be moved to {safe_text(target.name)} ({error.strerror})"
        ) from error


def _check_at_rest(path: Path) -> None:
    if RunFolder(path).is_alive():
        raise EngineError(f"{safe_text(path.name)} is being trained: stop it first")

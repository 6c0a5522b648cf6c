"""The classic command line: one flag for each setting, named as sd-scripts names it. Torch-free."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from engine.errors import Problem, ProblemsError, safe_text
from engine.settings import SECTIONS, Section
from engine.settings_io import (
    NOT_YET,
    SHORTHANDS,
    WITHOUT_EFFECT,
    Given,
    LoadedSettings,
    build,
    givens_from_toml,
)
from engine.toml import nearest

LISTS = ("optimizer_args", "lr_scheduler_args")


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting, grouped by section, with the setting's own help."""
    parser.add_argument("--config_file", metavar="TOML", help="Settings file; flags win over it.")
    for name, section in SECTIONS.items():
        group = parser.add_argument_group(name, (section.__doc__ or "").strip())
        for key in section.model_fields:
            _add_flag(group, key, section)
    # Known to the parser so that `settings_io` can answer each by name; hidden, since they do nothing.
    for key in (*SHORTHANDS, *WITHOUT_EFFECT, *NOT_YET):
        parser.add_argument(f"--{key}", nargs="*", help=argparse.SUPPRESS)


def _add_flag(group: "argparse._ArgumentGroup", key: str, section: type[Section]) -> None:
    field = section.model_fields[key]
    text = (field.description or "").replace("%", "%%")
    if bool in (field.annotation, *get_args(field.annotation)):
        group.add_argument(f"--{key}", nargs="?", const="true", metavar="true|false", help=text)
    elif key in LISTS:
        group.add_argument(f"--{key}", nargs="*", metavar="NAME=VALUE", help=text)
    else:
        default = "" if field.default in (None, "", ()) else f" [{field.default}]".replace("%", "%%")
        group.add_argument(f"--{key}", metavar="VALUE", help=text + default)


def settings_from_flags(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> LoadedSettings:
    """Return the settings of a classic command line, `--config_file` first and flags on top.

    Raises:
        ProblemsError: Unknown flags and bad values, all at once.
        EngineError: The config file can't be read.
    """
    parsed, unknown = parser.parse_known_args(list(arguments))
    given = {name: value for name, value in vars(parsed).items() if value is not None}
    config_file = given.pop("config_file", None)
    givens = givens_from_toml(Path(config_file)) if config_file else []
    known = {key for section in SECTIONS.values() for key in section.model_fields} | {
        *SHORTHANDS,
        *WITHOUT_EFFECT,
        *NOT_YET,
    }
    givens += [_given(name, value) for name, value in given.items() if name in known]
    refused = [_unknown_flag(flag, known) for flag in unknown if flag.startswith("--")]
    refused += [_stray(word) for word in unknown[:1] if not word.startswith("--")]
    if not refused:
        return build(givens)
    try:
        build(givens)
    except ProblemsError as error:
        raise ProblemsError([*refused, *error.problems]) from error
    raise ProblemsError(refused)


def _given(name: str, value: str | list[str]) -> Given:
    if isinstance(value, list) and name not in LISTS:
        value = value[0] if value else "true"
    return Given(name=name, value=value, place=f"--{name}", folder=Path.cwd(), is_text=True)


def _unknown_flag(flag: str, known: set[str]) -> Problem:
    name = flag.removeprefix("--").partition("=")[0]
    message = f"--{safe_text(name)} is not a flag{nearest(name, known)}"
    return Problem(code="unknown-key", severity="error", where="", message=message)


def _stray(word: str) -> Problem:
    message = f"{safe_text(word)} belongs to no flag; write flags as --name=value"
    return Problem(code="unknown-key", severity="error", where="", message=message)

"""The classic command line: one flag for each setting, named as sd-scripts names it. Torch-free."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from engine.errors import EngineError, Problem, ProblemsError, safe_text
from engine.settings import SECTIONS, Section, Settings
from engine.settings_io import (
    REFUSED,
    SHORTHANDS,
    WITHOUT_EFFECT,
    Given,
    LoadedSettings,
    build,
    givens_from_toml,
    run_toml,
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
    parser.add_argument("--output_config", nargs="?", const="true", help="Write the flags into --config_file and end.")
    for key in (*SHORTHANDS, *WITHOUT_EFFECT, *REFUSED):
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


def config_to_write(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Path | None:
    """Return the file that `--output_config` asks to write the flags into, None if it doesn't.

    Raises:
        EngineError: No `--config_file` names it, or it is there already.
    """
    parsed, _ = parser.parse_known_args(list(arguments))
    if parsed.output_config in (None, "false"):
        return None
    if not parsed.config_file:
        raise EngineError("--output_config writes into --config_file, and none is given: add --config_file run.toml")
    target = Path(parsed.config_file)
    target = target if target.suffix == ".toml" else target.with_name(f"{target.name}.toml")
    if target.exists():
        raise EngineError(f"--output_config: {safe_text(str(target))} is there already; name another --config_file")
    return target


def write_config(settings: Settings, target: Path) -> None:
    """Write every setting that differs from its default into a new file.

    Raises:
        EngineError: It can't be written.
    """
    try:
        target.write_text(run_toml(settings, folder=target.resolve().parent), encoding="utf-8")
    except OSError as error:
        raise EngineError(f"{safe_text(str(target))} can't be written: {error.strerror or error}") from error


def settings_from_flags(
    parser: argparse.ArgumentParser, arguments: Sequence[str], *, reads_config: bool = True
) -> LoadedSettings:
    """Return the settings of a classic command line, `--config_file` first and flags on top.

    Raises:
        ProblemsError: Unknown flags and bad values, all at once.
        EngineError: The config file can't be read.
    """
    parsed, unknown = parser.parse_known_args(list(arguments))
    given = {name: value for name, value in vars(parsed).items() if value is not None}
    config_file = given.pop("config_file", None)
    given.pop("output_config", None)
    givens = givens_from_toml(Path(config_file)) if config_file and reads_config else []
    known = {key for section in SECTIONS.values() for key in section.model_fields} | {
        *SHORTHANDS,
        *WITHOUT_EFFECT,
        *REFUSED,
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

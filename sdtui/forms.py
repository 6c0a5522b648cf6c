"""Settings as rows of a form, derived from the settings model: what kind of value, choices, unit, bounds, default."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from engine.settings import SECTIONS
from engine.settings_io import path_kind
from sdtui import format as fmt

Kind = Literal["switch", "choice", "text", "path"]
LEFT_OUT = ""
MODEL_USE = (
    "v_parameterization", "v2", "vae", "clip_skip", "train_text_encoder", "train_hypernetwork", "max_token_length",
    "weighted_captions",
)  # fmt: skip
"""The settings of the Model page: how the model is used, and what of it is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One setting as a form shows it."""

    name: str
    section: str
    help: str
    unit: str
    kind: Kind
    default: object
    choices: tuple[str, ...] = ()
    """What may be chosen, as TOML text; an empty one leaves the setting out."""
    bounds: str = ""

    @property
    def default_text(self) -> str:
        """The default as shown; a setting that may be left out has none."""
        return fmt.setting(self.default) or "left out"

    def next_choice(self, value: object, offset: int = 1) -> str:
        """Return the choice after the present value, going round."""
        present = fmt.setting(value)
        shown = [shown_choice(choice) for choice in self.choices]
        index = shown.index(present) if present in shown else -1
        return self.choices[(index + offset) % len(self.choices)]


def shown_choice(choice: str) -> str:
    """Return a choice as values are shown: on and off for true and false."""
    return {"true": "on", "false": "off"}.get(choice, choice)


def _row(section: str, name: str, field: FieldInfo) -> Row:
    extra = field.json_schema_extra
    choices = _choices(field.annotation)
    is_switch = set(choices) == {"true", "false"}
    # A list of files is typed like any other list.
    is_path = path_kind(name) is not None and not isinstance(field.default, tuple)
    kind: Kind = "switch" if is_switch else "choice" if choices else "path" if is_path else "text"
    return Row(
        name=name,
        section=section,
        help=field.description or "",
        unit=str(extra.get("unit", "")) if isinstance(extra, dict) else "",
        kind=kind,
        default=field.default,
        choices=choices,
        bounds=_bounds(field),
    )


def _choices(annotation: Any) -> tuple[str, ...]:  # noqa: ANN401 - a type as pydantic keeps it
    """Return the values that a type allows as TOML text, none where it allows too many to list."""
    if annotation is bool:
        return ("false", "true")
    if get_origin(annotation) is Literal:
        return tuple(str(value) for value in get_args(annotation))
    members = get_args(annotation)
    if NoneType not in members:
        # Names to choose from, beside which others may be written: those are given in run.toml.
        return _choices(members[0]) if members and get_origin(members[0]) is Literal else ()
    inner = [_choices(member) for member in members if member is not NoneType]
    return (LEFT_OUT, *inner[0]) if len(inner) == 1 and inner[0] else ()


def _bounds(field: FieldInfo) -> str:
    signs = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    parts = [
        f"{word} {fmt.number(getattr(bound, sign))}"
        for bound in field.metadata
        for sign, word in signs.items()
        if isinstance(getattr(bound, sign, None), int | float)
    ]
    return " ".join(parts)


SHORT = {"lr": "learning_rate", "bs": "batch_size", "te": "text_encoder"}
"""What people call settings."""

ROWS: dict[str, Row] = {
    name: _row(section, name, field) for section, cls in SECTIONS.items() for name, field in cls.model_fields.items()
}


def rows_of(section: str) -> tuple[Row, ...]:
    """Return the rows of a TOML section."""
    return tuple(row for row in ROWS.values() if row.section == section)


def search(words: str) -> tuple[Row, ...]:
    """Return the rows that hold every word, those that hold them in their name first."""
    wanted = words.lower().split()
    return tuple(row for _rank, row in sorted(_ranked(wanted), key=lambda pair: pair[0]))


def _ranked(wanted: list[str]) -> Iterator[tuple[int, Row]]:
    for row in ROWS.values():
        name, rest = row.name.lower(), f"{row.section} {row.help}".lower()
        if all(word in name or SHORT.get(word, word) in name for word in wanted):
            yield 0, row
        elif all(word in f"{name} {rest}" for word in wanted):
            yield 1, row

"""The options of the captioners that the captioning screen offers, as data: name, help, bounds. No Textual."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from engine.errors import EngineError, safe_text
from engine.setting_types import CaptionerName

if TYPE_CHECKING:
    from engine.captioning.texts import Mode

Value = float | int | bool | str
Kind = Literal["share", "whole", "switch", "file"]
METADATA = (".json", ".jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option; names and defaults are those of `data caption` and `data tag`."""

    name: str
    help: str
    kind: Kind
    default: Value
    captioners: tuple[CaptionerName, ...]
    least: int = 0
    most: int = 1

    def read(self, text: str) -> Value:
        """Return the value that a text means.

        Raises:
            EngineError: It means none that is allowed.
        """
        if self.kind == "file":
            return _metadata_file(text)
        try:
            value = int(text) if self.kind == "whole" else float(text)
        except ValueError as error:
            wanted = "a whole number" if self.kind == "whole" else "a number"
            raise EngineError(f"{self.name} = {safe_text(text)}: expected {wanted}") from error
        if not self.least <= value <= self.most:
            raise EngineError(f"{self.name} = {safe_text(text)}: expected {self.least} to {self.most}")
        return value


def _metadata_file(text: str) -> str:
    from engine.paths import written_path

    path = written_path(text)
    if path.suffix.lower() not in METADATA:
        raise EngineError(f"output_path = {safe_text(text)}: expected a .json or .jsonl")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise EngineError(f"output_path = {safe_text(text)}: its folder does not exist, or it is one; choose another")
    return str(path)


OPTIONS = (
    Option(name="general_threshold", help="Least score of a general tag.", kind="share", default=0.35,
           captioners=("wd14",)),
    Option(name="character_threshold", help="Least score of a character.", kind="share", default=0.35,
           captioners=("wd14",)),
    Option(name="general_threshold", help="Least score of a tag.", kind="share", default=0.5,
           captioners=("deepdanbooru",)),
    Option(name="beam_search", help="Search with beams instead of drawing words.", kind="switch", default=False,
           captioners=("blip",)),
    Option(name="num_beams", help="Beams of beam_search.", kind="whole", default=1, least=1, most=32,
           captioners=("blip",)),
    Option(name="top_p", help="Share of the likeliest words that are drawn from.", kind="share", default=0.9,
           captioners=("blip",)),
    Option(name="min_length", help="Least tokens of a caption.", kind="whole", default=5, most=500,
           captioners=("blip",)),
    Option(name="max_length", help="Most tokens of a caption.", kind="whole", default=75, least=1, most=500,
           captioners=("blip",)),
    Option(name="output_path", help="A metadata .json or .jsonl to write into; empty: files beside the pictures.",
           kind="file", default="", captioners=("blip", "wd14", "deepdanbooru")),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the user has chosen; `model` is a folder or hub id, "" for the captioner's usual one."""

    captioner: CaptionerName = "wd14"
    model: str = ""
    mode: "Mode" = "replace"
    changed: Mapping[str, Value] = field(default_factory=dict)
    """Options that are not at their default."""

    @property
    def extension(self) -> str:
        """The kind of file that the captioner writes."""
        return ".caption" if self.captioner == "blip" else ".txt"

    @property
    def options(self) -> tuple[Option, ...]:
        """The options that the captioner has."""
        return tuple(option for option in OPTIONS if self.captioner in option.captioners)

    @property
    def output_path(self) -> str:
        """The metadata file that is written into, "" for files beside the pictures."""
        return str(self.changed.get("output_path", ""))

    def value(self, option: Option) -> Value:
        """Return what holds for an option."""
        return self.changed.get(option.name, option.default)

    def values(self) -> dict[str, Value]:
        """Return what holds for all of the captioner's own options."""
        return {option.name: self.value(option) for option in self.options if option.kind != "file"}

    def with_option(self, option: Option, value: Value | None) -> "Choices":
        """Return the choices with a changed option; None is its default.

        Raises:
            EngineError: It does not go with another option.
        """
        changed = {name: told for name, told in self.changed.items() if name != option.name}
        if value is not None and value != option.default:
            changed[option.name] = value
        chosen = replace(self, changed=changed)
        values = chosen.values()
        if "min_length" in values and values["min_length"] > values["max_length"]:  # type: ignore[operator]
            raise EngineError(f"min_length = {values['min_length']}: more than max_length = {values['max_length']}")
        return chosen

    def with_captioner(self, captioner: CaptionerName) -> "Choices":
        """Return another captioner's choices: its usual model and options; where the texts go stays."""
        kept = {"output_path": self.output_path} if self.output_path else {}
        return replace(self, captioner=captioner, model="", changed=kept)

    def told(self) -> str:
        """Return the changed options as a short text."""
        return "  ".join(f"{name} {told}" for name, told in self.changed.items() if name != "output_path")

"""Sample prompts, read from sd-scripts' three formats: .txt lines with options, .toml and .json. Torch-free."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from engine.errors import EngineError, Problem, ProblemsError, safe_text
from engine.setting_types import SamplerName
from engine.toml import nearest, parse_toml

MAX_BYTES = 1_000_000
_MAX_SIDE = 8192

# Options of a .txt line, such as --w 512, by the key that .toml and .json use.
_OPTIONS = {
    "w": "width",
    "h": "height",
    "d": "seed",
    "s": "sample_steps",
    "l": "scale",
    "n": "negative_prompt",
    "ss": "sample_sampler",
}
_UNSUPPORTED = {"cn": "ControlNet pictures", "controlnet_image": "ControlNet pictures"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePrompt:
    """A picture to draw during training."""

    prompt: str
    negative_prompt: str = ""
    width: int = 512
    """Pixels, a multiple of 8."""
    height: int = 512
    seed: int | None = None
    sample_steps: int = 30
    scale: float = 7.5
    """Strength of classifier-free guidance; up to 1 there is none."""
    sample_sampler: SamplerName | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """What a file says of one prompt, and where it says so."""

    values: Mapping[str, object]
    place: Callable[[str], str]
    """The place of a key, `file:line`."""


def read_prompts(path: Path) -> tuple[SamplePrompt, ...]:
    """Read a file of sample prompts.

    Raises:
        EngineError: It is missing, of another format, or empty.
        ProblemsError: Something in it is wrong; all of it, with file and line.
    """
    shown = safe_text(str(path))
    entries_of = FORMATS.get(path.suffix.lower())
    if entries_of is None:
        raise EngineError(f"{shown}: sample prompts are read from {', '.join(FORMATS)}, not {safe_text(path.suffix)!r}")
    problems: list[Problem] = []
    prompts = [_prompt(entry, problems) for entry in entries_of(_read_text(path, shown), path, problems)]
    if problems:
        raise ProblemsError(problems)
    if not prompts:
        raise EngineError(f"{shown}: holds no prompt; write one in a line of its own")
    return tuple(prompts)


def read_prompt(line: str) -> SamplePrompt:
    """Read a prompt as a .txt file holds it: the text, then options such as `--w 512 --h 768`.

    Raises:
        EngineError: Something in it is wrong; the first thing, in one sentence.
    """
    problems: list[Problem] = []
    prompt = _prompt(_entry_of_line(line, "", problems), problems)
    if problems:
        raise EngineError(str(problems[0]))
    return prompt


def prompt_line(prompt: SamplePrompt) -> str:
    """Return a prompt as `read_prompt` reads it, with the options that differ from what holds without them."""
    usual = SamplePrompt(prompt="")
    options = [
        f"--{option} {value}"
        for option, key in _OPTIONS.items()
        if (value := getattr(prompt, key)) not in (None, getattr(usual, key))
    ]
    return " ".join([*prompt.prompt.split(), *(word for option in options for word in option.split())])


def _read_text(path: Path, shown: str) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise EngineError(f"{shown}: sample prompts can't be read: {error.strerror or error}") from error
    if len(raw) > MAX_BYTES:
        raise EngineError(f"{shown}: larger than {MAX_BYTES // 1000} kB, so it is no file of sample prompts")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise EngineError(f"{shown}:{line}: not UTF-8; save the file in UTF-8 encoding") from error


def _entries_of_text(text: str, path: Path, problems: list[Problem]) -> Iterator[_Entry]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield _entry_of_line(line, f"{safe_text(str(path))}:{number}", problems)


def _entry_of_line(line: str, where: str, problems: list[Problem]) -> _Entry:
    prompt, *options = re.split(r"(?:^|\s)--", line.strip())
    values: dict[str, object] = {"prompt": prompt.strip()}
    for option in options:
        name, _, value = option.strip().partition(" ")
        key = _OPTIONS.get(name.lower())
        if key:
            values[key] = _number(value.strip()) if key in _NUMBERS else value.strip()
        elif name.lower() in _UNSUPPORTED:
            problems.append(
                _problem(where, f"--{name.lower()}: {_UNSUPPORTED[name.lower()]} are not supported", "remove it")
            )
        else:
            known = " ".join(f"--{option}" for option in _OPTIONS)
            problems.append(_problem(where, f"--{safe_text(name)} is not an option of a prompt", f"known are {known}"))
    return _Entry(values=values, place=lambda _: where)


def _number(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _entries_of_toml(text: str, path: Path, problems: list[Problem]) -> Iterator[_Entry]:
    file = parse_toml(text.replace("\r\n", "\n"), path)
    table = file.data.get("prompt")
    subsets = table.get("subset") if isinstance(table, dict) else None
    if not isinstance(table, dict) or not isinstance(subsets, list) or not all(isinstance(s, dict) for s in subsets):
        text = "sample prompts are a [prompt] table with a [[prompt.subset]] for each"
        problems.append(_problem(file.place("prompt"), text))
        return
    shared = {key: value for key, value in table.items() if key != "subset"}
    for index, subset in enumerate(subsets):

        def place(key: str, index: int = index, own: Mapping[str, Any] = subset) -> str:
            return file.place("prompt", "subset", index, key) if key in own else file.place("prompt", key)

        yield _Entry(values={**shared, **subset}, place=place)


def _entries_of_json(text: str, path: Path, problems: list[Problem]) -> Iterator[_Entry]:
    shown = safe_text(str(path))
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        place = f"{shown}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else shown
        raise EngineError(f"{place}: not valid JSON: {safe_text(str(error))}") from error
    if not isinstance(items, list):
        problems.append(_problem(shown, "sample prompts are a list, [ ... ]"))
        return
    for item, line in zip(items, _lines_of_items(text), strict=True):
        where = f"{shown}:{line}"
        if isinstance(item, str):
            yield _entry_of_line(item, where, problems)
        elif isinstance(item, dict):
            yield _Entry(values=item, place=lambda _, where=where: where)  # type: ignore[misc]
        else:
            problems.append(_problem(where, "a sample prompt is an object or a text"))


def _lines_of_items(text: str) -> Iterator[int]:
    """Yield the line of each item of a valid JSON list, which the parser does not tell."""
    decoder, position = json.JSONDecoder(), text.index("[") + 1
    while (found := re.compile(r"[\s,]*([^\s,\]])").match(text, position)) is not None:
        start = found.start(1)
        yield text.count("\n", 0, start) + 1
        position = decoder.raw_decode(text, start)[1]


FORMATS: dict[str, Callable[[str, Path, list[Problem]], Iterator[_Entry]]] = {
    ".txt": _entries_of_text,
    ".toml": _entries_of_toml,
    ".json": _entries_of_json,
}


def _prompt(entry: _Entry, problems: list[Problem]) -> SamplePrompt:
    checked: dict[str, Any] = {}
    for key, value in entry.values.items():
        if value is None:
            continue
        where = entry.place(key)
        if key in _UNSUPPORTED:
            problems.append(_problem(where, f"{key}: {_UNSUPPORTED[key]} are not supported", "remove it"))
        elif key not in _CHECKS:
            problems.append(_problem(where, f"{safe_text(key)} is not a key of a prompt{nearest(key, _CHECKS)}"))
        else:
            try:
                checked[key] = _CHECKS[key](value)
            except ValueError as error:
                problems.append(_problem(where, f"{key} = {safe_text(repr(value))}: should be {error}"))
    return SamplePrompt(**{"prompt": "", **checked})


def _problem(where: str, message: str, fix: str = "") -> Problem:
    return Problem(code="sample-prompts", severity="error", where=where, message=message, fix=fix)


def _whole(value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"a whole number from {low} to {high}")
    return value


def _side(value: object) -> int:
    """Floor to a multiple of 8, what a latent stands for, and at least 64, as sd-scripts does."""
    return max(64, _whole(value, 1, _MAX_SIDE) // 8 * 8)


def _scale(value: object) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (math.isfinite(value) and 0 <= value <= 100)
    ):
        raise ValueError("a number from 0 to 100")
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")  # noqa: TRY004 - one kind of error for all checks
    if any("\ud800" <= char <= "\udfff" or char == "\0" for char in value):
        raise ValueError("a text without halves of characters or NUL")
    return value


def _sampler(value: object) -> str:
    names = get_args(SamplerName)
    name = value.lower() if isinstance(value, str) else ""
    if name not in names:
        raise ValueError(f"one of {', '.join(names)}{nearest(name, names)}")
    return name


_CHECKS: dict[str, Callable[[object], object]] = {
    "prompt": _text,
    "negative_prompt": _text,
    "width": _side,
    "height": _side,
    "seed": lambda value: _whole(value, 0, 2**63 - 1),
    "sample_steps": lambda value: _whole(value, 1, 1000),
    "scale": _scale,
    "sample_sampler": _sampler,
}
_NUMBERS = {"width", "height", "seed", "sample_steps", "scale"}

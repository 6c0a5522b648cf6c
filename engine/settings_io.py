"""Settings from run.toml, --set and flags, with every problem found at once; and back to run.toml. Torch-free."""

import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from engine.errors import EngineError, Problem, ProblemsError, safe_text
from engine.paths import written_path
from engine.setting_types import PathKind, split_strength
from engine.settings import SECTION_OF, SECTIONS, Settings
from engine.toml import edit_toml, nearest, read_toml

# Established flags that change nothing here, and why: said to the user, not swallowed.
WITHOUT_EFFECT: Mapping[str, str] = {
    "tokenizer_cache_dir": "the tokenizer ships with the program",
    "persistent_data_loader_workers": "loading threads live as long as the run",
    "lowram": "a model is loaded without a second copy anyway",
    "highvram": "memory is never freed between batches anyway",
    "skip_cache_check": "checking a cache costs one look per bucket",
    "console_log_simple": "plain lines are printed where there is no terminal",
}

# Established flags that will not come: refused by name, with what to do instead.
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ["deepspeed", "zero_stage", "offload_optimizer_device", "offload_optimizer_nvme_path", "offload_param_device"],
        "it is given to the launcher: accelerate launch --use_deepspeed, see docs/several-gpus.md",
    ),
    **dict.fromkeys(
        ["offload_param_nvme_path", "zero3_init_flag", "zero3_save_16bit_model", "fp16_master_weights_and_gradients"],
        "it is given to the launcher: accelerate launch --use_deepspeed, see docs/several-gpus.md",
    ),
    "fp8_base": "8 bits have too few digits to be trained; full_bf16 and optimizer_type=AdamW8bit save memory",
    "fused_optimizer_groups": "it belongs to the trainer of SDXL; fused_backward_pass does more",
    "dataset_class": "it would run the code of a data set's author; folders and metadata files are read",
    "debug_dataset": "`sdtui plan RUN.toml` says what becomes of every picture",
    **dict.fromkeys(["network_module", "network_dim", "network_alpha"], "LoRA is not trained by this program"),
}

# Older spellings: flag -> (setting, value when the flag is true).
SHORTHANDS: Mapping[str, tuple[str, str]] = {
    "use_8bit_adam": ("optimizer_type", "AdamW8bit"),
    "use_lion_optimizer": ("optimizer_type", "Lion"),
    "use_safetensors": ("save_model_as", "safetensors"),
    "diffusers_xformers": ("xformers", "true"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """One value a user gave, where they gave it, and the folder its relative paths count from."""

    name: str
    value: Any
    place: str
    folder: Path
    is_text: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSettings:
    """Checked settings, what to warn about, where each given value stands, and the file they were read from."""

    settings: Settings
    warnings: tuple[Problem, ...]
    places: Mapping[str, str]
    path: Path | None = None


def load_run(path: Path, overrides: Sequence[str] = ()) -> LoadedSettings:
    """Read a run.toml (or an sd-scripts --config_file) with `key=value` overrides on top; `key=` is the default.

    Raises:
        ProblemsError: Every unknown key, wrong type and bad value, each with its line.
        EngineError: The file can't be read at all.
    """
    given = givens_from_overrides(overrides)
    emptied = {name for name, value in {override.name: override.value for override in given}.items() if value == ""}
    givens = [given for given in [*givens_from_toml(path), *given] if given.name not in emptied]
    return replace(build(givens), path=path)


def givens_from_toml(path: Path) -> list[Given]:
    """Return the values of a TOML file; sections are flattened one level, as sd-scripts does."""
    file = read_toml(path)
    folder = path.resolve().parent
    givens = []
    for name, value in file.data.items():
        if isinstance(value, dict) and name not in SECTION_OF:
            givens += [
                Given(name=key, value=inner, place=file.place(name, key), folder=folder) for key, inner in value.items()
            ]
        else:
            givens.append(Given(name=name, value=value, place=file.place(name), folder=folder))
    return givens


def givens_from_overrides(overrides: Iterable[str]) -> list[Given]:
    """Return the values of `--set key=value`; a section may stand before the key.

    Raises:
        EngineError: One has no equals sign.
    """
    givens = []
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise EngineError(f"--set {safe_text(override)}: expected key=value, such as learning_rate=5e-6")
        section, dot, key = name.strip().rpartition(".")
        name = key if dot and section in SECTIONS else name.strip()
        givens.append(Given(name=name, value=_toml_value(text), place="--set", folder=Path.cwd(), is_text=True))
    return givens


def _toml_value(text: str) -> Any:
    """Read lists and numbers as TOML would, anything else as the text it is."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, ValueError, RecursionError):
        return text


def build(givens: Sequence[Given]) -> LoadedSettings:
    """Check all given values together; a later one replaces an earlier one of the same name from another place.

    Raises:
        ProblemsError: All errors found.
    """
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for given in givens:
        expanded, found = _expand(given)
        problems += found
        if expanded is None:
            continue
        value, found = _check(expanded)
        problems += found
        if not found:
            values[expanded.name] = value
            places[expanded.name] = expanded.place
    if any(problem.severity == "error" for problem in problems):
        raise ProblemsError(problems)
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        sections.setdefault(SECTION_OF[name], {})[name] = value
    settings = Settings.model_validate(
        {section: SECTIONS[section].model_construct(**part) for section, part in sections.items()}, strict=False
    )
    return LoadedSettings(settings=settings, warnings=tuple(problems), places=places)


def _expand(given: Given) -> tuple[Given | None, list[Problem]]:
    """Translate shorthands; refuse unknown names; note names without effect."""
    name, where = given.name, given.place
    if name in SECTION_OF:
        return given, []
    is_off = given.value in (False, None, "", "false")
    if name in SHORTHANDS:
        target, value = SHORTHANDS[name]
        expanded = Given(name=target, value=value, place=where, folder=given.folder)
        return (None if is_off else expanded), []
    if name in WITHOUT_EFFECT:
        note = f"{name} has no effect: {WITHOUT_EFFECT[name]}"
        return None, [Problem(code="no-effect", severity="info", where=where, message=note, fix=f"remove {name}")]
    if name in REFUSED:
        return None, [] if is_off else [_refusal(name, where)]
    shown = safe_text(name)
    hint = nearest(name, [*SECTION_OF, *SHORTHANDS])
    message = f"{shown} is not a setting{hint}"
    return None, [Problem(code="unknown-key", severity="error", where=where, message=message)]


def _refusal(name: str, where: str) -> Problem:
    message = f"{name} is refused: {REFUSED[name]}"
    return Problem(code="refused", severity="error", where=where, message=message, fix=f"remove {name}")


def _check(given: Given) -> tuple[Any, list[Problem]]:
    try:
        value = _adapter(given.name).validate_python(given.value, strict=None if given.is_text else True)
    except ValidationError as error:
        return None, [_as_problem(given, error)]
    try:
        return _resolve_path(given, value), []
    except EngineError as error:
        problem = Problem(code="bad-value", severity="error", where=given.place, message=f"{given.name} = {error}")
        return None, [problem]


def _as_problem(given: Given, error: ValidationError) -> Problem:
    """Say what was expected, in the words of the first error: others repeat it for each member of a union."""
    first = error.errors(include_url=False)[0]
    expected = first["msg"].removeprefix("Value error, ").partition(", unable to parse")[0]
    expected = expected[:1].lower() + expected[1:]
    hint = ""
    if first["type"] == "literal_error" and isinstance(given.value, str):
        hint = nearest(given.value, first["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", "))
    message = f"{given.name} = {safe_text(repr(given.value))}: {expected}{hint}"
    return Problem(code="bad-value", severity="error", where=given.place, message=message)


def _field(name: str) -> FieldInfo:
    return SECTIONS[SECTION_OF[name]].model_fields[name]


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    field = _field(name)
    annotation: Any = Annotated[field.annotation, field]
    return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))


def path_kind(name: str) -> PathKind | None:
    """Return what kind of path a setting holds, or None where it holds none."""
    extra = _field(name).json_schema_extra
    return extra.get("path") if isinstance(extra, dict) else None  # type: ignore[return-value]


def is_secret(name: str) -> bool:
    """Tell whether a setting is a password or key, which is written to no file."""
    extra = _field(name).json_schema_extra
    return isinstance(extra, dict) and extra.get("secret") is True


def _resolve_path(given: Given, value: Any) -> Any:
    kind = path_kind(given.name)
    if kind is not None and isinstance(value, tuple):
        return tuple(_rewritten(text, lambda path: _resolve_path(given, path)) for text in value)
    if kind is None or not isinstance(value, str) or not value:
        return value
    path = written_path(value)
    candidate = path if path.is_absolute() else given.folder / path
    # A model or state may be named by a hub id such as org/name, which is no path.
    if kind in ("model", "state") and not path.is_absolute() and not value.startswith(".") and not candidate.exists():
        return value
    if kind in ("model", "state") and candidate.name != "..":
        # A file in the hub's cache is a link to one without a suffix: its own name stays.
        return str(candidate.parent.resolve() / candidate.name)
    return str(candidate.resolve())


def _rewritten(text: str, action: Callable[[str], str]) -> str:
    """Change the file in "file:strength"."""
    path, _ = split_strength(text)
    return action(path) + text[len(path) :]


def run_toml(settings: Settings, *, folder: Path, existing: str = "", is_complete: bool = False) -> str:
    """Return run.toml for settings, paths relative to `folder`.

    It holds every setting that differs from its default or, if `is_complete`, has a value; no password or key.
    With the text of an existing file, its comments, order and spelling are kept.
    """
    sections: dict[str, dict[str, Any]] = {}
    present = tomllib.loads(existing)
    for section, cls in SECTIONS.items():
        current = getattr(settings, section)
        written = current.model_dump(mode="python")
        kept = present.get(section, {})
        sections[section] = {
            name: _written(name, written[name], folder)
            if not is_secret(name) and (is_complete or name in kept or getattr(current, name) != field.default)
            else None
            for name, field in cls.model_fields.items()
        }
    return edit_toml(existing, sections)


def relative_values(settings: Settings, *, folder: Path) -> dict[str, Any]:
    """Return all settings by name as plain JSON values, paths relative to `folder` where they can be."""
    values = {name: _written(name, value, folder) for name, value in settings.flat().items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _written(name: str, value: Any, folder: Path) -> Any:
    kind = path_kind(name)
    if kind is not None and isinstance(value, tuple):
        return tuple(_rewritten(text, lambda path: _written(name, path, folder)) for text in value)
    if kind is None or not isinstance(value, str) or not Path(value).is_absolute():
        return value
    try:
        relative = Path(os.path.relpath(value, folder))
    except ValueError:  # Another drive.
        return value
    text = relative.as_posix()
    return f"./{text}" if kind in ("model", "state") and not text.startswith(".") else text

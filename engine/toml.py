"""TOML in and out: files read with the line of every key, written with the user's comments kept. Torch-free."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import EngineError, safe_text

MAX_BYTES = 1_000_000  # A run or data-set file is a few KB; a parser fed 20 MB is busy for many seconds.
Key = str | int

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_ASSIGNMENT = re.compile(
    r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_KEY_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")
_TRIPLE_QUOTE = re.compile(r'"""|\'\'\'')


@dataclass(frozen=True, slots=True, kw_only=True)
class TomlFile:
    """A parsed TOML file that knows on which line each of its keys stands."""

    path: Path
    data: dict[str, Any]
    lines: Mapping[tuple[Key, ...], int]

    def line_of(self, *keys: Key) -> int | None:
        """Return the 1-based line of a key such as ("datasets", 0, "resolution"), else of its nearest known parent."""
        for length in range(len(keys), 0, -1):
            line = self.lines.get(keys[:length])
            if line is not None:
                return line
        return None

    def place(self, *keys: Key) -> str:
        """Return `file:line` for messages, or the file's name alone where the line is not known."""
        line = self.line_of(*keys)
        name = safe_text(str(self.path))
        return f"{name}:{line}" if line else name


def read_toml(path: Path) -> TomlFile:
    """Read a TOML file.

    Raises:
        EngineError: It is missing, too large, not UTF-8 or not TOML; the message names the line.
    """
    return parse_toml(_read_text(path), path)


def parse_toml(text: str, path: Path) -> TomlFile:
    """Parse TOML text; `path` is what messages call it.

    Raises:
        EngineError: The text is not TOML.
    """
    shown = safe_text(str(path))
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        hint = ""
        if re.search(r"escape|\\|hex", str(error), re.IGNORECASE):
            hint = " (in double quotes a backslash starts an escape: write C:/pictures or use single quotes)"
        raise EngineError(f"{shown}: not valid TOML: {safe_text(str(error))}{hint}") from error
    except RecursionError as error:
        raise EngineError(f"{shown}: values are nested too deeply; flatten them") from error
    except ValueError as error:  # Python refuses integers of more than 4300 digits.
        raise EngineError(f"{shown}: a value can't be read: {safe_text(str(error))}") from error
    return TomlFile(path=path, data=data, lines=key_lines(text))


def _read_text(path: Path) -> str:
    shown = safe_text(str(path))
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise EngineError(f"{shown}: no such file") from error
    except OSError as error:
        raise EngineError(f"{shown}: can't be read: {error.strerror or error}") from error
    if len(raw) > MAX_BYTES:
        raise EngineError(f"{shown}: larger than {MAX_BYTES // 1000} kB, so it is no settings file")
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise EngineError(
            f"{shown}:{line}: byte {error.start} is not UTF-8; save the file in UTF-8 encoding"
        ) from error


def key_lines(text: str) -> dict[tuple[Key, ...], int]:
    """Return the 1-based line of every table header and key; array tables are numbered from 0.

    A line scanner is enough: tomllib has already proved the text valid, and neither it nor tomlkit keeps positions.
    """
    lines: dict[tuple[Key, ...], int] = {}
    counts: dict[tuple[Key, ...], int] = {}
    table: tuple[Key, ...] = ()
    closing = ""
    for number, line in enumerate(text.split("\n"), start=1):
        if closing:
            closing = "" if line.count(closing) % 2 else closing
            continue
        header = _HEADER.match(line)
        if header:
            table = _enter_table(header[2], is_array=header[1] == "[[", counts=counts)
            lines.setdefault(table, number)
            continue
        assignment = _ASSIGNMENT.match(line)
        if assignment:
            lines.setdefault((*table, *_key_parts(assignment[1])), number)
        triple = _TRIPLE_QUOTE.search(line)
        if triple and line.count(triple[0]) % 2:
            closing = triple[0]
    return lines


def _key_parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _KEY_PART.findall(dotted))


def _enter_table(dotted: str, *, is_array: bool, counts: dict[tuple[Key, ...], int]) -> tuple[Key, ...]:
    path: tuple[Key, ...] = ()
    parts = _key_parts(dotted)
    for position, part in enumerate(parts):
        path = (*path, part)
        if is_array and position == len(parts) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest valid name, or nothing where none is near."""
    found = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def edit_toml(text: str, sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the TOML text with the sections' keys set, everything else (comments, order) as it was.

    A value of None removes its key. Keys whose value is unchanged keep the user's spelling, such as `1e-4`.
    """
    import tomlkit

    document = tomlkit.parse(text)
    for section, values in sections.items():
        present = {key: value for key, value in values.items() if value is not None}
        if section not in document:
            if not present:
                continue
            document[section] = tomlkit.table()
        table = document[section]
        assert isinstance(table, tomlkit.items.Table)
        for key, value in values.items():
            if value is None:
                table.pop(key, None)
            elif key not in table or table[key] != value:
                table[key] = value
    return tomlkit.dumps(document)

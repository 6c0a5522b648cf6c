"""The settings being edited: every value with its origin, undo and redo, problems, and the TOML they make.

A draft keeps its own file in the user's data folder from the first change on; the run.toml it was opened from is
written only when the user saves. A draft reads no clock and keeps no hidden state, so undo is a list of snapshots.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from engine.errors import EngineError, Problem, ProblemsError
from engine.rules import find_problems
from engine.run import RunFolder
from engine.settings import SECTION_OF, Settings
from engine.settings_io import Given, LoadedSettings, build, path_kind, run_toml
from engine.toml import edit_toml, parse_toml, read_toml

Origin = Literal["default", "auto", "file", "preset", "you"]
HEADER = "# sdtui draft of "
MAX_UNDO = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One given value and where it came from; `place` is the file and line of a value that a file gave."""

    given: Given
    origin: Origin
    place: str = ""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All given values at one moment, what they add up to, and the label of the change that led here."""

    entries: Mapping[str, Entry]
    base: str = ""
    """TOML text whose comments and order are kept."""
    label: str = ""

    @cached_property
    def checked(self) -> tuple[LoadedSettings, tuple[Problem, ...]]:
        """The settings without the values that can't be used, and the problems of those values."""
        givens = [entry.given for entry in self.entries.values()]
        try:
            return build(givens), ()
        except ProblemsError as error:
            refused = {problem.where for problem in error.problems if problem.severity == "error"}
            return build([given for given in givens if given.name not in refused]), error.problems

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """Every problem, each with the setting's name as its place, errors first."""
        loaded, refused = self.checked
        found = (*refused, *loaded.warnings, *find_problems(loaded.settings))
        return tuple(sorted(dict.fromkeys(found), key=lambda problem: SEVERITIES.index(problem.severity)))


SEVERITIES = ("error", "warning", "info")


class Draft:
    """The settings being edited. Changes are checked at once; a refused value stays out of the TOML."""

    def __init__(self, start: Snapshot, *, draft_path: Path, target: Path | None = None, note: str = "") -> None:
        self.draft_path = draft_path
        self._target = target
        self.note = note
        self.look_around: Callable[[Draft], tuple[Problem, ...]] = lambda _draft: ()
        """Finds what is wrong with the settings beside the model, the plan and the machine, where these are known."""
        self._history = [start]
        self._position = 0

    # ---- what it is

    @property
    def now(self) -> Snapshot:
        """The present values."""
        return self._history[self._position]

    @property
    def settings(self) -> Settings:
        """The settings that the values make."""
        return self.now.checked[0].settings

    @property
    def saved(self) -> LoadedSettings:
        """The settings as those of the run.toml that was just saved, which a run in its folder may replace."""
        return replace(self.loaded, path=self.target)

    @property
    def loaded(self) -> LoadedSettings:
        """The settings as the engine takes them, each value with its place."""
        places = {name: entry.place for name, entry in self.now.entries.items() if entry.place}
        return replace(self.now.checked[0], places=places)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Every problem of the settings, errors first; `where` is a setting's name."""
        return self.now.problems

    @property
    def target(self) -> Path:
        """The run.toml that saving writes: the file that was opened, else the one in the run's folder."""
        if self._target is not None:
            return self._target
        folder = self.settings.saving.output_dir
        return Path(folder) / "run.toml" if folder else self.draft_path

    @property
    def name(self) -> str:
        """What the run is called: the name of its folder."""
        return Path(self.settings.saving.output_dir or self.target.stem).name

    @property
    def undo_label(self) -> str:
        """What undo would take back, or nothing."""
        return self.now.label if self._position else ""

    @property
    def is_changed(self) -> bool:
        """Tell whether anything was changed since it was opened."""
        return len(self._history) > 1

    @property
    def redo_label(self) -> str:
        """What redo would do again, or nothing."""
        return self._history[self._position + 1].label if self._position + 1 < len(self._history) else ""

    def value(self, name: str) -> Any:  # noqa: ANN401 - settings have many types
        """Return a setting's present value."""
        return getattr(getattr(self.settings, SECTION_OF[name]), name)

    def origin(self, name: str) -> Origin:
        """Return where a setting's value comes from."""
        entry = self.now.entries.get(name)
        return entry.origin if entry else "default"

    def place(self, name: str) -> str:
        """Return the file and line that gave a setting, or nothing."""
        entry = self.now.entries.get(name)
        return entry.place if entry else ""

    def changed(self) -> frozenset[str]:
        """Return the settings whose value is not the default."""
        default = Settings().flat()
        return frozenset(name for name, value in self.settings.flat().items() if value != default[name])

    def problem_of(self, name: str) -> Problem | None:
        """Return the gravest problem of a setting, errors of the settings alone first."""
        own = [problem for problem in (*self.problems, *self.look_around(self)) if problem.about == name]
        return min(own, key=lambda problem: SEVERITIES.index(problem.severity), default=None)

    def try_value(self, name: str, value: object) -> Problem | None:
        """Return why a value can't be used for a setting, or None where it can."""
        try:
            build([self._given(name, value)])
        except ProblemsError as error:
            return error.problems[0]
        return None

    def with_values(self, values: Mapping[str, object]) -> Snapshot:
        """Return what the draft would be with these values, without changing it."""
        return replace(self.now, entries=self._merged(values, "you"))

    # ---- changes

    def change(self, values: Mapping[str, object], *, label: str = "", origin: Origin = "you") -> frozenset[str]:
        """Set values (None: back to the default) and return the names of the settings that differ afterwards.

        Raises:
            ProblemsError: A value can't be used; nothing was changed.
        """
        problems = [self.try_value(name, value) for name, value in values.items() if value is not None]
        refused = [problem for problem in problems if problem]
        if refused:
            raise ProblemsError(refused)
        described = label or ", ".join(f"{name} {_shown(value)}" for name, value in values.items())
        return self._move_to(replace(self.now, entries=self._merged(values, origin), label=described))

    def undo(self) -> frozenset[str]:
        """Take the last change back and return the names of the settings that differ afterwards."""
        return self._step(-1)

    def redo(self) -> frozenset[str]:
        """Do the change again that was taken back last."""
        return self._step(1)

    def take_text(self, text: str, *, label: str = "edited as text") -> frozenset[str]:
        """Replace all values by those of a TOML text, such as an editor leaves; its comments are kept.

        Raises:
            EngineError: The text is not TOML.
        """
        before = self.now.entries
        entries = {}
        for name, entry in _entries(text, self.draft_path, folder=self.target.parent, origin="you").items():
            old = before.get(name)
            is_same = old is not None and _resolved(old.given) == _resolved(entry.given)
            entries[name] = replace(entry, origin=old.origin) if old and is_same else entry
        return self._move_to(Snapshot(entries=entries, base=text, label=label))

    def take_file(self, text: str) -> frozenset[str]:
        """Take over the target file as somebody else has changed it; values set here stay on top.

        Raises:
            EngineError: The text is not TOML.
        """
        mine = {name: entry for name, entry in self.now.entries.items() if entry.origin in ("you", "preset")}
        theirs = _entries(text, self.target, folder=self.target.parent, origin="file")
        return self._move_to(Snapshot(entries={**theirs, **mine}, base=text, label="file changed outside"))

    def _given(self, name: str, value: object) -> Given:
        given = Given(name=name, value=value, place=name, folder=Path.cwd(), is_text=True)
        # Text stands for a number where only that is allowed, such as "150" for max_token_length.
        if isinstance(value, str) and value.isdecimal() and _is_refused(given):
            return replace(given, value=int(value))
        return given

    def _merged(self, values: Mapping[str, object], origin: Origin) -> dict[str, Entry]:
        entries = {name: entry for name, entry in self.now.entries.items() if name not in values}
        for name, value in values.items():
            if value is not None:
                entries[name] = Entry(given=self._given(name, value), origin=origin)
        return entries

    def _move_to(self, snapshot: Snapshot) -> frozenset[str]:
        before = self.now
        self._history = [*self._history[: self._position + 1], snapshot][-MAX_UNDO:]
        self._position = len(self._history) - 1
        return _difference(before, snapshot)

    def _step(self, offset: int) -> frozenset[str]:
        position = self._position + offset
        if not 0 <= position < len(self._history):
            return frozenset()
        before, self._position = self.now, position
        return _difference(before, self.now)

    # ---- TOML

    def text(self, folder: Path | None = None) -> str:
        """Return the TOML, paths relative to `folder` (the target's), with the comments of the file it came from."""
        base = self.now.base
        present = parse_toml(base, self.target).data
        gone = {
            section: dict.fromkeys(name for name in table if name not in self.now.entries)
            for section, table in present.items()
            if isinstance(table, dict)
        }
        kept = edit_toml(base, {section: names for section, names in gone.items() if names})
        folder = folder or self.target.parent
        text = run_toml(self.settings, folder=folder, existing=kept)
        return edit_toml(text, self._own_paths(folder))

    def _own_paths(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Return the paths that the file itself gave, as it spelled them: absolute ones stay absolute."""
        spelled: dict[str, dict[str, Any]] = {}
        for name, entry in self.now.entries.items():
            is_path = name in SECTION_OF and path_kind(name) and entry.origin == "file" and entry.place
            if is_path and (entry.given.folder == folder or Path(str(entry.given.value)).is_absolute()):
                spelled.setdefault(SECTION_OF[name], {})[name] = entry.given.value
        return spelled

    def draft_text(self) -> str:
        """Return what the draft's own file holds: the TOML under a line that names the file it belongs to."""
        target = json.dumps(str(self._target) if self._target else "")
        return f"{HEADER}{target}\n{self.text(self.draft_path.parent)}"


def new_draft(folder: Path, drafts: Path) -> Draft:
    """Return an empty draft whose run gets the first free folder under `folder`/runs."""
    output = free_folder(folder / "runs", "run")
    given = Given(name="output_dir", value=str(output), place="output_dir", folder=folder)
    start = Snapshot(entries={"output_dir": Entry(given=given, origin="auto")})
    return Draft(start, draft_path=free_file(drafts, output.name))


def open_draft(path: Path, drafts: Path) -> Draft:
    """Open a run.toml, or a draft's own file.

    A file in a run's folder, and one in sd-scripts' flat layout, is opened as a copy: it is never written.

    Raises:
        EngineError: The file can't be read, or is not TOML.
    """
    text = read_text(path)
    if text.startswith(HEADER):
        return _reopen(path, text)
    entries = _entries(text, path, folder=path.resolve().parent, origin="file")
    if RunFolder(path.parent).holds_run():
        output = free_folder(path.resolve().parent.parent, path.resolve().parent.name)
        given = Given(name="output_dir", value=str(output), place="output_dir", folder=output)
        entries["output_dir"] = Entry(given=given, origin="auto")
        note = f"this run has been started, so you edit a copy that will run in {output.name}"
        return Draft(Snapshot(entries=entries, base=text), draft_path=free_file(drafts, output.name), note=note)
    if _is_foreign(text, path):
        note = "a file in another layout is read, not written: saving makes a new run.toml"
        output_dir = path.resolve().parent / path.stem
        given = Given(name="output_dir", value=str(output_dir), place="output_dir", folder=output_dir)
        entries.setdefault("output_dir", Entry(given=given, origin="auto"))
        return Draft(Snapshot(entries=entries), draft_path=free_file(drafts, path.stem), note=note)
    key = hashlib.blake2b(str(path.resolve()).encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    draft_path = drafts / f"{path.stem}-{key}.toml"
    return Draft(Snapshot(entries=entries, base=text), draft_path=draft_path, target=path.resolve())


def read_text(path: Path) -> str:
    """Return the text of a TOML file, checked.

    Raises:
        EngineError: It can't be read, is too large, not UTF-8 or not TOML.
    """
    read_toml(path)
    return path.read_text(encoding="utf-8-sig")


def free_folder(parent: Path, name: str) -> Path:
    """Return the first of name-01, name-02, ... that is not there yet."""
    stem = name.rstrip("0123456789").rstrip("-") or name
    return next(path for number in range(1, 10_000) if not (path := parent / f"{stem}-{number:02}").exists())


def free_file(folder: Path, stem: str) -> Path:
    """Return a path for a new draft that no other draft has."""
    paths = (folder / f"{stem}{f'.{number}' if number else ''}.toml" for number in range(10_000))
    return next(path for path in paths if not path.exists())


def _reopen(path: Path, text: str) -> Draft:
    first, _, body = text.partition("\n")
    try:
        target = json.loads(first.removeprefix(HEADER))
    except ValueError as error:
        raise EngineError(f"{path}: its first line does not name the file it belongs to; remove that line") from error
    entries = _entries(body, path, folder=path.parent, origin="you")
    return Draft(Snapshot(entries=entries, base=body), draft_path=path, target=Path(target) if target else None)


def _entries(text: str, path: Path, *, folder: Path, origin: Origin) -> dict[str, Entry]:
    """Return the values of a TOML text; each is placed at its own name, so that problems name the setting."""
    file = parse_toml(text, path)
    entries: dict[str, Entry] = {}
    for section, table in file.data.items():
        is_section = isinstance(table, dict) and section not in SECTION_OF
        for name, value in table.items() if is_section else [(section, table)]:
            keys = (section, name) if is_section else (name,)
            entries.pop(name, None)  # The later of two spellings wins, so it must come last.
            given = Given(name=name, value=value, place=name, folder=folder)
            entries[name] = Entry(given=given, origin=origin, place=file.place(*keys))
    return entries


def _is_foreign(text: str, path: Path) -> bool:
    data = parse_toml(text, path).data
    return any(
        not isinstance(table, dict)
        or section not in {*SECTION_OF.values()}
        or any(SECTION_OF.get(name, section) != section for name in table)
        for section, table in data.items()
    )


def _resolved(given: Given) -> object:
    try:
        name = given.name
        return build([given]).settings.flat().get(name, given.value)
    except ProblemsError:
        return given.value


def _is_refused(given: Given) -> bool:
    try:
        build([given])
    except ProblemsError:
        return True
    return False


def _difference(before: Snapshot, after: Snapshot) -> frozenset[str]:
    old, new = before.checked[0].settings.flat(), after.checked[0].settings.flat()
    moved = {name for name in {*before.entries, *after.entries} if before.entries.get(name) != after.entries.get(name)}
    return frozenset({name for name in new if new[name] != old[name]} | (moved & new.keys()))


def _shown(value: object) -> str:
    return "default" if value is None else str(value)

"""Settings one in a line: name, value, unit, origin; the value is edited in its place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Input

from engine.errors import Problem, safe_text
from sdtui import format as fmt
from sdtui.draft import Draft
from sdtui.format import SEVERITY_MARKS, fit
from sdtui.forms import Row
from sdtui.keys import bindings
from sdtui.widgets.field import Field
from sdtui.widgets.row_list import Cell, RowList

MARKS = {"default": " ", "auto": "a", "file": "f", "preset": "p", "you": "*"}
_STYLES: Mapping[str, str] = {"error": "bad", "warning": "warn", "info": "dim"}


class ValueInput(Field):
    """The field in which a value is typed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "give_up", "Leave", key_display="esc"),
        Binding("up,down", "give_up", show=False),
    ]

    class GaveUp(Message):
        """The value stays as it was."""

    def action_give_up(self) -> None:
        """Leave the value as it was."""
        self.post_message(self.GaveUp())


class SettingTable(RowList):
    """Draws rows of settings from the draft; asks for changes by message."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("setting")]

    @dataclass
    class Entered(Message):
        """A value was entered; None takes the setting back to its default."""

        name: str
        value: object

    @dataclass
    class Opened(Message):
        """A setting with a few choices is to be set from a list."""

        row: Row

    @dataclass
    class Typed(Message):
        """A value is being typed; `problem` says why it can't be used."""

        problem: Problem | None

    def __init__(self, draft: Draft, *, name: str) -> None:
        super().__init__(self._cells, name=name, empty="no setting")
        self._draft = draft
        self._rows: tuple[Row, ...] = ()
        self._edited = ""
        self._has_sections = False

    @property
    def is_container(self) -> bool:
        """Textual lays out no children of a virtual list unless it is told so."""
        return True

    def compose(self) -> ComposeResult:
        """Hold the field ready."""
        yield ValueInput(id="value", select_on_focus=True)

    def show(self, rows: Sequence[Row], *, has_sections: bool = False, cursor: int | None = None) -> None:
        """Show these settings; with `has_sections` each names its section too."""
        self._rows, self._has_sections = tuple(rows), has_sections
        self.show_rows(len(rows), cursor=cursor)

    @property
    def row(self) -> Row | None:
        """The setting under the cursor."""
        return self._rows[self.cursor] if self.cursor < len(self._rows) else None

    @property
    def is_editing(self) -> bool:
        """A value is being typed."""
        return bool(self._edited)

    # ---- drawing

    def _widths(self, width: int) -> tuple[int, int, int]:
        """Return the cells of name, value and the rest."""
        rest = 16 if width >= 64 else 9 if width >= 52 else 0
        names = min(34 if self._has_sections or width >= 72 else 30, width - rest - 12)
        return names, max(8, width - names - rest - 4), rest

    def _cells(self, index: int, width: int) -> list[Cell]:
        row = self._rows[index]
        names, values, rest = self._widths(width)
        problem = self._draft.problem_of(row.name)
        origin = self._draft.origin(row.name)
        text = safe_text(fmt.setting(self._draft.value(row.name)), limit=400)
        mark = SEVERITY_MARKS[problem.severity] if problem else " "
        style = _STYLES[problem.severity] if problem else ""
        return [
            (f"{mark} ", style or "dim"),
            (fit(f"{row.section}." * self._has_sections + row.name, names), style),
            (" ", ""),
            self._value_cell(row, text, values, is_default=origin == "default"),
            (" ", ""),
            (fit(row.unit if len(row.unit) <= rest - 8 else "", rest - 8), "dim"),
            (
                fit(f"{MARKS[origin]} {origin if origin != 'default' else ''}", 8),
                "accent" if origin == "you" else "dim",
            ),
        ]

    def _value_cell(self, row: Row, text: str, width: int, *, is_default: bool) -> Cell:
        if row.kind == "switch":
            return fit("[x] on" if text == "on" else "[ ] off", width), "dim" if is_default else "accent"
        if row.kind == "choice":
            return fit(f"{text or 'left out'} \u25be", width), "dim" if is_default else "accent"
        if not text:
            return fit("left out", width), "dim"
        # The end of a path says more than its beginning.
        shown = text if len(text) < width or row.kind != "path" else "\u2026" + text[-(width - 2) :]
        return fit(shown, width), "dim" if is_default else "accent"

    # ---- editing

    def edit(self) -> None:
        """Open the field on the value under the cursor; a switch turns at once, choices are listed."""
        row = self.row
        if row is None:
            return
        if row.kind == "switch":
            self.toggle()
            return
        if row.kind == "choice":
            self.post_message(self.Opened(row))
            return
        names, values, _rest = self._widths(self.scrollable_content_region.width)
        field = self.query_one(ValueInput)
        with self.prevent(Input.Changed):
            field.value = fmt.setting(self._draft.value(row.name))
        field.placeholder = f"default: {row.default_text}"
        field.styles.width = values + 1
        field.styles.offset = (names + 2, self.cursor)  # Counted from the first row, seen or not.
        field.display = True
        self._edited = row.name
        field.focus()

    def toggle(self, offset: int = 1) -> None:
        """Turn a switch, or take the next choice."""
        row = self.row
        if row is not None and row.choices:
            choice = row.next_choice(self._draft.value(row.name), offset)
            self.post_message(self.Entered(row.name, choice or None))

    @on(Input.Changed, "#value")
    def _typing(self, event: Input.Changed) -> None:
        event.stop()
        if self._edited:
            text = event.value.strip()
            self.post_message(self.Typed(self._draft.try_value(self._edited, text) if text else None))

    @on(Input.Submitted, "#value")
    def _entered(self, event: Input.Submitted) -> None:
        event.stop()
        text = event.value.strip()
        name = self._edited
        problem = self._draft.try_value(name, text) if text else None
        if problem:
            self.post_message(self.Typed(problem))
            return
        self._close()
        self.post_message(self.Entered(name, text or None))

    @on(ValueInput.GaveUp)
    def _gave_up(self) -> None:
        self._close()
        self.post_message(self.Typed(None))

    def on_descendant_blur(self, _event: events.DescendantBlur) -> None:
        """Give up a value whose field was left; Enter is what takes one."""
        if self._edited:
            self._close()

    def _close(self) -> None:
        self._edited = ""
        field = self.query_one(ValueInput)
        had_focus = field.has_focus
        field.display = False
        if had_focus:
            self.focus()

    def action_select(self) -> None:
        """Edit the value under the cursor."""
        self.edit()

    def action_turn(self) -> None:
        """Turn a switch, or take the next choice."""
        self.toggle()

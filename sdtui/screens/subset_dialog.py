"""The options of one folder: repeats, captions, augmentation; each change is applied at once and can be undone."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from engine.dataset.config import DatasetConfig, Subset
from engine.dataset.keys import SUBSET_SETTINGS
from engine.errors import safe_text
from sdtui import format as fmt
from sdtui import recent
from sdtui.dataset_file import Changes, set_subset
from sdtui.draft import Draft
from sdtui.format import fit
from sdtui.forms import ROWS, Row
from sdtui.keys import bindings
from sdtui.widgets.field import Field
from sdtui.widgets.row_list import Cell, RowList

Apply = Callable[[Callable[[], Changes], str], object]
KEYS = (*SUBSET_SETTINGS,)


class SubsetDialog(ModalScreen[None]):
    """Edits one folder; `apply` runs a change in a thread and hands what it returns to the wizard."""

    CSS = """
    SubsetDialog RowList { height: 1fr; }
    SubsetDialog .dialog { height: 90%; }
    SubsetDialog #option-help { height: 2; color: $muted; }
    SubsetDialog #option-value { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("dialog")]

    def __init__(self, draft: Draft, config: DatasetConfig, number: int, apply: Apply) -> None:
        super().__init__()
        self._draft = draft
        self._number = number
        self._apply = apply
        self._subset = config.subsets[number]
        self._values = {key: _value(self._subset, key) for key in KEYS}
        self._changed: set[str] = set()

    def compose(self) -> ComposeResult:
        """Lay out the dialog."""
        with Vertical(classes="dialog pane") as pane:
            path = self._subset.metadata_file or self._subset.image_dir
            pane.border_title = Content(recent.shown_path(path))
            yield RowList(self._row, name="options")
            yield Field(id="option-value")
            yield Static("", markup=False, id="option-help")
            yield Static("enter change   r back to default   esc done", markup=False, classes="hint")

    def on_mount(self) -> None:
        """Show the options."""
        options = self.query_one(RowList)
        options.show_rows(len(KEYS))
        options.focus()
        self._explain()

    @property
    def _key(self) -> str:
        return KEYS[self.query_one(RowList).cursor]

    @property
    def _form(self) -> Row:
        return ROWS[SUBSET_SETTINGS[self._key]]

    def _row(self, index: int, width: int) -> list[Cell]:
        key = KEYS[index]
        form, value = ROWS[SUBSET_SETTINGS[key]], self._values[key]
        shown = safe_text(fmt.setting(value)) or "left out"
        if form.kind == "switch":
            shown = "[x] on" if value else "[ ] off"
        is_default = value == form.default
        return [
            (" * " if key in self._changed else "   ", "accent"),
            (fit(key, 32), ""),
            (fit(shown, max(8, width - 35)), "dim" if is_default else "accent"),
        ]

    @on(RowList.Moved)
    def _explain(self) -> None:
        row = self._form
        bounds = f" ({row.bounds})" if row.bounds else ""
        text = f"{row.help}{bounds} Default: {row.default_text}."
        self.query_one("#option-help", Static).update(Content(text))

    @on(RowList.Chosen)
    def _edit(self) -> None:
        row = self._form
        if row.choices:
            choice = row.next_choice(self._values[self._key])
            self._set({"true": True, "false": False, "": None}.get(choice, choice))
            return
        field = self.query_one(Input)
        field.value = fmt.setting(self._values[self._key])
        field.display = True
        field.focus()

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        text = event.value.strip() if self._form.unit or self._form.bounds else event.value
        if not text:
            self._set(None)
            return
        problem = self._draft.try_value(self._form.name, text)
        if problem:
            self.query_one("#option-help", Static).update(Content(f"\u2717 {safe_text(problem.message, limit=300)}"))
            return
        given = self._draft.with_values({self._form.name: text}).checked[0].settings.flat()
        self._set(given[self._form.name])

    def _set(self, value: Any) -> None:  # noqa: ANN401 - settings have many types
        """Apply a value; None takes the key back to what holds without it."""
        key = self._key
        self._values[key] = self._form.default if value is None else value
        self._changed.add(key)
        self._close_field()
        told = "default" if value is None else fmt.setting(value)
        self._apply(partial(set_subset, self._draft, self._number, {key: value}), f"{key} {told}")

    def _close_field(self) -> None:
        self.query_one(Input).display = False
        self.query_one(RowList).focus()
        self.query_one(RowList).refresh()
        self._explain()

    def key_r(self) -> None:
        """Take the selected option back to its default."""
        if not self.query_one(Input).has_focus:
            self._set(None)

    def action_close(self) -> None:
        """Leave the field, or the dialog."""
        if self.query_one(Input).display:
            self._close_field()
        else:
            self.dismiss(None)


def _value(subset: Subset, key: str) -> Any:  # noqa: ANN401 - settings have many types
    """Return what holds for a folder now, whatever level says it."""
    for holder in (subset, subset.caption, subset.augment):
        if hasattr(holder, key):
            return getattr(holder, key)
    raise AssertionError(key)

"""The captioner's options: thresholds or beams and lengths, and where the texts go."""

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from engine.errors import EngineError, safe_text
from sdtui import format as fmt
from sdtui.captioning_options import Choices, Option, Value
from sdtui.format import fit
from sdtui.keys import bindings
from sdtui.widgets.field import Field
from sdtui.widgets.row_list import Cell, RowList


class CaptioningDialog(ModalScreen[Choices]):
    """Edits the options of the captioner that is chosen; dismissed with the choices."""

    CSS = """
    CaptioningDialog RowList { height: 8; }
    CaptioningDialog #option-help { height: 2; color: $muted; }
    CaptioningDialog #option-value { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("dialog")]

    def __init__(self, choices: Choices) -> None:
        super().__init__()
        self._choices = choices

    def compose(self) -> ComposeResult:
        """Lay out the dialog."""
        with Vertical(classes="dialog pane") as pane:
            pane.border_title = Content(f"Options of {self._choices.captioner}")
            yield RowList(self._row, name="options")
            yield Field(id="option-value")
            yield Static("", markup=False, id="option-help")
            yield Static("enter change   r back to default   esc done", markup=False, classes="hint")

    def on_mount(self) -> None:
        """Show the options."""
        options = self.query_one(RowList)
        options.show_rows(len(self._choices.options))
        options.focus()
        self._explain()

    @property
    def _option(self) -> Option:
        return self._choices.options[self.query_one(RowList).cursor]

    def _row(self, index: int, width: int) -> list[Cell]:
        option = self._choices.options[index]
        value = self._choices.value(option)
        shown = safe_text(fmt.setting(value), limit=1000) or "files beside the pictures"
        if option.kind == "switch":
            shown = "[x] on" if value else "[ ] off"
        is_default = value == option.default
        return [
            ("   " if is_default else " * ", "accent"),
            (fit(option.name, 22), ""),
            (fit(shown, max(8, width - 25)), "dim" if is_default else "accent"),
        ]

    @on(RowList.Moved)
    def _explain(self) -> None:
        option = self._option
        bounds = f" {option.least} to {option.most}." if option.kind in ("share", "whole") else ""
        default = "" if option.default == "" else f" Default: {fmt.setting(option.default)}."
        self.query_one("#option-help", Static).update(Content(f"{option.help}{bounds}{default}"))

    @on(RowList.Chosen)
    def _edit(self) -> None:
        option = self._option
        if option.kind == "switch":
            self._set(not self._choices.value(option))
            return
        field = self.query_one(Input)
        field.value = fmt.setting(self._choices.value(option))
        field.display = True
        field.focus()

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        text = event.value.strip()
        try:
            self._set(self._option.read(text) if text else None)
        except EngineError as error:
            self._complain(error)

    def _set(self, value: Value | None) -> None:
        self._choices = self._choices.with_option(self._option, value)
        self._close_field()

    def _complain(self, error: EngineError) -> None:
        self.query_one("#option-help", Static).update(Content(f"\u2717 {error}"))

    def _close_field(self) -> None:
        self.query_one(Input).display = False
        self.query_one(RowList).focus()
        self.query_one(RowList).refresh()
        self._explain()

    def key_r(self) -> None:
        """Take the selected option back to its default."""
        if not self.query_one(Input).has_focus:
            try:
                self._set(None)
            except EngineError as error:
                self._complain(error)

    def action_close(self) -> None:
        """Leave the field, or the dialog."""
        if self.query_one(Input).display:
            self._close_field()
        else:
            self.dismiss(self._choices)

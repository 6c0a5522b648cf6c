"""The help: every key that works where it was asked for, from the table of keys; / searches."""

import textwrap
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen, Screen
from textual.widgets import Input

from sdtui.format import fit
from sdtui.keys import KEYS, SCOPES, Key, bindings
from sdtui.widgets.field import Field
from sdtui.widgets.row_list import Cell, RowList

KEY_WIDTH = 14


class HelpScreen(ModalScreen[None]):
    """Lists keys by scope, those of the present screen first."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("dialog")]
    AUTO_FOCUS = "#help-keys"

    def __init__(self, screen: Screen[object]) -> None:
        super().__init__()
        ids = [active.binding.id or "" for active in screen.active_bindings.values()]
        active = dict.fromkeys(identity.partition(".")[0] for identity in ids)
        first = [scope for scope in active if scope in SCOPES and scope not in ("app", "list")]
        self._scopes = [*first, "app", "list"]
        self._scopes += [scope for scope in SCOPES if scope not in self._scopes]
        self._rows: list[tuple[str, str, str]] = []
        """Of each row key, text and style."""

    def compose(self) -> ComposeResult:
        """Lay out the help."""
        with Vertical(classes="dialog pane", id="help-dialog") as pane:
            pane.border_title = Content("Keys")
            pane.border_subtitle = Content("letters act while no input has the focus; esc leaves an input")
            yield Field(placeholder="/ searches", id="help-search", compact=True)
            yield RowList(self._row, name="help-keys")

    def on_mount(self) -> None:
        """Show all keys."""
        self._fill("")

    def on_resize(self) -> None:
        """Fold the lines anew."""
        self.call_after_refresh(lambda: self._fill(self.query_one(Input).value))

    def _fill(self, words: str) -> None:
        wanted = words.lower().split()
        width = self.query_one(RowList).scrollable_content_region.width - KEY_WIDTH
        self._rows = []
        for scope in self._scopes:
            keys = [key for key in KEYS if key.scope == scope and _matches(key, wanted)]
            if keys:
                self._rows.append((f" {SCOPES[scope]}", "", "title"))
                for key in keys:
                    first, *rest = textwrap.wrap(key.help, max(20, width))
                    self._rows += [(f"   {key.shown_key}", first, ""), *(("", line, "") for line in rest)]
        self.query_one(RowList).show_rows(len(self._rows), cursor=0)

    def _row(self, index: int, width: int) -> list[Cell]:
        key, text, style = self._rows[index]
        if style:
            return [(fit(key, width), style)]
        return [(fit(key, KEY_WIDTH), "key"), (fit(text, width - KEY_WIDTH), "")]

    @on(Input.Changed)
    def _search(self, event: Input.Changed) -> None:
        self._fill(event.value)

    @on(Input.Submitted)
    def _found(self) -> None:
        self.query_one(RowList).focus()

    def key_slash(self) -> None:
        """Go to the search."""
        self.query_one(Input).focus()

    def key_question_mark(self) -> None:
        """Close on the key that opened it."""
        self.dismiss(None)

    def action_close(self) -> None:
        """Close the help."""
        self.dismiss(None)


def _matches(key: Key, wanted: list[str]) -> bool:
    text = f"{key.shown_key} {key.label} {key.help} {SCOPES[key.scope]}".lower()
    return all(word in text for word in wanted)

"""Every setting: groups, values edited in place, help, origin, presets, problems with one-key fixes."""

import asyncio
from typing import ClassVar

from rich.cells import cell_len
from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, Static

from engine.errors import Problem, safe_text
from engine.settings import SECTIONS
from sdtui import format as fmt
from sdtui.draft import Draft
from sdtui.fixes import fix_text
from sdtui.format import SEVERITY_MARKS, fit
from sdtui.forms import ROWS, Row, rows_of, search, shown_choice
from sdtui.keys import bindings
from sdtui.memory_meter import fit_of, values_of
from sdtui.messages import ChangeSettings, DraftChanged, FixProblem, PlanChanged, PlanFailed, Say
from sdtui.pages import WizardPage
from sdtui.presets import PRESETS
from sdtui.screens.choice import Choice, ChoiceDialog
from sdtui.screens.fit_dialog import FitDialog
from sdtui.widgets.field import Field
from sdtui.widgets.row_list import Cell, RowList
from sdtui.widgets.setting_table import SettingTable

SECTION_NAMES = (*SECTIONS,)
_STYLES = {"error": "bad", "warning": "warn", "info": "dim"}


class OptionsPage(WizardPage):
    """Groups at the left, settings in the middle, help and problems below or beside them."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("options")]

    def __init__(self, draft: Draft, *, plan: object = None) -> None:
        super().__init__(draft, plan=plan)  # type: ignore[arg-type]
        self._words = ""
        self._only_changed = False
        self._counts: dict[str, int] = {}
        self._problems: tuple[Problem, ...] = ()
        self._typed: Problem | None = None

    # ---- layout

    def compose(self) -> ComposeResult:
        """Lay out the panes."""
        with Vertical(classes="pane", id="groups-pane") as groups:
            groups.border_title = "Groups"
            yield RowList(self._group_row, name="groups")
            yield Static("* you  p preset\nf file a wizard", markup=False, classes="legend")
        with Vertical(classes="pane", id="table-pane"):
            yield Field(placeholder="words of the name or the help; enter keeps, esc ends", id="search", compact=True)
            yield SettingTable(self.draft, name="settings")
        with Vertical(classes="pane", id="help-pane"):
            yield Static("", markup=False, id="help")
            yield RowList(self._problem_row, name="problems", empty="no problem")

    def on_mount(self) -> None:
        """Show the first group."""
        self.query_one("#search").display = False
        self._groups.show_rows(len(SECTION_NAMES), cursor=SECTION_NAMES.index("training"))
        self._draw()

    @property
    def _table(self) -> SettingTable:
        return self.query_one(SettingTable)

    @property
    def _groups(self) -> RowList:
        return self.query_one("#groups", RowList)

    @property
    def _problem_list(self) -> RowList:
        return self.query_one("#problems", RowList)

    @property
    def _section(self) -> str:
        return SECTION_NAMES[self._groups.cursor]

    def _group_row(self, index: int, width: int) -> list[Cell]:
        name = SECTION_NAMES[index]
        marks = [problem.severity for problem in self._problems if _section_of(problem.about) == name]
        gravest = next((severity for severity in ("error", "warning") if severity in marks), "")
        changed = self._counts.get(name, 0)
        mark = SEVERITY_MARKS[gravest] if gravest else " "
        count = str(changed) if changed else ""
        return [
            (f"{mark} ", _STYLES.get(gravest, "dim")),
            (fit(name.capitalize(), width - 6), "" if changed else "dim"),
            (fit(count, 3, is_right=True) + " ", "accent"),
        ]

    def _problem_row(self, index: int, width: int) -> list[Cell]:
        problem = self._problems[index]
        changes = self.screen.fix_for(problem) if hasattr(self.screen, "fix_for") else None
        remedy = f"f: {fix_text(changes)}" if changes else problem.fix
        message = safe_text(problem.message, limit=300)
        room = width - 2
        remedy = fit(remedy, min(cell_len(remedy), room // 2)) if remedy else ""
        return [
            (f"{SEVERITY_MARKS[problem.severity]} ", _STYLES[problem.severity]),
            (fit(message, room - cell_len(remedy) - 1) + " ", ""),
            (remedy, "key" if changes else "dim"),
        ]

    # ---- drawing

    @on(DraftChanged)
    @on(PlanChanged)
    @on(PlanFailed)
    def _draw(self) -> None:
        changed = self.draft.changed()
        self._counts = {name: sum(row.name in changed for row in rows_of(name)) for name in SECTION_NAMES}
        self._problems = getattr(self.screen, "problems", self.draft.problems)
        self._groups.refresh()
        self._problem_list.show_rows(len(self._problems))
        self._draw_table()

    def _rows(self) -> tuple[Row, ...]:
        rows = search(self._words) if self._words else rows_of(self._section)
        if not self._only_changed:
            return rows
        changed = self.draft.changed()
        return tuple(row for row in (rows if self._words else ROWS.values()) if row.name in changed)

    def _draw_table(self, cursor: int | None = None) -> None:
        rows = self._rows()
        self._table.show(rows, has_sections=bool(self._words) or self._only_changed, cursor=cursor)
        title = f"[{self._section}]"
        if self._words:
            title = f"search: {safe_text(self._words)}   {fmt.plural(len(rows), 'setting')}"
        elif self._only_changed:
            title = f"changed: {fmt.plural(len(rows), 'setting')}   c all"
        self.query_one("#table-pane").border_title = Content(title)
        self._draw_help()

    def _draw_help(self) -> None:
        pane, text = self.query_one("#help-pane"), self.query_one("#help", Static)
        row = self._table.row
        if row is None:
            text.update("")
            return
        pane.border_title = Content(f"{row.section}.{row.name}")
        pane.border_subtitle = Content(fmt.plural(len(self._problems), "problem"))
        text.update(self._help(row))

    def _help(self, row: Row) -> Content:
        problem = self._typed or self.draft.problem_of(row.name)
        facts = [f"default {row.default_text}", row.unit, row.bounds]
        if row.choices and row.kind == "choice":
            facts.append("one of " + ", ".join(choice or "left out" for choice in row.choices))
        if place := self.draft.place(row.name):
            facts.append(f"from {place}")
        lines: list[tuple[str, str] | str] = [row.help, "\n", ("; ".join(filter(None, facts)), "dim")]
        lines += ["\n", (f"[{row.section}] {row.name}   or   --{row.name}", "dim")]
        if problem:
            lines += ["\n", (f"{SEVERITY_MARKS[problem.severity]} {safe_text(problem.message, limit=300)}", "bold")]
        return Content.assemble(*lines)

    # ---- moving

    @on(RowList.Moved, "#groups")
    def _group_moved(self) -> None:
        if self.query("#settings"):
            self._words, self._only_changed = "", False
            self._draw_table(cursor=0)

    @on(RowList.Chosen, "#groups")
    def _group_chosen(self) -> None:
        self._table.focus()

    @on(RowList.Moved, "#settings")
    def _setting_moved(self) -> None:
        self._typed = None
        self._draw_help()

    @on(RowList.Chosen, "#problems")
    def _problem_chosen(self, event: RowList.Chosen) -> None:
        self.show_setting(self._problems[event.index].about)

    def show_setting(self, name: str) -> None:
        """Bring a setting into view and focus it."""
        if name not in ROWS:
            self._problem_list.focus()
            return
        section = ROWS[name].section
        self._words, self._only_changed = "", False
        with self.prevent(RowList.Moved):
            self._groups.cursor = SECTION_NAMES.index(section)
        self._draw_table(cursor=[row.name for row in rows_of(section)].index(name))
        self._table.focus()

    # ---- values

    @on(SettingTable.Entered)
    def _entered(self, event: SettingTable.Entered) -> None:
        self._typed = None
        self.change({event.name: event.value})

    @on(SettingTable.Opened)
    def _open_choices(self, event: SettingTable.Opened) -> None:
        self._choose(event.row)

    @work(group="dialog")
    async def _choose(self, row: Row) -> None:
        present = fmt.setting(self.draft.value(row.name))
        choices = [Choice(value=choice, title=shown_choice(choice) or "left out") for choice in row.choices]
        start = next((index for index, choice in enumerate(row.choices) if shown_choice(choice) == present), 0)
        dialog = ChoiceDialog(row.name, row.help, choices, start=start)
        chosen = await self.app.push_screen_wait(dialog)
        if chosen is not None:
            self.change({row.name: chosen or None})

    @on(SettingTable.Typed)
    def _show_typed(self, event: SettingTable.Typed) -> None:
        self._typed = event.problem
        self._draw_help()

    def action_edit(self) -> None:
        """Edit the selected setting."""
        self._table.focus()
        self._table.edit()

    def action_switch(self) -> None:
        """Turn a switch, or take the next choice."""
        self._table.toggle()

    def action_reset(self) -> None:
        """Take the selected setting back to its default."""
        row = self._table.row
        if row and self.draft.origin(row.name) != "default":
            self.change({row.name: None}, f"{row.name} back to {row.default_text}")
        elif row:
            self.post_message(Say(f"{row.name} is at its default"))

    def action_reset_group(self) -> None:
        """Take every setting of the group back to its default."""
        names = [row.name for row in rows_of(self._section) if self.draft.origin(row.name) != "default"]
        if names:
            self.change(dict.fromkeys(names), f"[{self._section}] back to defaults")

    def action_changed_only(self) -> None:
        """Show only what differs from its default, or all again."""
        self._only_changed = not self._only_changed
        self._draw_table(cursor=0)

    def action_copy(self) -> None:
        """Copy the selected setting as TOML."""
        row = self._table.row
        if row:
            value = fmt.setting(self.draft.value(row.name))
            self.post_message(Say(self.app.copy_text(f"{row.name}={value}")))  # type: ignore[attr-defined]

    def action_fix(self) -> None:
        """Fix the problem under the cursor, that of the selected setting, or the first."""
        focused = self._problem_list.has_focus and self._problems
        row = self._table.row
        own = self.draft.problem_of(row.name) if row else None
        problem = self._problems[self._problem_list.cursor] if focused else own
        if problem:
            self.post_message(FixProblem(problem))
        else:
            self.screen.action_fix()  # type: ignore[attr-defined]

    @work(group="dialog", exclusive=True)
    async def action_fit_memory(self) -> None:
        """Show the ways to make the run fit the graphics card, and go the one that is taken."""
        found = await asyncio.to_thread(fit_of, self.draft.settings, self.plan)
        if not found.ways:
            self.post_message(Say(found.text))
            return
        way = await self.app.push_screen_wait(FitDialog(found))
        if way is not None:
            self.post_message(ChangeSettings(values_of(way), f"to fit the card: {way.loss}"))

    @work(group="dialog")
    async def action_presets(self) -> None:
        """Choose a preset and apply it."""
        choices = [Choice(value=preset.name, title=preset.title, text=preset.explanation) for preset in PRESETS]
        text = "Values to start from; one undo takes them back."
        chosen = await self.app.push_screen_wait(ChoiceDialog("Presets", text, choices))
        for preset in PRESETS:
            if preset.name == chosen:
                self.post_message(ChangeSettings(preset.values, f"preset {preset.title}", origin="preset"))

    # ---- search

    def action_search(self) -> None:
        """Search all settings."""
        field = self.query_one("#search", Input)
        field.display = True
        field.focus()

    @on(Input.Changed, "#search")
    def _searching(self, event: Input.Changed) -> None:
        self._words = event.value.strip()
        self._draw_table(cursor=0)

    @on(Input.Submitted, "#search")
    def _found(self) -> None:
        self.query_one("#search").display = False
        self._table.focus()

    def on_key(self, event: events.Key) -> None:
        """Let Esc end a search, before it would leave the wizard."""
        field = self.query_one("#search", Input)
        if event.key == "escape" and (field.has_focus or self._words):
            event.stop()
            with self.prevent(Input.Changed):
                field.value = ""
            field.display = False
            self._words = ""
            self._draw_table(cursor=0)
            self._table.focus()


def _section_of(setting: str) -> str:
    return ROWS[setting].section if setting in ROWS else "dataset"

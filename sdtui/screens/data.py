"""Page 2, Data: where the pictures come from, what is wrong with them, and how the model will see each of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input

from engine.dataset.duplicates import DuplicateGroup, find_duplicates
from engine.dataset.scan import ScanCancelledError
from engine.errors import EngineError, safe_text
from engine.run import cache_dir
from sdtui.captioning_entry import CaptioningEntry
from sdtui.dataset_facts import DataFacts, Group, Rows, StoppedError, examine, groups_of, is_same_data, matching
from sdtui.dataset_file import Changes, add_source, kind_of_source, remove_source, set_part
from sdtui.draft import Draft
from sdtui.format import SEVERITY_MARKS, count, fit
from sdtui.keys import bindings
from sdtui.messages import CancelPlan, DraftChanged, MakePlan, PlanChanged, PlanFailed, PlanProgress, Say
from sdtui.pages import WizardPage
from sdtui.terminal import picture_mode
from sdtui.widgets.data_side import DataSide
from sdtui.widgets.field import Field
from sdtui.widgets.picture_pane import PicturePane, prepare_to_show
from sdtui.widgets.row_list import Cell, RowList
from sdtui.widgets.source_line import SourceLine
from sdtui.widgets.virtual_table import Column, VirtualTable

if TYPE_CHECKING:
    from engine.plan import Plan

_STYLES = {"error": "bad", "warning": "warn", "info": "dim"}
_PARTS_KEYS = {"bucket_no_upscale"}  # Fixes that dataset.toml may have the say in.
_NO_ROWS: Rows = np.array([], np.int64)


class DataPage(CaptioningEntry, WizardPage):
    """Findings, pictures, the picture, and the captions' lengths and tags."""

    DEFAULT_CSS = Path(__file__).with_suffix(".tcss").read_text("utf-8")
    SCOPED_CSS = False
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("data")]

    @dataclass
    class Examined(Message):
        """A thread has found something out: first what the scan told, then captions, then pictures there twice."""

        plan: "Plan"
        groups: tuple[Group, ...]
        facts: DataFacts | None = None

    @dataclass
    class Matched(Message):
        """A thread has found the pictures that hold the filter's text."""

        text: str
        group: str
        rows_N: Rows

    def __init__(self, draft: Draft, *, plan: "Plan | None" = None) -> None:
        super().__init__(draft, plan=plan)
        self._shown: Plan | None = None
        """The plan that is drawn; a newer one takes its place once a thread has looked at it."""
        self._facts: DataFacts | None = None
        self._groups: tuple[Group, ...] = ()
        self._known: tuple[Plan, DataFacts, tuple[DuplicateGroup, ...]] | None = None
        self._rows_N = _NO_ROWS
        self._files: Sequence[tuple[str, str]] = ()
        self._filter = ""
        self._scanned: tuple[int, int] | None = None

    # ---- layout

    def compose(self) -> ComposeResult:
        """Lay out the page."""
        yield SourceLine(name="source")
        with Vertical(id="left"):
            with Vertical(classes="pane", id="findings-pane") as findings:
                findings.border_title = "Findings"
                yield RowList(self._group_row, name="findings", empty=" a names the folder of your pictures")
            with Vertical(classes="pane", id="pictures-pane"):
                columns = [Column(title=" picture"), Column(title="size", width=9), Column(title="tok", width=5)]
                yield VirtualTable(columns, self._values, name="pictures", empty=" no picture")
                yield Field(placeholder="part of a name or caption", id="filter")
        yield PicturePane(picture_mode(self.app.terminal), name="picture-pane")  # type: ignore[attr-defined]
        yield DataSide(name="side")

    def on_mount(self) -> None:
        """Start on the findings."""
        self._list("findings").focus()

    def _list(self, name: str) -> RowList:
        return self.query_one(f"#{name}", RowList)

    @property
    def _pane(self) -> PicturePane:
        return self.query_one(PicturePane)

    @property
    def _side(self) -> DataSide:
        return self.query_one(DataSide)

    @property
    def row(self) -> int | None:
        """The catalog's row under the cursor."""
        place = self._list("pictures").cursor
        return int(self._rows_N[place]) if place < len(self._rows_N) else None

    @property
    def group(self) -> Group | None:
        """The finding under the cursor; None for all pictures."""
        place = self._list("findings").cursor - 1
        return self._groups[place] if 0 <= place < len(self._groups) else None

    def show_setting(self, name: str) -> None:  # noqa: ARG002 - each leads to the same place
        """Show the folders: there every setting of pictures is edited."""
        self._side.show_side("folders")

    # ---- news

    @on(DraftChanged)
    def _draft_changed(self, event: DraftChanged) -> None:
        if self.plan is not None and event.names & {"weighted_captions", "v2"}:
            self._examine(replace(self.plan, settings=self.draft.settings))
        self._draw_source()

    @on(PlanChanged)
    def _plan_changed(self, event: PlanChanged) -> None:
        self.plan, self._scanned = event.plan, None
        if event.plan is not None:
            self._examine(event.plan)
        else:
            self._shown = self._facts = None
            # A page that is mounted after the scan has failed hears of it only so.
            self._draw_groups(groups_of(getattr(self.screen, "plan_problems", ())))

    @on(PlanFailed)
    def _plan_failed(self, event: PlanFailed) -> None:
        self.plan = self._shown = self._scanned = None
        self._draw_groups(groups_of(event.problems))

    @on(PlanProgress)
    def _progress(self, event: PlanProgress) -> None:
        self._scanned = event.done, event.total
        self._draw_source()

    # Textual describes a worker by the repr of its arguments, which for a plan of 100,000 pictures takes 0.6 s.
    @work(thread=True, exclusive=True, group="examine", description="examine")
    def _examine(self, plan: "Plan") -> None:
        breath = self.breath()
        known, facts, twice = self._known or (None, None, ())
        if known is None or facts is None or not is_same_data(known, plan):
            prepare_to_show(plan)
            self.post_message(self.Examined(plan, groups_of(plan.problems, plan)))
            try:
                facts = examine(plan, is_stopped=breath)
                self.post_message(self.Examined(plan, groups_of(plan.problems, plan, facts), facts))
                twice = find_duplicates(plan.catalog, cache_dir=cache_dir(), cancel=breath)
            except (StoppedError, ScanCancelledError):
                return
            self._known = plan, facts, twice
        self.post_message(self.Examined(plan, groups_of(plan.problems, plan, facts, twice), facts))

    @on(Examined)
    def _take_facts(self, event: Examined) -> None:
        if self.plan is not None and event.plan.catalog is self.plan.catalog:
            self._shown, self._facts = event.plan, event.facts
            self._draw_groups(event.groups)

    # ---- drawing

    def _draw_source(self) -> None:
        self.query_one(SourceLine).show(self.draft.settings, self._shown, self._scanned)

    def _draw_groups(self, groups: tuple[Group, ...]) -> None:
        selected = self.group.code if self.group else ""
        self._groups = groups
        place = next((place for place, group in enumerate(self._groups, start=1) if group.code == selected), 0)
        has_any = self._shown is not None or bool(self._groups)
        self._list("findings").show_rows(len(self._groups) + 1 if has_any else 0, cursor=place)
        self._draw_pictures()
        self._side.show(self._shown, self._facts)
        self._draw_source()

    def _group_row(self, index: int, width: int) -> list[Cell]:
        if index == 0:
            shown = count(self._shown.num_images) if self._shown else "-"
            return [("   ", ""), (fit(shown, 7, is_right=True), ""), (fit("  all pictures", width - 10), "")]
        group = self._groups[index - 1]
        return [
            (f" {SEVERITY_MARKS[group.severity]} ", _STYLES[group.severity]),
            (fit(count(group.count), 7, is_right=True), _STYLES[group.severity]),
            (fit(f"  {group.title}", width - 10), ""),
        ]

    @on(RowList.Moved, "#findings")
    def _draw_pictures(self) -> None:
        """List the pictures of the finding that hold the filter's text."""
        group = self.group
        fix = f"f: {group.fix}" if group and group.changes else group.fix if group else ""
        self.query_one("#findings-pane").border_subtitle = Content(fix)
        self._files = group.files if group else ()
        if self._shown is None:
            self._show_rows(_NO_ROWS)
        elif self._filter:
            rows_N = group.rows_N if group else np.arange(self._shown.num_images)
            self._match(self._shown, rows_N, self._filter, group.code if group else "")
        else:
            self._show_rows(group.rows_N if group else np.arange(self._shown.num_images))

    @work(thread=True, exclusive=True, group="match", description="match")
    def _match(self, plan: "Plan", rows_N: Rows, text: str, group: str) -> None:
        try:
            found_N = matching(plan, rows_N, text, is_stopped=self.breath())
        except StoppedError:
            return
        self.post_message(self.Matched(text, group, found_N))

    @on(Matched)
    def _take_matched(self, event: Matched) -> None:
        if (event.text, event.group) == (self._filter, self.group.code if self.group else ""):
            self._show_rows(event.rows_N)

    def _show_rows(self, rows_N: Rows) -> None:
        self._rows_N = rows_N
        shown = len(rows_N) + len(self._files)
        self.query_one(VirtualTable).show_rows(shown)
        title = self.group.title if self.group else "all pictures"
        held = f' with "{safe_text(self._filter, limit=20)}"' if self._filter else ""
        self.query_one("#pictures-pane").border_title = Content(f"{count(shown)} {title}{held}"[:60])
        self._draw_picture()

    def _values(self, index: int) -> list[Cell]:
        if index >= len(self._rows_N):
            where, message = self._files[index - len(self._rows_N)]
            return [(f" {Path(where).name or '-'}: {message}", "bad"), ("", ""), ("", "")]
        assert self._shown is not None
        row = int(self._rows_N[index])
        width, height = self._shown.catalog.sizes_N2[row].tolist()
        tokens = str(self._facts.tokens_N[row]) if self._facts is not None else ""
        is_cut = self._facts is not None and self._facts.tokens_N[row] > self._facts.limit
        peers = self.group.peers if self.group else None
        twin = f"  = {self._shown.catalog.keys[peers[row]]}" if peers and row in peers else ""
        return [
            (f" {self._shown.catalog.keys[row]}{twin}", ""),
            (f"{width}\u00d7{height}", "dim"),
            (tokens + ("!" if is_cut else ""), "warn" if is_cut else "dim"),
        ]

    @on(RowList.Moved, "#pictures")
    def _draw_picture(self) -> None:
        self._pane.show(self._shown, self.row)

    # ---- beside it

    def action_side(self) -> None:
        """Show the next of token lengths, tags and folders."""
        self._side.next_side()

    @on(DataSide.TagChosen)
    def _choose_tag(self, event: DataSide.TagChosen) -> None:
        self._set_filter(event.tag)
        self._list("pictures").focus()

    @on(DataSide.FolderChosen)
    def _choose_folder(self) -> None:
        self.action_edit()

    # ---- filter

    def action_filter(self) -> None:
        """Show the filter."""
        self.query_one("#filter").display = True
        self.query_one("#filter").focus()

    @on(Input.Changed, "#filter")
    def _filter_changed(self, event: Input.Changed) -> None:
        self._filter = event.value.strip()
        self._draw_pictures()

    @on(Input.Submitted, "#filter")
    def _filter_done(self) -> None:
        self.query_one("#filter").display = bool(self._filter)
        self._list("pictures").focus()

    def _set_filter(self, text: str) -> None:
        field = self.query_one("#filter", Input)
        with self.prevent(Input.Changed):
            field.value = text
        field.display = bool(text)
        self._filter = text.strip()
        self._draw_pictures()

    def on_key(self, event: events.Key) -> None:
        """Let Esc end the filter, before it would leave the wizard."""
        if event.key == "escape" and (self._filter or self.query_one("#filter").has_focus):
            event.stop()
            self._set_filter("")
            self._list("pictures").focus()

    # ---- actions

    @on(RowList.Chosen, "#findings")
    def _to_pictures(self) -> None:
        self._list("pictures").focus()

    @on(RowList.Chosen, "#pictures")
    def action_view(self) -> None:
        """Show the picture large, or say what is wrong with a file that is none."""
        place = self._list("pictures").cursor
        if self.row is None:
            if place - len(self._rows_N) < len(self._files):
                where, message = self._files[place - len(self._rows_N)]
                self.post_message(Say(f"{where}: {message}", "warning"))
            return
        self._view()

    def _view(self) -> None:
        from sdtui.screens.picture_viewer import PictureViewer

        assert self._shown is not None
        mode = picture_mode(self.app.terminal)  # type: ignore[attr-defined]
        viewer = PictureViewer(self._shown, self._rows_N, self._list("pictures").cursor, mode)
        self.app.push_screen(viewer, self._viewed)

    def _viewed(self, place: int | None) -> None:
        """Go on at the picture that was shown last."""
        self.query_one(VirtualTable).show_rows(len(self._rows_N) + len(self._files), cursor=place)
        self._pane.redraw()

    def action_cancel_scan(self) -> None:
        """Stop the scan, or scan again."""
        if self._scanned is not None:
            self._scanned = None
            self.post_message(CancelPlan())
        else:
            self.post_message(Say("scanning again"))
            self.post_message(MakePlan())
        self._draw_source()

    def action_add(self) -> None:
        """Ask for a folder or file and add it."""
        from sdtui.screens.path_prompt import PathPrompt

        title = "Folder of pictures, metadata .json, or dataset.toml"
        self.app.push_screen(PathPrompt(title, check=kind_of_source), self._add)

    def _add(self, path: str | None) -> None:
        if path:
            self.change_by(partial(add_source, self.draft, Path(path)), f"added {Path(path).name}")

    def action_remove(self) -> None:
        """Take a folder out of the data set."""
        if self._side.folder is None:
            self.post_message(Say("t shows the folders: there x takes one out of the data set"))
        else:
            self.change_by(partial(remove_source, self.draft, self._side.folder), "folder removed")

    def action_edit(self) -> None:
        """Edit the options of the folder under the cursor, else of the folder that the picture lies in."""
        from sdtui.screens.subset_dialog import SubsetDialog

        if self._shown is None:
            self.post_message(Say("there is no folder to edit: a adds one"))
            return
        number = self._side.folder
        if number is None:
            number = int(self._shown.catalog.subsets_N[self.row]) if self.row is not None else 0
        self.app.push_screen(SubsetDialog(self.draft, self._shown.config, number, self.change_by))

    def action_fix(self) -> None:
        """Fix the finding, where a setting does it."""
        group = self.group
        if group is None or group.changes is None:
            hint = f"{group.title}: {group.fix or 'nothing needs to be done'}" if group else "choose a finding first"
            self.post_message(Say(hint))
        elif self._shown is not None and set(group.changes) <= _PARTS_KEYS and len(self._shown.config.datasets) == 1:
            self.change_by(partial(set_part, self.draft, 0, group.changes), group.fix)
        else:
            self.change(group.changes, group.fix)

    @work(thread=True, group="write")
    def change_by(self, make: Callable[[], Changes], label: str) -> None:
        """Change settings by what a file operation returns."""
        try:
            changes: Mapping[str, object] = make()
        except (EngineError, OSError) as error:
            self.post_message(Say(safe_text(str(error), limit=400), "error"))
            return
        self.change(changes, label)

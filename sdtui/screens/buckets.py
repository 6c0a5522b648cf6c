"""Page 3, Buckets: which shapes are trained, what is cut away for them, and what other settings would do, live."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Static
from textual.worker import get_current_worker

from engine.dataset.keys import PART_SETTINGS
from engine.errors import EngineError, Problem, safe_text
from sdtui import format as fmt
from sdtui.bucket_facts import MUCH, BucketFacts, Rows, bucket_facts, planned_again, short
from sdtui.dataset_file import Changes, keys_in_file, set_part
from sdtui.draft import Draft
from sdtui.format import count, fit
from sdtui.keys import bindings
from sdtui.messages import DraftChanged, PlanChanged, PlanFailed, Say
from sdtui.pages import WizardPage
from sdtui.terminal import picture_mode
from sdtui.widgets.field import Field
from sdtui.widgets.histogram import Bar, Histogram, bar_of
from sdtui.widgets.picture_pane import PicturePane, prepare_to_show
from sdtui.widgets.row_list import Cell, RowList
from sdtui.widgets.shape_list import LABELS, ShapeList, stepped
from sdtui.widgets.virtual_table import Column, VirtualTable

if TYPE_CHECKING:
    from engine.plan import Plan
    from engine.settings import Settings

_NARROW = (
    Column(title=" size", width=10), Column(title=""), Column(title="pics", width=6, is_right=True),
    Column(title="batch", width=5, is_right=True), Column(title="short", width=5, is_right=True),
)  # fmt: skip
_WIDE = (*_NARROW, Column(title="cut", width=6, is_right=True))
_NO_ROWS: Rows = np.array([], np.int64)


class BucketsPage(WizardPage):
    """Settings, effect, buckets, and the pictures that lose most."""

    DEFAULT_CSS = Path(__file__).with_suffix(".tcss").read_text("utf-8")
    SCOPED_CSS = False
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("buckets")]

    @dataclass
    class Computed(Message):
        """A thread has bucketed the pictures anew, or says why that can't be done."""

        facts: BucketFacts | None
        given: list[frozenset[str]]
        error: str

    def __init__(self, draft: Draft, *, plan: "Plan | None" = None) -> None:
        super().__init__(draft, plan=plan)
        self._facts: BucketFacts | None = None
        self._before: BucketFacts | None = None
        self._given: list[frozenset[str]] = []
        self._error = ""
        self._rows_N = _NO_ROWS
        self._bucket: int | None = None

    # ---- layout

    def compose(self) -> ComposeResult:
        """Lay out the page."""
        with Vertical(classes="pane", id="shape-pane") as shape:
            shape.border_title = "Settings"
            shape.border_subtitle = "\u2190 \u2192 change"
            yield ShapeList(name="shape", origin=self._origin)
            yield Field(id="typed", select_on_focus=True)
        with Vertical(classes="pane", id="effect-pane") as effect:
            effect.border_title = "Effect"
            yield Static("", markup=False, id="effect")
        with Vertical(classes="pane", id="shapes-pane") as shapes:
            shapes.border_title = "Pictures by shape and by size"
            with Horizontal(id="shapes"):
                yield Histogram(name="aspects")
                yield Histogram(name="sizes")
        with Vertical(classes="pane", id="buckets-pane"):
            yield VirtualTable(_NARROW, self._bucket_values, name="buckets", empty=" no picture: page 2 names them")
        with Vertical(classes="pane", id="cut-pane"):
            yield RowList(self._cut_row, name="cut", empty=" nothing")
        yield PicturePane(picture_mode(self.app.terminal), name="cut-picture")  # type: ignore[attr-defined]

    def on_mount(self) -> None:
        """Start on the settings."""
        self._shape.focus()

    @property
    def _shape(self) -> ShapeList:
        return self.query_one(ShapeList)

    @property
    def _buckets(self) -> RowList:
        return self.query_one("#buckets", RowList)

    @property
    def _cut(self) -> RowList:
        return self.query_one("#cut", RowList)

    @property
    def _part(self) -> int:
        """The data set whose settings are shown: that of the bucket under the cursor."""
        if self._facts is None or self._buckets.cursor >= len(self._facts.plan.buckets):
            return 0
        return self._facts.plan.buckets[self._buckets.cursor].part

    def show_setting(self, name: str) -> None:
        """Bring a setting into view and focus it."""
        for place, key in enumerate(LABELS):
            if PART_SETTINGS[key] == name:
                self._shape.cursor = place
        self._shape.focus()

    def on_resize(self) -> None:
        """Show as many columns as fit."""
        self.query_one(VirtualTable).set_columns(_WIDE if self.app.size.width >= 120 else _NARROW)

    # ---- news

    @on(DraftChanged)
    def _draft_changed(self) -> None:
        if self.plan is not None:
            self._compute(self.plan, self.draft.settings)

    @on(PlanChanged)
    def _plan_changed(self, event: PlanChanged) -> None:
        self.plan = event.plan
        if event.plan is None:
            self._facts = self._before = None
            self._fail(getattr(self.screen, "plan_problems", ()))
        else:
            self._compute(event.plan, self.draft.settings)

    @on(PlanFailed)
    def _plan_failed(self, event: PlanFailed) -> None:
        self._fail(event.problems)

    def _fail(self, problems: Iterable[Problem]) -> None:
        self._error = next((str(problem) for problem in problems if problem.severity == "error"), "")
        self._draw()

    # Textual describes a worker by the repr of its arguments, which for a plan of 100,000 pictures takes 0.6 s.
    @work(thread=True, exclusive=True, group="compute", description="compute")
    def _compute(self, plan: "Plan", settings: "Settings") -> None:
        worker = get_current_worker()
        facts, given, error = None, [], ""
        prepare_to_show(plan)
        try:
            again = planned_again(plan, settings)
            given = keys_in_file(settings.dataset)
            facts = bucket_facts(again) if again is not None else None
        except EngineError as problem:
            error = str(problem)
        if not worker.is_cancelled:
            self.post_message(self.Computed(facts, given, error))

    @on(Computed)
    def _take(self, event: Computed) -> None:
        self._error = event.error
        if event.facts is not None:
            if self._facts is not None and not _is_same(self._facts, event.facts):
                self._before = self._facts
            self._facts, self._given = event.facts, event.given
        self._draw()

    # ---- drawing

    def _draw(self) -> None:
        facts = self._facts
        self._shape.show(facts.plan.config.datasets[self._part] if facts else None)
        self.query_one("#effect", Static).update(self._effect())
        for name, bins in (("aspects", facts.aspects), ("sizes", facts.sizes)) if facts else ():
            self.query_one(f"#{name}", Histogram).show([Bar(label=label, value=value) for label, value in bins])
        buckets = facts.plan.buckets if facts else ()
        title = fmt.plural(len(buckets), "bucket")
        self.query_one("#buckets-pane").border_title = title
        self.query_one(VirtualTable).show_rows(len(buckets))
        self._bucket = self._bucket if self._bucket is not None and self._bucket < len(buckets) else None
        self._list_cut()

    def _effect(self) -> Content:
        if self._error:
            return Content.assemble((f"\u2717 {safe_text(self._error, limit=400)}", "$error"))
        if self._facts is None:
            return Content("no pictures yet: page 2 names them")
        now, before = effects(self._facts), effects(self._before) if self._before else None
        parts: list[tuple[str, str] | str] = []
        for place, (label, value) in enumerate(now):
            old = before[place][1] if before else ""
            parts += [(fit(label, 14), "$muted"), (fit(value, 7, is_right=True), "bold")]
            parts += [(f" was {old}" if old and old != value else "", "$muted"), "\n"]
        return Content.assemble(*parts)

    def _bucket_values(self, index: int) -> list[Cell]:
        assert self._facts is not None
        bucket = self._facts.plan.buckets[index]
        most = max(other.images for other in self._facts.plan.buckets)
        left = short(bucket.items, bucket.batch_size)
        cut = f"{self._facts.max_cut_K[index]:.1%}"
        return [
            (f" {bucket.size[0]}\u00d7{bucket.size[1]}", ""),
            (bar_of(bucket.images / most, self._bar_room), "accent"),
            (count(bucket.images), ""),
            (count(bucket.batches), "dim"),
            (str(left) if left else "", "warn"),
            (cut, "warn" if self._facts.max_cut_K[index] > MUCH else "dim"),
        ]

    @property
    def _bar_room(self) -> int:
        """Cells of the column that has what the others leave."""
        columns = self.query_one(VirtualTable).columns
        return max(1, self._buckets.size.width - sum(column.width + 1 for column in columns if column.width) - 2)

    def _list_cut(self) -> None:
        facts = self._facts
        if facts is None:
            self._rows_N = _NO_ROWS
        elif self._bucket is None:
            self._rows_N = facts.worst_N
        else:
            self._rows_N = facts.rows_of(self._bucket)
        size = facts.plan.buckets[self._bucket].size if facts and self._bucket is not None else None
        shown = f"{size[0]}\u00d7{size[1]}: " if size else ""
        self.query_one("#cut-pane").border_title = f"{shown}cut away, worst first"
        self.query_one("#cut-pane").border_subtitle = "esc all buckets" if size else "enter shows"
        self._cut.show_rows(len(self._rows_N))
        self._draw_picture()

    def _cut_row(self, index: int, width: int) -> list[Cell]:
        assert self._facts is not None
        row = int(self._rows_N[index])
        cut = float(self._facts.cut_N[row])
        catalog = self._facts.plan.catalog
        shape, key = "{}\u00d7{}".format(*catalog.sizes_N2[row]), safe_text(catalog.keys[row], limit=300)
        return [
            (fit(f"{cut:.1%}", 7, is_right=True), "warn" if cut > MUCH else "dim"),
            (f" {fit(key, max(4, width - 19))} ", ""),
            (fit(shape, 10, is_right=True), "dim"),
        ]

    @on(RowList.Moved, "#cut")
    def _draw_picture(self) -> None:
        place = self._cut.cursor
        row = int(self._rows_N[place]) if place < len(self._rows_N) else None
        pane = self.query_one(PicturePane)
        if pane.display:
            pane.show(self._facts.plan if self._facts else None, row)

    @on(RowList.Moved, "#buckets")
    def _bucket_moved(self) -> None:
        if self._facts is not None:
            self._shape.show(self._facts.plan.config.datasets[self._part])

    @on(RowList.Chosen, "#buckets")
    def _choose_bucket(self, event: RowList.Chosen) -> None:
        self._bucket = event.index
        self._list_cut()
        self._cut.focus()

    # ---- settings

    def _origin(self, key: str) -> str:
        """Return where a value comes from, in a word."""
        if self._given and key in self._given[self._part]:
            return "in its file"
        origin = self.draft.origin(PART_SETTINGS[key])
        return "" if origin == "default" else origin

    @on(ShapeList.Stepped)
    def _stepped(self, event: ShapeList.Stepped) -> None:
        self._set(event.key, event.value)

    def _set(self, key: str, value: object) -> None:
        told = fmt.setting(value)
        self._change_by(partial(set_part, self.draft, self._part, {key: value}), f"{LABELS[key]} {told}")

    @work(thread=True, group="write")
    def _change_by(self, make: Callable[[], Changes], label: str) -> None:
        try:
            changes = make()
        except (EngineError, OSError) as error:
            self.post_message(Say(safe_text(str(error), limit=400), "error"))
            return
        shown = {key: fmt.setting(value) if isinstance(value, tuple) else value for key, value in changes.items()}
        self.change(shown, label)

    @on(RowList.Chosen, "#shape")
    def action_edit(self) -> None:
        """Type a value; a switch turns at once."""
        value = self._shape.value(self._shape.key) if self._facts else None
        if isinstance(value, bool):
            self._set(self._shape.key, not value)
        elif value is not None:
            field = self.query_one("#typed", Input)
            field.value = fmt.setting(value)
            field.display = True
            field.focus()

    @on(Input.Submitted, "#typed")
    def _typed(self, event: Input.Submitted) -> None:
        name, text = self._shape.setting, event.value.strip()
        problem = self.draft.try_value(name, text)
        if problem:
            self.post_message(Say(problem.message, "error"))
            return
        given = self.draft.with_values({name: text}).checked[0].settings.flat()
        self._set(self._shape.key, given[name])
        self._close_field()

    def _close_field(self) -> None:
        self.query_one("#typed").display = False
        self._shape.focus()

    def on_key(self, event: events.Key) -> None:
        """Let Esc leave the field, or go back to all buckets, before it would leave the wizard."""
        if event.key != "escape":
            return
        if self.query_one("#typed").has_focus:
            event.stop()
            self._close_field()
        elif self._bucket is not None:
            event.stop()
            self._bucket = None
            self._list_cut()
            self._buckets.focus()

    def _step(self, key: str, by: int = 1) -> None:
        if self._facts is not None:
            self._set(key, stepped(key, self._shape.value(key), by))

    def action_toggle_upscale(self) -> None:
        """Allow or forbid enlarging."""
        self._step("bucket_no_upscale")

    def action_toggle_buckets(self) -> None:
        """Turn buckets on or off."""
        self._step("enable_bucket")

    def action_more(self) -> None:
        """Take one picture more in a batch."""
        self._step("batch_size")

    def action_fewer(self) -> None:
        """Take one picture fewer in a batch."""
        self._step("batch_size", -1)

    def action_shapes(self) -> None:
        """Show the histograms in place of the effect."""
        self.toggle_class("-shapes")

    @on(RowList.Chosen, "#cut")
    def action_view(self) -> None:
        """Show the picture large."""
        from sdtui.screens.picture_viewer import PictureViewer

        if self._facts is not None and len(self._rows_N):
            mode = picture_mode(self.app.terminal)  # type: ignore[attr-defined]
            viewer = PictureViewer(self._facts.plan, self._rows_N, self._cut.cursor, mode)
            self.app.push_screen(viewer, self._viewed)

    def _viewed(self, place: int | None) -> None:
        """Go on at the picture that was shown last."""
        self._cut.show_rows(len(self._rows_N), cursor=place)
        self.query_one(PicturePane).redraw()


def effects(facts: BucketFacts) -> list[tuple[str, str]]:
    """Return what matters of buckets as labels and values."""
    plan = facts.plan
    return [
        ("pixels cut", f"{facts.pixels_cut:.1%}"),
        (f"cut over {MUCH:.0%}", count(facts.num_much)),
        ("enlarged", count(facts.num_enlarged)),
        ("batches/epoch", count(plan.batches_per_epoch)),
        ("short batches", count(facts.num_short)),
        ("steps/epoch", count(plan.steps_per_epoch)),
        ("buckets", count(len(plan.buckets))),
    ]


def _is_same(one: BucketFacts, other: BucketFacts) -> bool:
    return one.plan.config.datasets == other.plan.config.datasets and effects(one) == effects(other)

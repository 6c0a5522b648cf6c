"""The wizard's frame: steps, problem marks and forecast above, the present page, status and keys below.

It alone changes the draft: pages ask by message, and are told what came of it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container
from textual.message import Message

from engine.errors import Problem, ProblemsError, Severity
from sdtui import format as fmt
from sdtui.around import Around
from sdtui.breath import breath_of
from sdtui.draft import Draft, free_folder
from sdtui.fixes import fix_for, fix_text
from sdtui.keys import bindings
from sdtui.messages import (
    CancelPlan,
    ChangeSettings,
    DraftChanged,
    FixProblem,
    MakePlan,
    OpenStep,
    PlanChanged,
    PlanFailed,
    PlanProgress,
    StartRun,
)
from sdtui.outlook import PLANNED, TAKEN, find_plan, forecast, marks
from sdtui.pages import PAGES, WizardPage, load_in_thread, page_of
from sdtui.screens.wizard_file import WizardFile
from sdtui.widgets.key_footer import KeyFooter
from sdtui.widgets.status_line import StatusLine
from sdtui.widgets.step_bar import StepBar
from sdtui.widgets.too_small import TooSmall

if TYPE_CHECKING:
    from engine.plan import Plan


class WizardScreen(WizardFile):
    """Five pages over one draft."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("wizard")]

    @dataclass
    class Planned(Message):
        """A thread has made a plan, or failed to."""

        plan: "Plan | None"
        problems: tuple[Problem, ...] = ()

    def __init__(self, draft: Draft) -> None:
        super().__init__(draft)
        self.plan: Plan | None = None
        self.plan_problems: tuple[Problem, ...] = ()
        self.around = Around()
        draft.look_around = self.around.problems
        self._now = ""

    # ---- layout

    def compose(self) -> ComposeResult:
        """Lay out the frame; pages are mounted when they are first shown."""
        yield StepBar()
        yield Container(id="pages")
        yield StatusLine()
        yield KeyFooter()
        yield TooSmall()

    async def on_mount(self) -> None:
        """Show the first page that needs something, and begin to watch the disk."""
        await self._open(self._first_page())
        if self.draft.note:
            self._say(self.draft.note)
        self._make_plan()
        self._look()
        self.set_interval(1.0, lambda: self.app.screen is self and self._look())

    def _first_page(self) -> str:
        """Return Model for a new draft, and Review for one with nothing to correct."""
        wrong = [page_of(problem.about) for problem in self.draft.problems if problem.severity == "error"]
        return next((page.name for page in PAGES if page.name in wrong), "review")

    @property
    def page(self) -> WizardPage | None:
        """The page that is shown."""
        return next((page for page in self.pages if page.id == f"page-{self._now}"), None)

    @property
    def pages(self) -> list[WizardPage]:
        """The pages that have been shown."""
        return [page for page in self.query_one("#pages").children if isinstance(page, WizardPage)]

    async def _open(self, name: str, setting: str = "") -> None:
        """Show a page, importing and mounting it if need be."""
        if name != self._now:
            self._say("")  # What was said of another page.
        self._now = name
        if self.page is None:
            await self._mount_page(name)
        for child in self.query_one("#pages").children:
            child.display = child.id == f"page-{name}"
        page = self.page
        if page is not None:
            if setting and type(page).show_setting is WizardPage.show_setting:
                await self._open("options", setting)  # There every setting has a row.
            elif setting:
                page.show_setting(setting)
            else:
                self.call_after_refresh(self._focus_page)
        self._draw_bar()

    async def _mount_page(self, name: str) -> None:
        spec = next(page for page in PAGES if page.name == name)
        page: WizardPage = (await load_in_thread(spec.path))(self.draft, plan=self.plan)
        page.id = f"page-{name}"
        await self.query_one("#pages").mount(page)
        page.post_message(DraftChanged())
        page.post_message(PlanChanged(self.plan))

    def _focus_page(self) -> None:
        page = self.page
        if page is None or (self.focused is not None and page in self.focused.ancestors):
            return
        target = next((widget for widget in page.query("*") if widget.focusable), None)
        self.set_focus(target)

    def _draw_bar(self) -> None:
        for bar in self.query(StepBar):
            bar.show(self._now, marks(self.problems), forecast(self.plan, self.draft.settings))

    def _say(self, text: str, severity: Severity = "info") -> None:
        self.query_one(StatusLine).say(text, severity)

    def _tell(self, make: Callable[[], Message]) -> None:
        for page in self.pages:
            page.post_message(make())

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything that is wrong: settings, the run's folder, pictures."""
        taken = (TAKEN,) if self._is_taken else ()
        return (*self.draft.problems, *taken, *self.plan_problems, *self.around.problems(self.draft))

    # ---- changes

    def _changed(self, names: frozenset[str], said: str) -> None:
        self._say(said)
        self._tell(lambda: DraftChanged(names))
        self._draw_bar()
        self._save_soon()
        self._look()
        if names & PLANNED:
            self._make_plan()

    @on(ChangeSettings)
    def _change(self, event: ChangeSettings) -> None:
        try:
            names = self.draft.change(event.values, label=event.label, origin=event.origin)
        except ProblemsError as error:
            self._say(str(error), "error")
            return
        self._changed(names, f"{self.draft.undo_label}   z undo")

    def action_undo(self) -> None:
        """Undo the last change."""
        label = self.draft.undo_label
        self._changed(self.draft.undo(), f"undone: {label}   Z redo" if label else "nothing to undo")

    def action_redo(self) -> None:
        """Redo what was undone."""
        label = self.draft.redo_label
        self._changed(self.draft.redo(), f"done again: {label}" if label else "nothing to redo")

    @on(FixProblem)
    def _fix_problem(self, event: FixProblem) -> None:
        if event.problem is None:
            self.action_fix_all()
        else:
            self._fix([event.problem])

    def action_fix(self) -> None:
        """Fix the first problem that can be fixed, this page's first."""
        ordered = sorted(self.problems, key=lambda problem: page_of(problem.about) != self._now)
        self._fix([problem for problem in ordered if self.fix_for(problem)][:1] or ordered[:1])

    def action_fix_all(self) -> None:
        """Fix every problem that can be fixed; each fix is tried on what the ones before have left."""
        fixed: list[str] = []
        for _attempt in range(len(self.problems)):
            changes = next((found for problem in self.problems if (found := self.fix_for(problem))), None)
            if changes is None:
                break
            self._apply_fix(changes)
            fixed.append(fix_text(changes))
        left = len(self.problems)
        told = f" ({'; '.join(fixed)}), {left} left for you   z undoes the last" if fixed else f", {left} left for you"
        self._say(f"{fmt.plural(len(fixed), 'problem')} fixed{told}")

    def _fix(self, problems: list[Problem]) -> None:
        changes = self.fix_for(problems[0]) if problems else None
        if changes:
            self._apply_fix(changes)
        elif problems:
            self._say(f"{problems[0].message}: {problems[0].fix or 'this needs your decision'}", "warning")
        else:
            self._say("nothing to fix")

    def _apply_fix(self, changes: dict[str, object]) -> None:
        names = self.draft.change(changes, label=f"fix: {fix_text(changes)}")
        self._is_taken = self._is_taken and "output_dir" not in names
        self._changed(names, f"fixed: {fix_text(changes)}   z undo")

    def fix_for(self, problem: Problem) -> dict[str, object] | None:
        """Return the change that fixes a problem, or None where a person must decide."""
        if problem == TAKEN:
            output = Path(self.draft.settings.saving.output_dir)
            return {"output_dir": str(free_folder(output.parent, output.name))}
        changes = fix_for(self.draft, problem)
        return dict(changes) if changes else None

    # ---- steps

    @on(OpenStep)
    async def _open_step(self, event: OpenStep) -> None:
        await self._open(event.name, event.setting)

    @on(StepBar.Clicked)
    async def _clicked(self, event: StepBar.Clicked) -> None:
        await self._open(event.name)

    async def action_step(self, number: int) -> None:
        """Go to a step by its number."""
        await self._open(PAGES[number - 1].name)

    async def action_next(self) -> None:
        """Go to the next step."""
        await self._move(1)

    async def action_previous(self) -> None:
        """Go to the step before."""
        await self._move(-1)

    async def _move(self, offset: int) -> None:
        names = [page.name for page in PAGES]
        await self._open(names[max(0, min(names.index(self._now) + offset, len(names) - 1))])

    def action_close(self) -> None:
        """Go back to Home; the draft is on disk."""
        self.dismiss(None)
        if self.draft.is_changed:
            self._save_draft()
            self._app.say("the draft is kept: w on Home goes on with it")

    # ---- plan

    @on(CancelPlan)
    def _cancel_plan(self) -> None:
        self.workers.cancel_group(self, "plan")
        self._say("the scan was stopped")

    @on(MakePlan)
    @work(thread=True, exclusive=True, group="plan")
    def _make_plan(self) -> None:
        breath = breath_of(self._app)
        time.sleep(0.15)  # A key held down changes a number many times.
        if breath():
            return
        settings = self.draft.settings
        self.around.look(settings)
        plan, problems = find_plan(settings, report=self._report, is_cancelled=breath)
        if not breath():
            self.post_message(self.Planned(plan, problems))

    def _report(self, done: int, total: int) -> None:
        self.post_message(PlanProgress(done, total))

    @on(PlanProgress)
    def _progress(self, event: PlanProgress) -> None:
        self._tell(lambda: PlanProgress(event.done, event.total))

    @on(Planned)
    def _planned(self, event: Planned) -> None:
        self.plan = self.around.plan = event.plan
        self.plan_problems = event.problems
        for page in self.pages:
            page.plan = event.plan
        self._tell(lambda: PlanChanged(event.plan))
        if event.plan is None and event.problems:
            self._tell(lambda: PlanFailed(event.problems))
        self._draw_bar()

    # ---- start

    async def action_start(self) -> None:
        """Go to Review; on Review, start."""
        if self._now == "review":
            self.post_message(StartRun())
        await self._open("review")

    @on(StartRun)
    def _start(self, event: StartRun) -> None:
        errors = [problem for problem in self.problems if problem.severity == "error"]
        if errors:
            self._say(f"{fmt.plural(len(errors), 'error')} first: {replace(errors[0], where='')}", "error")
            return
        if not self.save():
            return
        if event.where == "here":
            self._app.start_here(self.draft.saved)
        else:
            self._app.start_background(self.draft.target, Path(self.draft.settings.saving.output_dir))

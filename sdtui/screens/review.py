"""The last page: the TOML as it will be written, what the run will do, the command without a screen, and the start."""

import difflib
import shlex
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from engine.display import size
from engine.errors import safe_text
from sdtui import format as fmt
from sdtui.draft import Draft
from sdtui.format import SEVERITY_MARKS
from sdtui.keys import bindings
from sdtui.messages import DraftChanged, OpenStep, PlanChanged, PlanFailed, Say, StartRun
from sdtui.pages import WizardPage, page_of
from sdtui.recent import shown_path
from sdtui.widgets.row_list import Cell, RowList

if TYPE_CHECKING:
    from engine.plan import Plan

MAX_LINE = 1000


class Written(Message, bubble=False):
    """A thread has read the file that saving would replace."""

    def __init__(self, text: str | None) -> None:
        super().__init__()
        self.text = text


class ReviewPage(WizardPage):
    """Shows the text or its difference to the file, the plan, and the command."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("review")]

    def __init__(self, draft: Draft, *, plan: object = None) -> None:
        super().__init__(draft, plan=plan)  # type: ignore[arg-type]
        self._written: str | None = None
        self._is_diff = True
        self._lines: list[str] = []

    def compose(self) -> ComposeResult:
        """Lay out the panes."""
        with Vertical(classes="pane", id="text-pane"):
            yield RowList(self._line, name="text")
        with Vertical(classes="pane", id="plan-pane") as plan:
            plan.border_title = "Plan"
            yield Static("", markup=False, id="plan")
        with Vertical(classes="pane", id="command-pane") as command:
            command.border_title = "Start"
            yield Static("", markup=False, id="command")

    # ---- drawing

    @on(DraftChanged)
    def _read_file(self) -> None:
        self._read()
        self._draw()

    @work(thread=True, exclusive=True, group="written")
    def _read(self) -> None:
        try:
            self.post_message(Written(self.draft.target.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError):
            self.post_message(Written(None))

    @on(Written)
    def _take_file(self, event: Written) -> None:
        self._written = event.text
        self._draw()

    @on(PlanChanged)
    @on(PlanFailed)
    def _draw(self) -> None:
        text = self.draft.text()
        self._lines = self._difference(text) if self._shows_diff else text.splitlines()
        self.query_one("#text", RowList).show_rows(len(self._lines))
        pane = self.query_one("#text-pane")
        pane.border_title = Content(shown_path(self.draft.target))
        pane.border_subtitle = Content(self._file_state(text))
        self.query_one("#plan", Static).update(self._plan_text())
        self.query_one("#command", Static).update(self._command_text())

    @property
    def _shows_diff(self) -> bool:
        return self._is_diff and self._written is not None and self._written != self.draft.text()

    def _file_state(self, text: str) -> str:
        if self._written is None:
            return "a new file"
        if self._written == text:
            return "saved"
        return "what saving changes   d whole text" if self._is_diff else "the whole text   d what changes"

    def _difference(self, text: str) -> list[str]:
        before, after = (self._written or "").splitlines(), text.splitlines()
        return [line.rstrip("\n") for line in difflib.unified_diff(before, after, lineterm="", n=3)][2:]

    def _line(self, index: int, _width: int) -> list[Cell]:
        line = safe_text(self._lines[index], limit=MAX_LINE)
        if self._shows_diff:
            style = {"+": "good", "-": "bad", "@": "dim"}.get(line[:1], "")
            return [(f" {line}", style)]
        return [(" ", ""), *toml_cells(line)]

    def _plan_text(self) -> Content:
        problems = getattr(self.screen, "problems", self.draft.problems)
        errors = [problem for problem in problems if problem.severity == "error"]
        warnings = [problem for problem in problems if problem.severity == "warning"]
        lines: list[str | tuple[str, str]] = [f"{line}\n" for line in self._plan_lines()]
        for problem in (*errors, *warnings)[:4]:
            mark = SEVERITY_MARKS[problem.severity]
            lines.append((f"{mark} {safe_text(problem.message, limit=120)} (page {_number(problem.about)})\n", "bold"))
        if len(errors) + len(warnings) > 4:
            lines.append(f"  and {len(errors) + len(warnings) - 4} more: page 4 lists them\n")
        if not errors:
            lines.append(f"{SEVERITY_MARKS['warning']} {fmt.plural(len(warnings), 'warning')}" if warnings else "ready")
        return Content.assemble(*lines)

    def _plan_lines(self) -> list[str]:
        plan, training, optimizer = self.plan, self.draft.settings.training, self.draft.settings.optimizer
        if plan is None:
            counted = ["the pictures are not planned yet"]
        else:
            counted = [
                f"{fmt.count(plan.num_images)} pictures in {fmt.plural(len(plan.buckets), 'bucket')}",
                f"{fmt.count(plan.steps)} steps, {fmt.plural(plan.epochs, 'epoch')} of {plan.steps_per_epoch}",
                _disk_line(plan),
            ]
        trains = "U-Net and text encoder" if training.train_text_encoder else "U-Net"
        if training.train_hypernetwork:
            trains = "a hypernetwork"
        rate = fmt.number(optimizer.learning_rate)
        return [
            *counted,
            f"{trains}, {optimizer.optimizer_type}, {rate} {optimizer.lr_scheduler}, seed {training.seed}",
        ]

    @property
    def command(self) -> str:
        """The command that trains this without a screen."""
        return f"sdtui train {shlex.quote(str(self.draft.target))}"

    def _command_text(self) -> Content:
        shown = safe_text(self.command.removeprefix("sdtui train "), limit=400)
        room = self.query_one("#command").content_size.width - len("$ sdtui train ")
        return Content.assemble(
            ("s", "bold"), "  save and train in this process\n",
            ("b", "bold"), "  save and train in its own process\n",
            ("w", "bold"), "  save only\n",
            "the window may be closed at any time\n\n",
            "without a screen, ", ("y", "bold"), " copies it:\n",
            (f"$ sdtui train {fmt.fit_end(shown, max(8, room))}", "dim"),
        )  # fmt: skip

    def on_resize(self) -> None:
        """Show as much of the command as there is room for."""
        self.query_one("#command", Static).update(self._command_text())

    # ---- actions

    def action_diff(self) -> None:
        """Show what saving changes, or the whole text."""
        if self._written in (None, self.draft.text()):
            state = "the file is new" if self._written is None else "the file holds just this"
            self.post_message(Say(f"{state}: nothing to compare"))
            return
        self._is_diff = not self._is_diff
        self._draw()

    def action_copy(self) -> None:
        """Copy the command."""
        self.post_message(Say(self.app.copy_text(self.command)))  # type: ignore[attr-defined]

    def action_save(self) -> None:
        """Write the file."""
        self.screen.action_save()  # type: ignore[attr-defined]

    def action_start_here(self) -> None:
        """Save, and train in this process."""
        self.post_message(StartRun("here"))

    def action_start_background(self) -> None:
        """Save, and train in a process of its own."""
        self.post_message(StartRun("background"))

    def show_setting(self, name: str) -> None:
        """Settings are edited on other pages."""
        self.post_message(OpenStep(page_of(name), name))


def _disk_line(plan: "Plan") -> str:
    """Return what the run puts on disk; the size of a model is known only once it is loaded."""
    from engine.outlay import disk_bytes

    disk = disk_bytes(plan)
    latents = f", latents {size(disk['latents'])}" if disk["latents"] else ""
    return f"saves {fmt.plural(disk['num_models'] or 0, 'model')}{latents}, log about {size(disk['events'] or 0)}"


def toml_cells(line: str) -> list[Cell]:
    """Return a line of TOML coloured by its parts; the text itself is never changed."""
    stripped = line.lstrip()
    if stripped.startswith("#"):
        return [(line, "dim")]
    if stripped.startswith("["):
        return [(line, "title")]
    key, equals, value = line.partition("=")
    if not equals:
        return [(line, "good")]
    return [(key, ""), (equals, "dim"), (value, "good" if value.strip()[:1] in ('"', "'") else "accent")]


def _number(setting: str) -> int:
    from sdtui.pages import PAGES

    return [page.name for page in PAGES].index(page_of(setting)) + 1

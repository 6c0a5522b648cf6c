"""The doctor: what the terminal and the machine can do, and what would help."""

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Static

from sdtui.checkup import Finding, findings, report
from sdtui.format import SEVERITY_MARKS, fit
from sdtui.keys import bindings
from sdtui.terminal import Terminal, detect
from sdtui.widgets.key_footer import KeyFooter
from sdtui.widgets.row_list import Cell, RowList
from sdtui.widgets.status_line import StatusLine
from sdtui.widgets.too_small import TooSmall

if TYPE_CHECKING:
    from sdtui.app import SdtuiApp

_STYLES = {"error": "bad", "warning": "warn", "info": "good"}
LAG_SECONDS = 1.0


class DoctorScreen(Screen[None]):
    """Facts with advice; nothing here changes anything."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("doctor")]
    AUTO_FOCUS = "#report"

    @dataclass
    class Found(Message):
        """What a thread has found."""

        findings: list[Finding]

    def __init__(self, terminal: Terminal | None = None) -> None:
        super().__init__()
        self._terminal = terminal or detect()
        self._findings: list[Finding] = []
        self._asked: list[Finding] = []

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield Static(Content.assemble((" Doctor ", "bold reverse"), "  what this place can do"), id="top")
        with Vertical(classes="pane"):
            yield RowList(self._row, name="report", empty="looking ...")
            yield Static("", markup=False, id="advice")
        yield StatusLine()
        yield KeyFooter()
        yield TooSmall()

    def on_mount(self) -> None:
        """Begin to look."""
        self.action_again()

    @property
    def _app(self) -> "SdtuiApp":
        return cast("SdtuiApp", self.app)

    @property
    def shown(self) -> list[Finding]:
        """All findings."""
        return [*self._findings, *self._asked]

    def _row(self, index: int, width: int) -> list[Cell]:
        finding = self.shown[index]
        mark = "\u2713" if finding.severity == "info" else SEVERITY_MARKS[finding.severity]
        facts = 44 if width < 100 else 52
        return [
            (f" {mark} ", _STYLES[finding.severity]),
            (fit(finding.topic, 15), ""),
            (fit(finding.fact, min(facts, width - 18)), ""),
            (fit(f" {finding.advice}", width - 18 - facts), "dim"),
        ]

    @work(thread=True, exclusive=True, group="doctor")
    def _look(self) -> None:
        self.post_message(self.Found(findings(self._terminal)))

    @on(Found)
    def _show(self, event: Found) -> None:
        self._findings = event.findings
        self._draw()

    def _draw(self) -> None:
        self.query_one(RowList).show_rows(len(self.shown))
        self._advise()

    @on(RowList.Moved)
    def _advise(self) -> None:
        shown = self.shown
        cursor = self.query_one(RowList).cursor
        text = f"{shown[cursor].fact}\n{shown[cursor].advice}" if cursor < len(shown) else ""
        self.query_one("#advice", Static).update(Content(text))

    def action_again(self) -> None:
        """Look again."""
        self._app.say("checking again")
        self._look()
        self._measure_lag()

    @work(exclusive=True, group="lag")
    async def _measure_lag(self) -> None:
        """Measure how late the event loop wakes up: what a key waits for."""
        worst, end = 0.0, time.monotonic() + LAG_SECONDS
        while time.monotonic() < end:
            start = time.monotonic()
            await asyncio.sleep(0.01)
            worst = max(worst, time.monotonic() - start - 0.01)
        is_slow = worst > 0.1
        self._keep(
            Finding(
                topic="Screen",
                fact=f"answers a key within {worst * 1000:.0f} ms",
                severity="warning" if is_slow else "info",
                advice="a training in this process may be slowing it: start in the background (b)" if is_slow else "",
            )
        )
        self._app.say("checked again")

    def action_ask(self) -> None:
        """Ask the terminal itself for pictures."""
        from sdtui.graphics_query import ask_graphics

        answer = ask_graphics(self._app)
        self._app.say(f"the terminal was asked for real pictures: {answer}")
        advice = "" if answer.startswith("no") else "SDTUI_PICTURES=kitty or sixel uses it where it is not recognised"
        self._keep(Finding(topic="Asked", fact=f"real pictures: {answer}", advice=advice))

    def _keep(self, finding: Finding) -> None:
        self._asked = [*(old for old in self._asked if old.topic != finding.topic), finding]
        self._draw()

    def action_copy(self) -> None:
        """Copy the report."""
        self._app.say(self._app.copy_text(report(self.shown)))

    def action_bell(self) -> None:
        """Send a test notification."""
        self._app.notify_terminal("sdtui", "this is how the end of a training is announced")
        self._app.say("sent: a notification where the terminal knows OSC 9, a bell elsewhere")

    def action_close(self) -> None:
        """Go back to Home."""
        self.dismiss(None)

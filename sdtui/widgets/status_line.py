"""What has just happened, in one line, or in as many as it takes; it never asks for anything."""

from textual.content import Content
from textual.widgets import Static

from engine.errors import Severity, safe_text
from sdtui.format import SEVERITY_MARKS


class StatusLine(Static):
    """Shows one message, marked by its severity in word and shape as well as in colour."""

    def __init__(self) -> None:
        super().__init__(Content(""), markup=False)

    def say(self, text: str, severity: Severity = "info") -> None:
        """Show a message in place of the one before."""
        mark = "" if severity == "info" else f"{SEVERITY_MARKS[severity]} "
        self.set_classes(f"-{severity}")
        self.update(Content(mark + safe_text(" ".join(text.splitlines()), limit=400)))

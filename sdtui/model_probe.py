"""Measuring on the model itself whether it predicts noise or v: a key of the Model page, a process of its own."""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from textual import on, work
from textual.message import Message

from engine.errors import safe_text
from sdtui.messages import Say
from sdtui.pages import WizardPage

TIMEOUT_SECONDS = 3600


class PredictionProbe(WizardPage):
    """A page that can have the prediction measured; torch and the model are loaded by another process, and freed."""

    @dataclass
    class Probed(Message):
        """The probe has answered: its verdict, or nothing, and a sentence."""

        verdict: str
        text: str

    def action_probe(self) -> None:
        """Measure on pictures of the data set what the model predicts, and take the answer over."""
        settings = self.draft.settings
        if not settings.model.pretrained_model_name_or_path or self.plan is None:
            self.post_message(Say("a probe needs a model and pictures: choose both first", "warning"))
            return
        self.post_message(Say("measuring on four pictures what the model predicts; minutes without a card"))
        self._probe()

    @work(thread=True, exclusive=True, group="probe")
    def _probe(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "run.toml"
            path.write_text(self.draft.text(path.parent), encoding="utf-8")
            verdict, text = ask_probe(path)
        self.post_message(self.Probed(verdict, text))

    @on(Probed)
    def _take_probed(self, event: Probed) -> None:
        if event.verdict in ("epsilon", "v_prediction"):
            self.change({"v_parameterization": event.verdict == "v_prediction"}, event.text)
        else:
            self.post_message(Say(event.text, "warning"))


def ask_probe(run: Path) -> tuple[str, str]:
    """Return the verdict and sentence of the prediction's probe on a run.toml; without an answer, why there is none."""
    command = [sys.executable, "-P", "-m", "engine", "probe", str(run), "prediction", "--json"]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and arguments
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"the probe gave no answer: {safe_text(str(error))}"
    try:
        (result,) = json.loads(done.stdout)
    except ValueError:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return "", f"the probe gave no answer: {safe_text(said[-1]) if said else 'it ended without a word'}"
    return result["verdict"], result["message"]

"""Samples of several runs for the same prompt at the same step, side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Static

from engine.errors import safe_text
from engine.events import Sampled
from sdtui.compare import Samples, common_steps, prompts_of
from sdtui.widgets.gallery import sample_path
from sdtui.widgets.picture import Picture

if TYPE_CHECKING:
    from sdtui.graphics import Mode


class SameSamples(Vertical):
    """One picture a run; it says so where step or seed are not the same."""

    def __init__(self, mode: "Mode", *, name: str, slots: int) -> None:
        super().__init__(id=name, classes="pane")
        self._mode: Mode = mode
        self._slots = slots
        self._runs: Sequence[tuple[str, Path, Samples]] = ()
        self._prompt = 0
        self._step: int | None = None
        self._drawn: list[tuple[str, Path, Sampled | None]] | None = None
        self.border_title = "Samples"

    def compose(self) -> ComposeResult:
        """Lay out the slots."""
        with Horizontal(id="pictures"):
            for slot in range(self._slots):
                with Vertical(classes="slot", id=f"same-{slot}"):
                    yield Picture(self._mode)
                    yield Static("", markup=False, classes="caption")

    def show(self, runs: Sequence[tuple[str, Path, Samples]]) -> None:
        """Compare runs, each with its name, folder and samples."""
        self._runs = runs
        self._draw()

    def move_step(self, by: int) -> None:
        """Compare an earlier (-1) or later (1) step."""
        steps = common_steps([samples for _name, _path, samples in self._runs], self._prompt)
        if steps:
            place = steps.index(self._step) if self._step in steps else len(steps) - 1
            self._step = steps[max(0, min(place + by, len(steps) - 1))]
            self._draw()

    def move_prompt(self, by: int) -> None:
        """Compare another prompt."""
        prompts = prompts_of([samples for _name, _path, samples in self._runs])
        if prompts:
            place = prompts.index(self._prompt) if self._prompt in prompts else 0
            self._prompt = prompts[(place + by) % len(prompts)]
            self._draw()

    def _draw(self) -> None:
        steps = common_steps([samples for _name, _path, samples in self._runs], self._prompt)
        step = self._step if self._step in steps else steps[-1] if steps else None
        drawn = [self._sample_at(samples, step) for _name, _path, samples in self._runs]
        signature = [(name, path, sample) for (name, path, _), sample in zip(self._runs, drawn, strict=True)]
        if signature == self._drawn:
            return
        self._drawn = signature
        known = [sample for sample in drawn if sample]
        for slot in range(self._slots):
            box = self.query_one(f"#same-{slot}")
            box.display = slot < len(self._runs)
            if box.display:
                name, path, _samples = self._runs[slot]
                sample = drawn[slot]
                box.query_one(Picture).show(sample_path(path, sample.path) if sample else None)
                text = f"{name}  seed {sample.seed}" if sample else f"{name}  no sample"
                box.query_one(".caption", Static).update(Content(text))
        self._describe(known)

    def _sample_at(self, samples: Samples, step: int | None) -> Sampled | None:
        return samples.get(step, {}).get(self._prompt) if step is not None else None

    def _describe(self, known: Sequence[Sampled]) -> None:
        if not known:
            self.border_title, self.border_subtitle = "Samples", "none at a common step"
            return
        self.border_title = Content(f"Prompt {self._prompt + 1}: {safe_text(known[0].prompt, limit=60)}")
        same = len({sample.seed for sample in known}) == 1 and len({sample.prompt for sample in known}) == 1
        what = "same seed" if same else "seed or prompt differ"
        self.border_subtitle = f"step {known[0].step}, {what}   , . step   \u2190 \u2192 prompt"

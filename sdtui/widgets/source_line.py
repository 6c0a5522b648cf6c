"""One line: where the pictures come from and how many there are, or how far they have been read."""

from typing import TYPE_CHECKING

from textual.content import Content
from textual.widgets import Static

from sdtui import recent
from sdtui.format import bar, count, fit_end, plural

if TYPE_CHECKING:
    from engine.plan import Plan
    from engine.settings import Settings

NOTHING = "no pictures are named: a adds a folder, a metadata file or a dataset.toml"


class SourceLine(Static):
    """Shows the source of a data set, its size, and the progress of a scan."""

    def __init__(self, *, name: str) -> None:
        super().__init__("", markup=False, id=name)
        self._shown: tuple[Settings, Plan | None, tuple[int, int] | None] | None = None

    def show(self, settings: "Settings", plan: "Plan | None", scanned: tuple[int, int] | None) -> None:
        """Draw the line; `scanned` is (done, total) while a scan goes on, total 0 while it is not known."""
        self._shown = settings, plan, scanned
        self._draw()

    def on_resize(self) -> None:
        """Cut the source anew."""
        self._draw()

    def _draw(self) -> None:
        if self._shown is not None:
            settings, plan, scanned = self._shown
            width = max(20, self.size.width - 2)
            self.update(Content(progress_text(*scanned) if scanned else _source_text(settings, plan, width)))


def progress_text(done: int, total: int) -> str:
    """Return how far a scan has come."""
    known = f"{count(done)}/{count(total)} {bar(done / total, 20)}" if total else f"{count(done)} found so far"
    return f"reading headers and captions: {known}   c stops"


def _source_text(settings: "Settings", plan: "Plan | None", width: int) -> str:
    dataset = settings.dataset
    given = [dataset.dataset_config] if dataset.dataset_config else [dataset.in_json, dataset.train_data_dir]
    named = " in ".join(recent.shown_path(path) for path in given if path)
    if plan is None:
        return named or NOTHING
    told = f"{plural(plan.num_images, 'picture')}, {count(len(plan.rows_M))} an epoch"
    return f"{fit_end(named, width - len(told) - 3)}   {told}"

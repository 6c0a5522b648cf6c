"""A picture large: whole with its crop, as the model sees it, and how each epoch draws its caption and crop."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from engine.dataset.augment import Augmentation
from engine.errors import safe_text
from sdtui.dataset_facts import Rows
from sdtui.format import count, fit
from sdtui.keys import bindings
from sdtui.widgets.crop_picture import CropPicture
from sdtui.widgets.key_footer import KeyFooter
from sdtui.widgets.picture_pane import caption_content, place_text
from sdtui.widgets.row_list import Cell, RowList

if TYPE_CHECKING:
    from engine.plan import Plan
    from sdtui.graphics import Mode

DRAWS = 12  # Showings listed at first; Space asks for one more.


@dataclass(frozen=True, slots=True, kw_only=True)
class Showing:
    """What one epoch makes of a picture."""

    epoch: int
    caption: str
    augmentation: Augmentation


class DrawList(RowList, inherit_bindings=False):
    """The showings; left and right are left to the viewer."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("list")]


class PictureViewer(ModalScreen[int]):
    """Looks through pictures; dismissed with the place in `rows_N` of the last one shown."""

    CSS = """
    PictureViewer #viewer { width: 96%; height: 94%; background: $background; }
    PictureViewer #pair { height: 1fr; min-height: 4; }
    PictureViewer .half { width: 1fr; height: 1fr; }
    PictureViewer .half CropPicture { width: 1fr; height: 1fr; color: $muted; }
    PictureViewer .half Static { height: 1; width: 1fr; text-align: center; color: $muted; }
    PictureViewer .line { height: 1; padding: 0 1; }
    PictureViewer #caption { height: auto; max-height: 4; padding: 0 1; }
    PictureViewer #draws { height: 6; }
    PictureViewer.-tall #draws { height: 12; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("picture")]

    def __init__(self, plan: "Plan", rows_N: Rows, place: int, mode: "Mode") -> None:
        super().__init__()
        self._plan = plan
        self._rows_N = rows_N
        self._place = place
        self._mode: Mode = mode
        self._showings: list[Showing] = []

    def compose(self) -> ComposeResult:
        """Lay out the viewer."""
        with Vertical(classes="pane", id="viewer"):
            with Horizontal(id="pair"):
                for name, title in (("whole", "the whole picture"), ("model", "what the model sees")):
                    with Vertical(classes="half"):
                        yield CropPicture(self._mode, view="model" if name == "model" else "whole", name=name)
                        yield Static(title, markup=False)
            yield Static("", markup=False, id="facts", classes="line")
            yield Static("", markup=False, id="caption")
            yield Static("", markup=False, id="draws-heading", classes="heading")
            yield DrawList(self._showing_row, name="draws")
            yield KeyFooter()

    def on_mount(self) -> None:
        """Show the picture."""
        self.query_one(RowList).focus()
        self._show()

    @property
    def row(self) -> int:
        """The row of the catalog that is shown."""
        return int(self._rows_N[self._place])

    def _show(self) -> None:
        """Show the picture at the present place, from its first showing on."""
        plan, row = self._plan, self.row
        title = (
            f"{safe_text(plan.catalog.keys[row], limit=300)}   {count(self._place + 1)} of {count(len(self._rows_N))}"
        )
        self.query_one("#viewer").border_title = Content(title)
        self.query_one("#facts", Static).update(Content(f"{place_text(plan, row)}   {self._file_text(row)}"))
        self._showings = [self._draw(epoch) for epoch in range(1, min(DRAWS, plan.epochs) + 1)]
        self.query_one("#draws-heading", Static).update(Content(" epoch  crop        caption"))
        self.query_one(RowList).show_rows(len(self._showings), cursor=0)
        self._show_draw()

    def _file_text(self, row: int) -> str:
        repeats = int(self._plan.catalog.repeats_N[row])
        return f"{self._plan.catalog.file_sizes_N[row] / 1e3:.0f} kB" + (f"  \u00d7{repeats}" if repeats > 1 else "")

    def _draw(self, epoch: int) -> Showing:
        plan, row = self._plan, self.row
        step = min(plan.steps - 1, (epoch - 1) * plan.steps_per_epoch)
        return Showing(
            epoch=epoch,
            caption=plan.caption(row, 0, epoch=epoch, step=step),
            augmentation=plan.augmentation(row, 0, epoch=epoch),
        )

    def _showing_row(self, index: int, width: int) -> list[Cell]:
        showing = self._showings[index]
        drawn = showing.augmentation
        marks = f"{drawn.crop[0]},{drawn.crop[1]}" + (" flip" if drawn.flip else "")
        marks += " colour" if drawn.hue is not None or drawn.gamma is not None else ""
        text = safe_text(showing.caption.replace("\n", " / "), limit=500) or "(no caption)"
        return [(f" {showing.epoch:>5}  ", "dim"), (fit(marks, 12), "accent"), (fit(text, max(1, width - 20)), "")]

    @on(RowList.Moved)
    def _show_draw(self) -> None:
        index = self.query_one(RowList).cursor
        if index >= len(self._showings):
            return
        showing, plan = self._showings[index], self._plan
        job = plan.pixel_job(self.row).shown_as(showing.augmentation)
        self.query_one("#whole", CropPicture).show_job(job)
        self.query_one("#model", CropPicture).show_job(job)
        self.query_one("#caption", Static).update(caption_content(plan, showing.caption))

    def action_previous(self) -> None:
        """Show the picture before."""
        self._move(-1)

    def action_next(self) -> None:
        """Show the next picture."""
        self._move(1)

    def _move(self, by: int) -> None:
        self._place = max(0, min(self._place + by, len(self._rows_N) - 1))
        self._show()

    def action_draw_again(self) -> None:
        """Show the next epoch's draw."""
        draws = self.query_one(RowList)
        if draws.cursor == len(self._showings) - 1:
            self._showings.append(self._draw(len(self._showings) + 1))
        draws.show_rows(len(self._showings), cursor=draws.cursor + 1)

    def action_close(self) -> None:
        """Close."""
        self.dismiss(self._place)

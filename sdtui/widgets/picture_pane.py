"""One picture of the data set in a pane: what is cut from it, its sizes, and its caption as the model reads it."""

from importlib import import_module
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from engine.errors import safe_text
from sdtui.widgets.crop_picture import CropPicture

if TYPE_CHECKING:
    from engine.plan import Plan
    from sdtui.graphics import Mode

SHOWN = 2000  # Characters of a caption that are drawn; captions of megabytes exist.


class PicturePane(Vertical):
    """Shows a row of a plan's catalog."""

    DEFAULT_CSS = """
    PicturePane { height: 1fr; width: 1fr; }
    PicturePane CropPicture { height: 1fr; width: 1fr; color: $muted; min-height: 2; }
    PicturePane .picture-facts { height: 1; padding: 0 1; }
    PicturePane .picture-caption { height: auto; max-height: 4; padding: 0 1; }
    Screen.-tall PicturePane .picture-caption { max-height: 8; }
    """
    SCOPED_CSS = False

    def __init__(self, mode: "Mode", *, name: str) -> None:
        super().__init__(id=name, classes="pane")
        self._mode: Mode = mode
        self.border_title = "Picture"

    def compose(self) -> ComposeResult:
        """Lay out the pane."""
        yield CropPicture(self._mode)
        yield Static("", markup=False, classes="picture-facts")
        yield Static("", markup=False, classes="picture-caption")

    def show(self, plan: "Plan | None", row: int | None) -> None:
        """Show a picture as the first epoch shows it, or nothing."""
        picture = self.query_one(CropPicture)
        facts, caption = (self.query_one(f".picture-{name}", Static) for name in ("facts", "caption"))
        if plan is None or row is None:
            self.border_title = "Picture"
            picture.show_job(None)
            facts.update("")
            caption.update("")
            return
        self.border_title = Content(safe_text(plan.catalog.keys[row], limit=300))
        picture.show_job(plan.pixel_job(row))
        facts.update(Content(place_text(plan, row)))
        caption.update(caption_content(plan, plan.caption(row, 0, epoch=1, step=plan.steps)))

    def redraw(self) -> None:
        """Draw again what another screen has covered."""
        self.query_one(CropPicture).redraw()


def prepare_to_show(plan: "Plan") -> None:
    """Load what a pane needs for the plan's pictures, in a thread and before one is shown: it takes half a second."""
    from sdtui.dataset_facts import tokenizer

    import_module("engine.pixels")
    tokenizer(v2=bool(plan.settings.model.v2))


def place_text(plan: "Plan", row: int) -> str:
    """Return what happens to a picture: its size, its bucket, how much is cut, by how much it is scaled."""
    place = plan.placement(row)
    scale = max(place.resized[0] / place.size[0], place.resized[1] / place.size[1])
    enlarged = " enlarged" if scale > 1 else ""
    sizes = f"{place.size[0]}\u00d7{place.size[1]} \u2192 {place.bucket[0]}\u00d7{place.bucket[1]}"
    return f"{sizes}  cut {place.cut_fraction:.1%}  \u00d7{scale:.2f}{enlarged}"


def caption_content(plan: "Plan", caption: str) -> Content:
    """Return a caption with its tokens in front, and what is not read any more struck through."""
    from engine.tokens import capacity
    from sdtui.dataset_facts import kept_length, tokens_of

    if not caption:
        return Content.assemble(("no caption", "$warning"))
    shown = caption[:SHOWN]
    limit = capacity(plan.settings.model.max_token_length)
    tokens, kept = tokens_of(plan, caption), kept_length(plan, shown)
    head = (f"{tokens}/{limit} ", "$warning" if tokens > limit else "$muted")
    parts: list[tuple[str, str] | str] = [head, safe_text(shown[:kept], limit=SHOWN)]
    if tokens > limit:
        parts += [("  \u2717 not read: ", "$warning"), (safe_text(shown[kept:], limit=SHOWN), "strike $muted")]
    return Content.assemble(*parts)

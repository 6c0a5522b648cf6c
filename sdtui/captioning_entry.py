"""How the Data page leads to the captioning screen."""

from pathlib import Path
from typing import TYPE_CHECKING

from textual.widget import Widget

from sdtui.messages import MakePlan, Say

if TYPE_CHECKING:
    from engine.plan import Plan
    from sdtui.draft import Draft


class CaptioningEntry(Widget):
    """A page that opens the captioning screen on the folder of the picture under its cursor."""

    draft: "Draft"
    plan: "Plan | None"

    @property
    def row(self) -> int | None:
        """The catalog's row under the cursor."""
        return None

    def action_captions(self) -> None:
        """Open the captioning screen, and scan again when texts were changed there."""
        folder, recursive = self._captioned_folder()
        if folder is None:
            self.post_message(Say("there is no folder to caption: a adds one"))
            return
        from sdtui.screens.captioning import CaptioningScreen

        self.app.push_screen(CaptioningScreen(folder, recursive=recursive), self._captioned)

    def _captioned_folder(self) -> tuple[Path | None, bool]:
        plan, row = self.plan, self.row
        if plan is not None:
            subset = plan.config.subsets[int(plan.catalog.subsets_N[row]) if row is not None else 0]
            return subset.image_dir, subset.recursive
        named = self.draft.settings.dataset.train_data_dir
        return (Path(named) if named and Path(named).is_dir() else None), False

    def _captioned(self, is_changed: bool | None) -> None:
        if is_changed:
            self.post_message(MakePlan())

"""The wizard as data: its pages in order, the other screens by name, and what every page can rely on.

A page is a class named here by dotted path, so that its module is imported when it is first shown:

    class BucketsPage(WizardPage):
        BINDINGS = bindings("buckets")          # its keys stand in sdtui/keys.py under the scope "buckets"

        @on(DraftChanged)
        def _draw(self) -> None: ...            # self.draft.settings, self.draft.problems, self.plan

        def _choose(self) -> None:
            self.change({"train_batch_size": 4})   # checked, undoable, written to disk

`DraftChanged` and `PlanChanged` come once right after the page is mounted, and after each change.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from textual.containers import Container

from sdtui.breath import Breath, breath_of
from sdtui.messages import ChangeSettings

if TYPE_CHECKING:
    from engine.plan import Plan
    from sdtui.app import SdtuiApp
    from sdtui.draft import Draft


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One step of the wizard: its name, title, class, and the TOML sections and single settings it shows."""

    name: str
    title: str
    path: str
    sections: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


PAGES = (
    Page(name="model", title="Model", path="sdtui.screens.model:ModelPage", sections=("model",)),
    Page(name="data", title="Data", path="sdtui.screens.data:DataPage", sections=("dataset",)),
    Page(
        name="buckets",
        title="Buckets",
        path="sdtui.screens.buckets:BucketsPage",
        settings=(
            "resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps",
            "bucket_no_upscale", "train_batch_size",
        ),
    ),
    Page(
        name="options",
        title="Options",
        path="sdtui.screens.options:OptionsPage",
        sections=("training", "optimizer", "loss", "memory", "saving", "sampling", "logging"),
    ),
    Page(name="review", title="Review", path="sdtui.screens.review:ReviewPage"),
)  # fmt: skip

# Screens of the app; called with the arguments that the comment names.
SCREENS = {
    "wizard": "sdtui.screens.wizard:WizardScreen",  # draft
    "train": "sdtui.screens.train:TrainScreen",  # run folder
    "runs": "sdtui.screens.runs:RunsScreen",  # parent folder
    "doctor": "sdtui.screens.doctor:DoctorScreen",
    "help": "sdtui.screens.help:HelpScreen",  # scopes
}


async def load_in_thread(path: str) -> Any:  # noqa: ANN401 - a class known only by its dotted path
    """Return the class of a dotted path; the screen goes on while its module is imported."""
    return await asyncio.to_thread(load, path)


def load(path: str) -> Any:  # noqa: ANN401 - a class known only by its dotted path
    """Return the class of a dotted path such as "sdtui.screens.model:ModelPage"."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def page_of(setting: str) -> str:
    """Return the name of the page that shows a setting; whatever is not about a setting belongs to the data."""
    from engine.settings import SECTION_OF

    for page in reversed(PAGES):
        if setting in page.settings:
            return page.name
    section = SECTION_OF.get(setting, "dataset")
    return next(page.name for page in PAGES if section in page.sections)


class WizardPage(Container):
    """Base of the wizard's pages: reads the draft and the plan, and asks for changes by message."""

    def __init__(self, draft: "Draft", *, plan: "Plan | None" = None) -> None:
        super().__init__(classes="page")
        self.draft = draft
        self.plan = plan

    def change(self, values: Mapping[str, object], label: str = "") -> None:
        """Ask the wizard to set settings; None takes one back to its default."""
        self.post_message(ChangeSettings(values, label))

    def breath(self) -> Breath:
        """Return what a worker's thread asks between portions whether to stop."""
        return breath_of(cast("SdtuiApp", self.app))

    def show_setting(self, name: str) -> None:
        """Bring a setting into view and focus it; pages that show settings override this."""

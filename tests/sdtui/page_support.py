"""Opens the wizard on one of its pages, on a small data set of its own."""

from contextlib import asynccontextmanager

from PIL import Image

from sdtui.draft import new_draft
from tests.sdtui.screen_support import Host, settle


def write_pictures(folder, sizes, captions=None):
    """Write p0.png, p1.png, ... of given sizes, and the captions beside them; None for no caption file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (40 * number % 255, 90, 160)).save(folder / f"p{number}.png")
        caption = (captions or [])[number : number + 1] or [f"a thing, number {number}"]
        if caption[0] is not None:
            (folder / f"p{number}.txt").write_text(caption[0], encoding="utf-8")
    return folder


@asynccontextmanager
async def wizard_on(page, tmp_path, values, size=(80, 24)):
    """Show a page of the wizard on a draft with these values; yields app, pilot and the page."""
    draft = new_draft(tmp_path, tmp_path / "drafts")
    draft.change({name: str(value) if hasattr(value, "joinpath") else value for name, value in values.items()})
    app = Host()
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        app.open_screen("wizard", draft)
        await settle(pilot)
        await app.screen._open(page)
        await settle(pilot)
        yield app, pilot, app.screen.page

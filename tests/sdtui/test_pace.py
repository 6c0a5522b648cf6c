"""How often the screen beside a training draws, and what it does not draw at all."""

import pytest
from textual.geometry import Size

from engine.run import RunFolder
from sdtui.pace import LONGEST, SHARE, SHORTEST, Pace
from sdtui.screens.home import HomeScreen
from sdtui.widgets.row_list import RowList
from tests.sdtui.fake_run import FakeRun
from tests.sdtui.screen_support import Host, settle


class Clock:
    """A clock that is set."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        """Read it."""
        return self.seconds


def test_drawing_takes_a_set_share_of_a_core():
    """A look that costs more is followed by a longer wait, within bounds, and none by a short one."""
    used, now = Clock(), Clock()
    pace = Pace(used, now)
    now.seconds = 10.0
    waited = []
    for cost in (0.0, 0.01, 0.003, 5.0):
        used.seconds += cost
        waited.append(pace.delay())

    assert waited == pytest.approx([SHORTEST, 0.01 / SHARE, 0.003 / SHARE, LONGEST])


def test_whoever_waits_for_an_answer_gets_it_soon():
    """For a moment cost does not count."""
    used, now = Clock(), Clock()
    pace = Pace(used, now)
    now.seconds = 10.0
    pace.hurry()
    used.seconds = 5.0
    assert pace.delay() == SHORTEST
    now.seconds, used.seconds = 20.0, 10.0
    assert pace.delay() == LONGEST


class Counted(RowList):
    """A list that notes which lines it draws."""

    def __init__(self, rows):
        super().__init__(lambda index, _width: [(rows[index], "")], name="counted")
        self.drawn = []

    def render_line(self, y):
        """Note the line."""
        self.drawn.append(y)
        return super().render_line(y)


async def test_a_list_draws_only_the_rows_that_differ():
    """Also the ones that are new or gone."""
    rows = ["one", "two", "three"]
    app = Host()
    async with app.run_test() as pilot:
        await settle(pilot)
        shown = Counted(rows)
        await app.screen.mount(shown)
        shown.show_rows(3)
        await settle(pilot)
        assert shown.virtual_size == Size(0, 3)
        for change, drawn in ((lambda: rows.__setitem__(1, "TWO"), [1]), (lambda: None, [])):
            shown.drawn.clear()
            change()
            shown.show_rows(len(rows))
            await settle(pilot)
            assert shown.drawn == drawn


async def test_home_does_nothing_below_another_screen(tmp_path, monkeypatch):
    """Or each change of it would paint the training screen anew; it looks again when it comes back."""
    monkeypatch.chdir(tmp_path)
    first = FakeRun(name="first", done=10).write(tmp_path / "runs" / "first")
    app = Host()
    async with app.run_test() as pilot:
        await settle(pilot)
        home = app.screen
        assert isinstance(home, HomeScreen)
        app.open_screen("train", RunFolder(first.path))
        await settle(pilot)
        FakeRun(name="second", done=10).write(tmp_path / "runs" / "second")
        home._scan_in_view()
        await settle(pilot)
        assert [run.name for run in home._runs] == ["first"]

        app.pop_screen()
        await settle(pilot)
        assert {run.name for run in home._runs} == {"first", "second"}

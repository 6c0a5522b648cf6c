"""The wizard's frame, Options, Review, Doctor and help: what they show, and what their keys do."""

import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.widgets import Input

from engine.errors import Problem
from sdtui import checkup, pages, recent
from sdtui.around import Around
from sdtui.draft import new_draft, open_draft
from sdtui.forms import ROWS, rows_of, search
from sdtui.messages import DraftChanged, OpenStep
from sdtui.screens import doctor, review, wizard
from sdtui.widgets.key_footer import KeyFooter
from sdtui.widgets.setting_table import SettingTable, ValueInput
from sdtui.widgets.step_bar import StepBar
from tests.sdtui.fake_run import FakeRun
from tests.sdtui.screen_support import Host, matches_snapshot, press, settle, text_of

FILE = """\
# hearts
[model]
pretrained_model_name_or_path = "/models/sd15" # base
[dataset]
train_data_dir = "/pictures"
[saving]
output_dir = "runs/hearts-01"
"""


class EmptyPage(pages.WizardPage):
    """Stands for the pages with tests of their own."""


@pytest.fixture(autouse=True)
def _own_pages(monkeypatch, tmp_path):
    """An empty working folder, and only the pages that are tested here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wizard, "shown_path", lambda path: f"~/{Path(path).name}", raising=False)
    monkeypatch.setattr(review, "shown_path", lambda path: f"~/{Path(path).name}")
    real = pages.load
    hidden = {page.path for page in pages.PAGES if page.name in ("model", "data", "buckets")}
    monkeypatch.setattr(pages, "load", lambda path: EmptyPage if path in hidden else real(path))


@asynccontextmanager
async def open_wizard(size=(80, 24), *, text=None, step=4):
    """Open the wizard on a new draft or a file, at a step."""
    if text is None:
        draft = new_draft(Path.cwd(), recent.drafts_dir())
    else:
        draft = open_draft(run_toml(text), recent.drafts_dir())
    app = Host()
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        app.open_screen("wizard", draft)
        await settle(pilot)
        await press(pilot, str(step))
        yield app, pilot


def run_toml(text=None):
    """The file that is edited, written first where a text is given."""
    path = Path("run.toml").resolve()
    if text is not None:
        path.write_text(text)
    return path


def table(app):
    """The settings on Options."""
    return app.screen.query_one(SettingTable)


async def go_to(app, pilot, name):
    """Show a setting on Options."""
    app.screen.post_message(OpenStep("options", name))
    await settle(pilot)


# ---- frame


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_options(size):
    """Groups with counts, settings with value and origin, help, problems."""
    async with open_wizard(size) as (app, pilot):
        await press(pilot, "tab", "down", "down")

        assert matches_snapshot(app, f"options-{size[0]}x{size[1]}")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_review_of_a_changed_file(size, monkeypatch):
    """What saving changes, what the run will do, and how to start it."""
    monkeypatch.setattr(review.ReviewPage, "command", "sdtui train ~/run.toml")
    async with open_wizard(size, text=FILE, step=4) as (app, pilot):
        await go_to(app, pilot, "train_text_encoder")
        await press(pilot, "space", "5")

        assert matches_snapshot(app, f"review-{size[0]}x{size[1]}")


async def test_steps_are_reached_by_digits_brackets_and_mouse():
    async with open_wizard() as (app, pilot):
        for key, name in [("1", "model"), ("right_square_bracket", "data"), ("5", "review")]:
            await press(pilot, key)
            assert app.screen._now == name
        await press(pilot, "right_square_bracket")
        assert app.screen._now == "review"
        await press(pilot, "left_square_bracket")
        assert app.screen._now == "options"
        await pilot.click("StepBar", offset=(3, 0))
        await settle(pilot)
        assert app.screen._now == "model"


async def test_a_page_is_imported_when_it_is_first_shown(monkeypatch):
    loaded = []
    real = pages.load
    monkeypatch.setattr(pages, "load", lambda path: loaded.append(path) or real(path))
    async with open_wizard(step=5) as (_app, pilot):
        await press(pilot, "4", "5", "4")

    assert loaded == [
        "sdtui.screens.model:ModelPage",
        "sdtui.screens.review:ReviewPage",
        "sdtui.screens.options:OptionsPage",
    ]


async def test_a_draft_without_errors_opens_on_review():
    async with open_wizard(text=FILE, step=5) as (app, _pilot):
        assert isinstance(app.screen.page, review.ReviewPage)


async def test_the_steps_carry_marks_of_what_is_wrong():
    async with open_wizard() as (app, _pilot):
        assert text_of(app).splitlines()[0].split()[:6] == ["1", "Model", "\u27171", "2", "Data", "\u27171"]


async def test_the_draft_is_on_disk_from_the_first_change():
    async with open_wizard() as (app, pilot):
        await go_to(app, pilot, "seed")
        await press(pilot, "enter", *"7", "enter")
        await pilot.pause(0.5)
        await settle(pilot)

        text = app.screen.draft.draft_path.read_text()
        assert "seed = 7" in text
        assert app.screen.draft.draft_path.stat().st_mode & 0o077 == 0


async def test_leaving_keeps_the_draft_and_goes_home():
    async with open_wizard() as (app, pilot):
        draft = app.screen.draft
        draft.change({"seed": 7})
        await press(pilot, "tab", "q")

        assert type(app.screen).__name__ == "HomeScreen"
        assert draft.draft_path.exists()


async def test_saving_writes_the_file_and_keeps_its_comments():
    async with open_wizard(text=FILE) as (app, pilot):
        await go_to(app, pilot, "seed")
        await press(pilot, "enter", *"7", "enter", "ctrl+s")

        text = run_toml().read_text()
        assert "# base" in text
        assert "seed = 7" in text
        assert "saved" in text_of(app)


async def test_a_change_outside_is_read_again_and_own_changes_stay():
    async with open_wizard(text=FILE) as (app, pilot):
        await go_to(app, pilot, "seed")
        await press(pilot, "enter", *"7", "enter")
        run_toml(FILE.replace("/pictures", "/others"))
        os.utime("run.toml", (1, 1_900_000_000))
        app.screen._look()
        await settle(pilot)

        draft = app.screen.draft
        assert (draft.settings.dataset.train_data_dir, draft.value("seed")) == ("/others", 7)


async def test_a_taken_run_folder_is_an_error_with_a_fix():
    FakeRun(done=3).write(Path("runs/hearts-01"))
    async with open_wizard(text=FILE) as (app, pilot):
        app.screen._look()
        await settle(pilot)
        assert app.screen.problems[0].code == "run-exists"

        await press(pilot, "f")
        assert "run-exists" not in [problem.code for problem in app.screen.problems]
        assert app.screen.draft.name == "hearts-02"


async def test_starting_with_errors_is_refused_with_the_first_of_them():
    async with open_wizard(step=5) as (app, pilot):
        await press(pilot, "s")

        assert "2 errors first" in text_of(app)
        assert app.engine is None


async def test_starting_saves_and_hands_over(monkeypatch):
    started = []
    monkeypatch.setattr(Host, "start_here", lambda _app, loaded: started.append(loaded))
    monkeypatch.setattr(Host, "start_background", lambda _app, toml, folder: started.append((toml, folder)))
    # Model and pictures of FILE are nowhere, which would be said first.
    monkeypatch.setattr(Around, "problems", lambda _self, _draft: ())
    async with open_wizard(text=FILE, step=5) as (app, pilot):
        app.screen.plan_problems = ()
        await press(pilot, "s", "b")

    folder = run_toml().parent / "runs" / "hearts-01"
    assert started[0].settings.saving.output_dir == str(folder)
    assert started[1] == (run_toml(), folder)


async def test_asking_for_a_plan_makes_one_and_progress_reaches_the_pages(tmp_path):
    from sdtui.messages import MakePlan, PlanChanged, PlanProgress

    async with open_wizard(text=FILE.replace("/pictures", str(tmp_path))) as (app, pilot):
        told = []
        app.screen.page._draw = lambda: None
        app.screen._tell = lambda make: told.append(make())
        app.screen.post_message(MakePlan())
        await settle(pilot)

        assert {PlanProgress, PlanChanged} <= {type(message) for message in told}
        assert app.screen.plan_problems[0].where


async def test_the_editor_takes_and_gives_back_the_toml(monkeypatch, tmp_path):
    script = tmp_path / "ed.py"
    script.write_text(
        "import sys; p = sys.argv[1]; t = open(p).read(); open(p, 'w').write(t + '[training]\\nseed = 5\\n')"
    )
    monkeypatch.setenv("VISUAL", f"{sys.executable} {script}")
    from contextlib import nullcontext

    monkeypatch.setattr(Host, "suspend", lambda _app: nullcontext())
    async with open_wizard(text=FILE) as (app, pilot):
        await press(pilot, "E")
        assert app.screen.draft.value("seed") == 5

        monkeypatch.setenv("VISUAL", "no-such-editor")
        await press(pilot, "E")
        assert "no-such-editor can't be run" in text_of(app)


# ---- options


async def test_a_value_is_typed_checked_and_undone():
    async with open_wizard() as (app, pilot):
        await go_to(app, pilot, "learning_rate")
        await press(pilot, "enter", *"5e", "enter")
        assert app.screen.query_one(ValueInput).has_focus
        assert "learning_rate = '5e'" in text_of(app)

        await press(pilot, *"-6", "enter")
        assert app.screen.draft.value("learning_rate") == 5e-6
        await press(pilot, "z")
        assert app.screen.draft.value("learning_rate") == 2e-6
        await press(pilot, "Z")
        assert app.screen.draft.value("learning_rate") == 5e-6


async def test_the_value_is_typed_where_it_stands():
    """Also in a group that is longer than the screen."""
    async with open_wizard() as (app, pilot):
        await go_to(app, pilot, "caption_suffix")
        await press(pilot, "enter", *"by me")

        line = next(line for line in text_of(app).splitlines() if "caption_suffix  " in line)
        assert "by me" in line


async def test_esc_leaves_a_value_as_it_was():
    async with open_wizard() as (app, pilot):
        await go_to(app, pilot, "seed")
        await press(pilot, "enter", "9", "escape")

        assert app.screen.draft.value("seed") == 42
        assert table(app).has_focus
        assert app.screen._now == "options"


async def test_an_empty_value_goes_back_to_the_default():
    async with open_wizard(text=FILE + "[training]\nseed = 3\n") as (app, pilot):
        await go_to(app, pilot, "seed")
        await press(pilot, "enter", "backspace", "enter")

        assert (app.screen.draft.value("seed"), app.screen.draft.origin("seed")) == (42, "default")


async def test_switches_and_choices_turn_with_space():
    async with open_wizard() as (app, pilot):
        await go_to(app, pilot, "gradient_checkpointing")
        await press(pilot, "space")
        assert app.screen.draft.value("gradient_checkpointing") is True
        await go_to(app, pilot, "max_token_length")
        for expected in (75, 150, 225, None):
            await press(pilot, "space")
            assert app.screen.draft.value("max_token_length") == expected


async def test_enter_lists_choices_and_takes_one():
    async with open_wizard() as (app, pilot):
        await go_to(app, pilot, "lr_scheduler")
        await press(pilot, "enter", "down", "enter")
        assert app.screen.draft.value("lr_scheduler") == "constant_with_warmup"
        await press(pilot, "enter", "escape")
        assert app.screen.draft.value("lr_scheduler") == "constant_with_warmup"


async def test_search_finds_across_groups_and_esc_ends_it():
    async with open_wizard() as (app, pilot):
        await press(pilot, "slash", *"snr gamma", "enter")
        assert table(app).row.name == "min_snr_gamma"
        assert "loss.min_snr_gamma" in text_of(app)

        await press(pilot, "escape")
        assert app.screen._now == "options"
        assert "[training]" in text_of(app)


async def test_reset_of_one_and_of_a_group():
    async with open_wizard() as (app, pilot):
        await go_to(app, pilot, "seed")
        await press(pilot, "enter", "8", "enter", "r")
        assert app.screen.draft.origin("seed") == "default"
        await press(pilot, "enter", "8", "enter")
        await go_to(app, pilot, "use_ema")
        await press(pilot, "space", "R")
        assert app.screen.draft.changed() == {"output_dir"}


async def test_presets_are_applied_and_undone_in_one_step():
    async with open_wizard() as (app, pilot):
        await press(pilot, "P", "down", "enter")
        draft = app.screen.draft
        assert draft.value("optimizer_type") == "AdamW8bit"
        assert draft.origin("optimizer_type") == "preset"
        await press(pilot, "z")
        assert draft.changed() == {"output_dir"}


async def test_f_fixes_the_problem_of_the_selected_setting_and_shift_f_all():
    async with open_wizard() as (app, pilot):
        draft = app.screen.draft
        draft.change({"lr_warmup_steps": "10", "ema_decay": "0.5", "color_aug": True, "cache_latents": True})
        for page in app.screen.pages:
            page.post_message(DraftChanged())
        await go_to(app, pilot, "ema_decay")
        await press(pilot, "f")
        assert draft.value("ema_decay") == 0.5
        assert draft.value("use_ema") is True

        await press(pilot, "F")
        assert [problem.code for problem in draft.problems] == ["no-model", "no-pictures-named"]


async def test_a_problem_leads_to_its_setting():
    async with open_wizard() as (app, pilot):
        app.screen.query_one("#problems").focus()
        await press(pilot, "enter")

        assert table(app).row.name == "pretrained_model_name_or_path"


async def test_only_changed_settings():
    async with open_wizard() as (app, pilot):
        await press(pilot, "c")
        assert [row.name for row in table(app)._rows] == ["output_dir"]


HOSTILE = "[b]x[/b][@click=app.exit]\x1b]52;c;AA\x07\u202e"


async def test_hostile_text_is_shown_and_obeyed_nowhere():
    """Markup, escapes and bidi marks in a value are text like any other, on every page."""
    async with open_wizard(text=FILE) as (app, pilot):
        app.screen.draft.change({"metadata_title": HOSTILE})
        for name in ("metadata_title", "output_dir"):
            await go_to(app, pilot, name)
            assert "\x1b" not in text_of(app)
        for page in app.screen.pages:
            page.post_message(DraftChanged())
        await press(pilot, "5", "d")
        assert "[@click=app.exit]" in text_of(app)
        assert not {"\x1b", "\x07", "\u202e"} & {*text_of(app)}


# ---- review


async def test_the_diff_and_the_whole_text():
    async with open_wizard(text=FILE) as (app, pilot):
        await go_to(app, pilot, "seed")
        await press(pilot, "enter", "7", "enter", "5")
        assert "+seed = 7" in text_of(app)
        await press(pilot, "d")
        assert "+seed = 7" not in text_of(app)
        await press(pilot, "w")
        assert "saved" in text_of(app)


async def test_the_command_is_in_view_and_d_says_when_nothing_differs():
    async with open_wizard(step=5) as (app, pilot):
        assert "/runs/run-01/run.toml" in text_of(app).split("$ sdtui train")[1]

        await press(pilot, "d")
        assert "a new file" in text_of(app)
        assert "nothing to compare" in text_of(app)


async def test_what_was_said_of_one_page_is_gone_on_the_next():
    async with open_wizard() as (app, pilot):
        await press(pilot, "z")
        assert "nothing to undo" in text_of(app)

        await press(pilot, "5")
        assert "nothing to undo" not in text_of(app)


async def test_the_headless_command_is_copied_and_quoted(tmp_path):
    async with open_wizard(text=FILE, step=5) as (_app, pilot):
        await press(pilot, "y")

        assert (recent.data_dir() / "clipboard.txt").read_text() == f"sdtui train {tmp_path.resolve()}/run.toml"


# ---- help, palette, doctor


async def test_help_lists_the_keys_of_the_place_first_and_searches():
    async with open_wizard() as (app, pilot):
        await press(pilot, "question_mark")
        assert "Wizard: Options" in text_of(app)
        await press(pilot, "slash", *"preset")
        assert "Apply a set of values" in text_of(app)
        await press(pilot, "escape")
        assert app.screen._now == "options"


async def test_the_palette_offers_keys_and_settings():
    from sdtui.palette import KeyProvider

    async with open_wizard() as (app, _pilot):
        provider = KeyProvider(app.screen)
        hits = [str(hit.text) async for hit in provider.search("min_snr")]
        assert "min_snr_gamma" in hits
        assert any("Presets" in str(hit.text) for hit in [hit async for hit in provider.discover()])


async def test_the_footer_shows_keys_that_fit_and_always_help():
    async with open_wizard() as (app, pilot):
        footer = app.screen.query_one(KeyFooter)
        assert footer.shown(80)[-1][2] == "Help"
        assert len(footer.shown(30)) < len(footer.shown(200))
        await press(pilot, "slash")
        assert isinstance(app.focused, Input)
        shown = [(key, label) for _key, key, label in footer.shown(80)]
        assert shown == [("enter", "Take"), ("esc", "Leave"), ("^p", "Palette"), ("F1", "Help")]


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_the_doctor_says_what_would_help(monkeypatch, size):
    found = [
        checkup.Finding(topic="Terminal", fact="xterm-256color"),
        checkup.Finding(topic="GPU", fact="none found", severity="warning", advice="training runs on the processor"),
    ]
    monkeypatch.setattr(doctor, "findings", lambda _terminal: found)
    monkeypatch.setattr(doctor.DoctorScreen, "_measure_lag", lambda _screen: None)
    app = Host()
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        await press(pilot, "D", "down")
        assert matches_snapshot(app, f"doctor-{size[0]}x{size[1]}")
        await press(pilot, "y")
        assert "GPU: none found (training runs on the processor)" in (recent.data_dir() / "clipboard.txt").read_text()


def test_the_doctor_looks_at_this_machine():
    from sdtui.terminal import detect

    topics = [finding.topic for finding in checkup.findings(detect({"TERM": "xterm"}, "utf-8"))]
    assert {"Colours", "Cores", "Memory", "Disk here", "torch"} <= {*topics}


# ---- forms and pages


def test_every_setting_has_a_row_a_page_and_help():
    names = {page.name for page in pages.PAGES}
    for row in ROWS.values():
        assert row.help.endswith(".")
        assert pages.page_of(row.name) in names
    assert sum(len(rows_of(section)) for section in {row.section for row in ROWS.values()}) == len(ROWS)


def test_rows_know_their_kind():
    kinds = {name: ROWS[name].kind for name in ("seed", "use_ema", "optimizer_type", "output_dir", "v2", "resolution")}

    assert kinds == {
        "seed": "text", "use_ema": "switch", "optimizer_type": "choice", "output_dir": "path", "v2": "choice",
        "resolution": "text",
    }  # fmt: skip
    assert ROWS["v2"].choices == ("", "false", "true")
    assert (ROWS["min_bucket_reso"].unit, ROWS["min_bucket_reso"].bounds) == ("px", "from 8 to 16384")


def test_search_ranks_names_before_help():
    assert search("learning rate")[0].name == "learning_rate"
    assert search("no such thing anywhere") == ()


async def test_problems_of_pictures_mark_the_data_step():
    async with open_wizard() as (app, pilot):
        problem = Problem(code="no-plan", severity="error", where="/pictures/a.png", message="can't be read")
        app.screen.post_message(app.screen.Planned(None, (problem,)))
        await settle(pilot)

        assert "2 Data \u27172" in text_of(app)


async def test_what_does_not_fit_into_the_first_line_is_left_out_not_cut():
    async with open_wizard() as (app, _pilot):
        bar = app.screen.query_one(StepBar)
        bar.show("options", {}, "2.8G on a card  40 img  500 steps  46 ep")
        assert bar.render_line(0).text.endswith(" 2.8G on a card  40 img ")


def test_settings_are_found_by_what_people_call_them():
    assert "learning_rate" in [row.name for row in search("lr")]


async def test_values_are_whole_on_the_smallest_screen():
    async with open_wizard((60, 16)) as (app, pilot):
        await go_to(app, pilot, "max_train_epochs")

        assert "left out" in text_of(app)

"""The training screen: what it shows of a run's files, and what its keys ask of the engine."""

import json
import random
import time
from dataclasses import replace

import pytest
from textual.geometry import Region
from textual.widgets import Input

from engine.events import EventLog, Interrupted, Requested, Sampled, Started, Warned
from engine.run import RunFolder
from sdtui.widgets.gallery import Gallery
from sdtui.widgets.plot import Plot, _changed
from sdtui.widgets.status_line import StatusLine
from tests.sdtui.fake_run import PAUSED, TIME, FakeRun
from tests.sdtui.screen_support import matches_snapshot, press, settle, shown, styles_of, text_of, until

OUT_OF_MEMORY = "the graphics card ran out of memory: lower train_batch_size or set gradient_checkpointing"


@pytest.fixture(autouse=True)
def _frozen(monkeypatch, tmp_path):
    """One clock, one time zone, a terminal that can draw, no user's files."""
    monkeypatch.setattr(time, "time", lambda: TIME + 460.0)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    for name in ("NO_COLOR", "SDTUI_ASCII", "TMUX", "STY", "KITTY_WINDOW_ID", "TERM_PROGRAM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("SDTUI_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def live(tmp_path):
    """A run at step 1240 whose engine holds the lock."""
    folder = FakeRun().write(tmp_path / "mychar-04")
    with folder.locked():
        yield folder


def asked(folder):
    """The requests that wait for the engine, oldest first."""
    return [json.loads(path.read_text()) for path in sorted(folder.requests_folder.glob("*.json"))]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (80, 40), (120, 30)])
async def test_a_running_training(live, width, height):
    """State, progress, loss, numbers, samples, events and models at a glance."""
    async with shown("train", live, size=(width, height)) as (app, _pilot):
        assert matches_snapshot(app, f"train-running-{width}x{height}")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_a_failure_shows_cause_and_remedy(tmp_path, size):
    """What happened and what to change stand on the screen, the log is one key away."""
    run = FakeRun()
    folder = run.write(tmp_path / "mychar-02", run.failed(OUT_OF_MEMORY))
    async with shown("train", folder, size=size) as (app, pilot):
        assert matches_snapshot(app, f"train-failed-{size[0]}x{size[1]}")
        await press(pilot, "l")
        assert "encoding latents" in text_of(app)
        await press(pilot, "escape")
        assert "FAILED" in text_of(app)


async def test_a_finished_run(tmp_path):
    """The end, its loss and its file; keys for a running engine say why they do nothing."""
    run = FakeRun(done=3000)
    folder = run.write(tmp_path / "mychar-01", run.finished())
    async with shown("train", folder, size=(120, 40)) as (app, pilot):
        assert matches_snapshot(app, "train-finished-120x40")
        for key in ("space", "S", "P", "X"):
            await press(pilot, key)
            assert "the run has ended: nothing to" in text_of(app)
        offered = text_of(app).splitlines()[-1]
        assert "esc Back" in offered
        assert not any(word in offered for word in ("Pause", "Save", "Sample", "Stop"))
    assert asked(folder) == []


async def test_a_stopped_run_says_what_was_saved(tmp_path):
    """The reason and the file."""
    ending = Interrupted(step=1240, time=TIME + 450, reason="request", saved="last.safetensors")
    folder = FakeRun().write(tmp_path, ending)
    async with shown("train", folder) as (app, _pilot):
        assert "STOPPED at step 1240 by request, saved last.safetensors" in text_of(app)


async def test_an_engine_that_vanished_is_never_shown_as_live(tmp_path):
    """No ending and no lock: killed."""
    async with shown("train", FakeRun().write(tmp_path)) as (app, _pilot):
        assert "ENGINE GONE at step 1240" in text_of(app)
        assert "training" not in text_of(app).splitlines()[0]


async def test_an_engine_that_could_not_start_says_why(tmp_path):
    """Nothing was written, so the handle's error is all there is."""

    class Engine:
        error = "dataset.toml: 3 problems"
        is_running = False

    async with shown("train", RunFolder(tmp_path), Engine()) as (app, _pilot):
        assert "NOT STARTED: dataset.toml: 3 problems" in text_of(app)


async def test_space_pauses_and_continues(live):
    """The same key does both, by what the run tells."""
    async with shown("train", live) as (app, pilot):
        await press(pilot, "space")
        assert asked(live) == [{"verb": "pause"}]
        log = EventLog(live.path)
        log.emit(PAUSED)
        log.close()
        await until(pilot, lambda: "paused" in text_of(app).splitlines()[0])
        await press(pilot, "space")
    assert asked(live) == [{"verb": "pause"}, {"verb": "continue"}]


def give_prompts(folder, text):
    """Give the run a file of prompts."""
    (folder.path / "prompts.txt").write_text(text)
    (folder.path / "run.toml").write_text('[sampling]\nsample_prompts = "prompts.txt"\n')


async def test_save_and_sample_now(live):
    """Both are asked of the engine, and its answer is shown."""
    async with shown("train", live) as (app, pilot):
        await press(pilot, "S", "P", *"a cat", "enter")
        assert asked(live) == [{"verb": "save"}, {"verb": "sample", "prompt": "a cat"}]
        log = EventLog(live.path)
        log.emit(Requested(step=1240, time=TIME + 461, verb="sample", accepted=False, message="no prompts are given"))
        log.close()
        await until(pilot, lambda: "no prompts are given" in text_of(app))


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_sample_now_offers_the_run_s_own_prompts(live, size):
    """They stand in the field and below it, each with its options."""
    give_prompts(live, "mychar, portrait --w 768 --d 7\nnight city, film grain --n blurry\n")
    async with shown("train", live, size=size) as (app, pilot):
        await press(pilot, "P")
        assert matches_snapshot(app, f"train-sample-now-{size[0]}x{size[1]}")


@pytest.mark.parametrize(
    ("keys", "request_"),
    [
        (["enter"], {"prompt": "a fox --w 768"}),
        (["delete", "enter"], {}),
        ([*"an owl --s 5", "enter"], {"prompt": "an owl --s 5"}),
        (["tab", "down", "enter", "end", *"s", "enter"], {"prompt": "a hens"}),
        (["tab", "end", "enter", "enter"], {}),
        (["escape"], None),
    ],
)
async def test_sample_now_asks_for_one_prompt_or_for_all(live, keys, request_):
    """Typing replaces the prompt that stands there; Enter on a row takes it into the field."""
    give_prompts(live, "a fox --w 768\na hen\n")
    async with shown("train", live) as (_app, pilot):
        await press(pilot, "P", *keys)
    assert asked(live) == ([{"verb": "sample", **request_}] if request_ is not None else [])


async def test_a_wrong_prompt_is_named_beside_the_field(live):
    """One sentence, gone with the next key; what was typed before is offered again."""
    give_prompts(live, "a fox\n")
    async with shown("train", live, size=(120, 40)) as (app, pilot):
        await press(pilot, "P", *"a --w x", "enter")
        assert "width = 'x': should be a whole number from 1 to 8192" in text_of(app)
        assert asked(live) == []
        assert matches_snapshot(app, "train-sample-wrong-120x40")
        await press(pilot, "backspace", *"64")
        assert "should be" not in text_of(app)
        await press(pilot, "enter", "P")
        assert app.screen.query_one("#prompt", Input).value == "a --w 64"
    assert asked(live) == [{"verb": "sample", "prompt": "a --w 64"}]


@pytest.mark.parametrize(
    ("run_toml", "said"),
    [
        ("[saving]\n", "the run has no prompts of its own: type one"),
        ("[sampling]\nsample_prompts = 'gone.txt'", "gone.txt: sample prompts can't be read: No such file"),
        ("[sampling]\nsample_prompts = 3", "run.toml: sample_prompts = 3 is no path"),
        ("sampling = 3", "run.toml can't be read"),
    ],
)
async def test_sample_now_without_prompts_of_the_run(live, run_toml, said):
    """Why there are none is said, and one has to be typed."""
    (live.path / "run.toml").write_text(run_toml)
    async with shown("train", live) as (app, pilot):
        await press(pilot, "P")
        assert said in text_of(app).replace("\u2502\n\u2502", "")
        await press(pilot, "enter")
        assert "the run has no prompts of its own: type one" in text_of(app)
        assert asked(live) == []


@pytest.mark.parametrize(
    ("keys", "request_"),
    [
        (["enter"], {"verb": "stop", "when": "step", "save": True}),
        (["down", "enter"], {"verb": "stop", "when": "epoch", "save": True}),
        (["down", "down", "enter", *"discard", "enter"], {"verb": "stop", "when": "step", "save": False}),
        (["down", "down", "enter", *"discar", "enter"], None),
        (["down", "down", "down", "enter"], None),
        (["escape"], None),
    ],
)
async def test_stop_menu(live, keys, request_):
    """After the step or the epoch; losing work needs the typed word; anything else goes on training."""
    async with shown("train", live) as (_app, pilot):
        await press(pilot, "X", *keys)
    assert ([request_] if request_ else []) == asked(live)


async def test_sampling_cadence_takes_numbers_only(live):
    """A wrong number is named in place, a right one is sent."""
    async with shown("train", live) as (app, pilot):
        await press(pilot, "E", "enter")
        assert "a whole number from 0 on" in text_of(app)
        await press(pilot, *"50", "enter")
    assert asked(live) == [{"verb": "set", "key": "sample_every_n_steps", "value": 50}]


async def test_plot_keys(live):
    """Zoom, pan, fit, scale, smoothing, metric, bands, buckets."""
    async with shown("train", live) as (app, pilot):
        plot = app.screen.query_one("#plot", Plot)
        await press(pilot, "plus", "plus")
        assert plot.window == (930, 1240)
        await press(pilot, "left")
        assert plot.window == (852.5, 1162.5)
        assert "older steps" in text_of(app)
        await press(pilot, "minus", "minus")
        assert plot.is_fit
        await press(pilot, "plus", "0", "L")
        assert plot.is_fit
        assert "log y" in text_of(app)
        await press(pilot, "e")
        assert "ema 0.995" in text_of(app)
        await press(pilot, "t")
        assert "learning rate" in text_of(app)
        await press(pilot, "b")
        assert "by timestep: a t 0-199" in text_of(app)
        await press(pilot, "B")
        assert "by bucket: a " in text_of(app)
        await press(pilot, "B")
        assert "loss  raw + ema" in text_of(app)


async def test_cursor_reads_the_plot_and_scrubs_the_samples(live):
    """Step, raw and smoothed value stand under the plot, and the gallery shows what was drawn by then."""
    async with shown("train", live) as (app, pilot):
        gallery = app.screen.query_one(Gallery)
        assert gallery.step == 1200
        await press(pilot, "c")
        assert "step 1240" in text_of(app)
        await press(pilot, *["left"] * 8)
        assert gallery.step == 1000
        await press(pilot, "comma")
        assert gallery.step == 800
        assert "step 800" in text_of(app)
        await press(pilot, "escape")
        assert app.screen.query_one("#plot", Plot).cursor is None


async def test_a_window_at_the_end_follows_the_run(live):
    """New steps push it on; one that looks back stays."""
    async with shown("train", live) as (app, pilot):
        plot = app.screen.query_one("#plot", Plot)
        await press(pilot, "plus")
        log = EventLog(live.path)
        for step in range(1241, 1251):
            log.emit(FakeRun().step_event(step, random.Random(step)))
        log.close()
        await until(pilot, lambda: plot.window == (630, 1250))
        assert "1250/3000" in text_of(app)


def test_only_the_cells_that_differ_are_painted():
    """From the first span that differs to the last one."""
    old = [("   .1|", "axis"), ("abc", "raw"), ("   ", "empty"), ("d", "raw")]
    new = [("   .1|", "axis"), ("abc", "raw"), ("xy ", "raw"), ("d", "raw")]

    assert _changed(3, old, new) == Region(9, 3, 3, 1)
    assert _changed(0, old, [*new[:2], ("longer", "raw")]).x == 9


async def test_a_growing_run_is_not_squeezed_by_every_step(live):
    """The fitted plot keeps a little room free, so a step paints a few cells and not all."""
    async with shown("train", live) as (app, _pilot):
        plot = app.screen.query_one("#plot", Plot)
        plot.show(plot._traces, last=1241)
        window = plot.window
        plot.show(plot._traces, last=1290)
        assert plot.window == window
        plot.show(plot._traces, last=2000)
        assert plot.window == (0, 2000)


async def test_events_are_filtered_by_text(live):
    """Esc leaves the input, and the filter stays in view."""
    async with shown("train", live, size=(120, 40)) as (app, pilot):
        await press(pilot, "slash", *"grad norm")
        assert "warning: grad norm 14.2" in text_of(app)
        assert "4 samples" not in text_of(app)
        await press(pilot, "escape", "S")
        assert [request["verb"] for request in asked(live)] == ["save"]
        assert app.screen.query_one("#event-filter", Input).display


async def test_a_sample_is_shown_large(live):
    """Arrows change prompt and step."""
    async with shown("train", live) as (app, pilot):
        await press(pilot, "v")
        assert "step 1200   seed 100   prompt 1" in text_of(app)
        await press(pilot, "right", "down")
        assert "step 1000   seed 101   prompt 2" in text_of(app)
        assert "mychar, beach at sunset" in text_of(app)
        assert matches_snapshot(app, "train-sample-80x24")


HOSTILE = (
    "x [/] [link=http://x]y[/link] [@click=app.quit]z[/] \x1b]52;c;aGk=\x07\x1b[2J\u202egnp\u2066 \u200b"
    + "A" * 100_000
)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_hostile_text_is_only_ever_shown(tmp_path, size):
    """Prompts, messages, names and paths may hold anything: no control character and no markup gets through."""
    run = FakeRun(done=300, sample_every=100, prompts=(HOSTILE, HOSTILE))
    ending = (
        replace(run.started(), name=HOSTILE, device=HOSTILE, time=TIME + 200, step=300, resumed_from=300),
        Warned(step=300, time=TIME + 200, code=HOSTILE, message=HOSTILE),
        Sampled(step=301, time=TIME, path="../../../etc/passwd", prompt=HOSTILE, index=0, seed=1, epoch=1, seconds=1),
        Sampled(step=301, time=1e300, path="sample/\x1b[2J.png", prompt="", index=1, seed=1, epoch=1, seconds=1),
        run.failed(HOSTILE),
    )
    folder = run.write(tmp_path / "a [red]b[/] \x1b[2J")
    log = EventLog(folder.path)
    for event in ending:
        log.emit(event)
    log.close()
    (folder.path / "log.txt").write_text(HOSTILE)
    async with shown("train", folder, size=size) as (app, pilot):
        for keys in ([], ["v"], ["right"], ["escape"], ["l"], ["escape"], ["slash", "x"], ["escape"], ["comma"]):
            await press(pilot, *keys)
            for segment in styles_of(app):
                assert segment.control or segment.text.isprintable()
                assert segment.style is None or not segment.style.link
        assert "[/]" in text_of(app)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (20, 5), (59, 15), (60, 16), (200, 60)])
async def test_no_size_breaks_it(live, size):
    """Below 60x16 one line says so; nothing crashes."""
    async with shown("train", live, size=size) as (app, pilot):
        assert app.is_running
        await pilot.resize_terminal(100, 30)
        await settle(pilot)
        assert "1240/3000" in text_of(app)
        await pilot.resize_terminal(*size)
        await settle(pilot)
        assert app.is_running


async def test_ascii_only_terminal(live, monkeypatch):
    """Plain characters everywhere, pictures by brightness."""
    monkeypatch.setenv("SDTUI_ASCII", "1")
    async with shown("train", live) as (app, _pilot):
        main = app.screen.query_one("#plot", Plot)
        assert "".join(text for line in main._lines for text, _style in line).isascii()
        assert text_of(app).isascii()
        assert "===" in text_of(app)


@pytest.mark.parametrize(("name", "sign"), [("KITTY_WINDOW_ID", "\x1b_G"), ("TERM", "\x1bP0;1q")])
async def test_pictures_by_the_terminal_s_own_graphics(live, monkeypatch, name, sign):
    """Kitty and sixel bytes are written apart from the cells, once per picture."""
    monkeypatch.setenv(name, "1" if name == "KITTY_WINDOW_ID" else "foot")
    written = []
    async with shown("train", live) as (app, pilot):
        monkeypatch.setattr(app._driver, "write", written.append)
        await press(pilot, "comma")
    pictures = [text for text in written if sign in text and "a=d" not in text]
    assert len(pictures) == 2


async def test_closing_the_screen_leaves_the_run_alone(live):
    """Detach and back ask nothing of the engine."""
    async with shown("train", live) as (app, pilot):
        await press(pilot, "d")
        assert type(app.screen).__name__ != "TrainScreen"
    assert asked(live) == []


async def test_a_folder_that_cannot_be_written_is_named(live, monkeypatch):
    """The request fails with a sentence."""

    def refuse(*_args, **_kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(RunFolder, "request", refuse)
    async with shown("train", live) as (app, pilot):
        await press(pilot, "S")
        assert "can't be written" in text_of(app)


async def test_a_resume_voids_later_events_on_the_screen(live):
    """What the resume made void leaves log, gallery and plot."""
    async with shown("train", live, size=(120, 40)) as (app, pilot):
        assert "1000 \u25b2" in text_of(app)
        log = EventLog(live.path)
        log.emit(FakeRun().started(resumed_from=700, step=700))
        log.emit(FakeRun().step_event(701, random.Random(1)))
        log.close()
        await until(pilot, lambda: "701/3000" in text_of(app))
        assert "1000 \u25b2" not in text_of(app)
        assert app.screen.query_one(Gallery).step == 600
        assert isinstance(app.screen.state.events[-1], Started)


async def test_an_event_that_is_cut_is_told_whole(live):
    async with shown("train", live) as (app, pilot):
        await press(pilot, "end")

        assert ", pid " in str(app.screen.query_one(StatusLine).render())


async def test_the_log_is_folded_not_cut(live):
    (live.path / "log.txt").write_text("word " * 60 + "the cause")
    async with shown("train", live) as (app, pilot):
        await press(pilot, "l")

        assert "the cause" in text_of(app)


async def test_a_step_beyond_the_samples_is_said(live):
    async with shown("train", live) as (app, pilot):
        await press(pilot, "full_stop")

        assert "there are no later samples" in text_of(app)


async def test_the_smallest_screen_has_room_for_the_curve_of_an_ended_run(tmp_path):
    run = FakeRun()
    folder = run.write(tmp_path / "r", run.failed(OUT_OF_MEMORY))
    async with shown("train", folder, size=(60, 16)) as (app, _pilot):
        assert app.screen.query_one("#plot", Plot).size.height >= 3

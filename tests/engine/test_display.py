"""What a headless run shows: seldom lines at once, frequent ones now and then, nothing that a terminal would obey."""

import dataclasses
import io
import re
import sys

import pytest

from engine.display import LiveDisplay, PlainDisplay, Rate, describe, duration, make_display, size, step_line
from engine.errors import EngineError
from engine.events import (
    Continued,
    Failed,
    Finished,
    Interrupted,
    Paused,
    Progress,
    Requested,
    Sampled,
    Saved,
    Started,
    Step,
    Warned,
)
from engine.settings import LoggingSettings

STARTED = Started(
    name="last", steps=100, epochs=2, steps_per_epoch=50, images=7, seed=1, pid=1, device="cpu", family="sd1",
    trains=("unet", "text_encoder"),
)  # fmt: skip


def step(number, **values):
    given = {
        "loss": 0.5, "learning_rate": 1e-5, "grad_norm": 1.0, "images": 2, "seconds": 2.0, "wait_seconds": 0.0,
        "bucket": (64, 64), "peak_memory_bytes": 3 * 2**29, "epoch": 1, **values,
    }  # fmt: skip
    return Step(step=number, **given)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (STARTED, "training unet and text_encoder: 100 steps, 2 epochs, 7 images, cpu"),
        (
            Saved(path="a.safetensors", bytes=2048, seconds=1.0, epoch=1, removed=("b", "c")),
            "saved a.safetensors (2 KiB, 1.0 s), removed b, c",
        ),
        (Sampled(path="sample/a.png", prompt="p", index=0, seed=1, epoch=0, seconds=1.25), "drew sample/a.png (1.2 s)"),
        (Warned(code="x", message="mind this"), "warning: mind this"),
        (Requested(verb="save", accepted=True, message="saved"), "save: saved"),
        (Paused(), "paused"),
        (Continued(), "continued"),
        (Interrupted(step=3, reason="SIGINT", saved="m"), "stopped by SIGINT at step 3, saved m"),
        (Interrupted(step=3, reason="SIGINT"), "stopped by SIGINT at step 3"),
        (Failed(step=3, message="no space"), "failed at step 3: no space"),
        (Finished(step=9, path="m", seconds=65, loss=0.25), "finished 9 steps in 1:05, mean loss 0.2500: m"),
        (step(1), ""),
        (Progress(stage="scan", done=1, total=2), ""),
    ],
    ids=lambda value: value.kind if hasattr(value, "kind") else None,
)
def test_every_seldom_event_is_one_line(event, line):
    """In words; steps and progress have lines of their own."""
    assert describe(event) == line


def test_text_from_outside_can_not_steer_the_terminal():
    """Escapes are shown, not sent."""
    assert describe(Warned(code="x", message="a\x1b[2J\nb")) == r"warning: a\x1b[2J\x0ab"


def test_a_step_is_one_line():
    """Step, loss, rate, speed, time left, memory."""
    rate = Rate()
    rate.update(step(1))

    assert step_line(step(1), 100, rate) == (
        "step 1/100  epoch 1  loss 0.5000 (mean 0.5000)  lr 1e-05  2.00 s/step  eta 3:18  1.50 GiB"
    )
    assert "  lr 3e-06  " in step_line(dataclasses.replace(step(1), adapted_rate=3e-6), 100, rate)


def test_the_speed_forgets_the_slow_first_step():
    """After fifty steps hardly anything is left of it."""
    rate = Rate()
    rate.update(step(1, seconds=60.0))
    for number in range(2, 200):
        rate.update(step(number, seconds=1.0))

    assert rate.seconds < 1.2


def test_plain_lines_come_seldom_and_the_last_always(capsys):
    """One step line in ten seconds; an unknown total is not shown as one."""
    now = [0.0]
    display = PlainDisplay(clock=lambda: now[0])
    display.emit(Progress(stage="scan", done=5, total=0))
    display.emit(Progress(stage="scan", done=6, total=0))
    display.emit(Progress(stage="scan", done=9, total=9))
    display.emit(STARTED)
    for number in (1, 2, 3, 100):
        display.emit(step(number))
        now[0] += 6
    display.close()

    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["scanning pictures 5", "scanning pictures 9/9", describe(STARTED)]
    assert [line.split()[1] for line in lines[3:]] == ["3/100", "100/100"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_that_leaves_it_as_it_was(monkeypatch):
    """Lines above, the bar below, the cursor shown again at the end."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    display = make_display(LoggingSettings())
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # What libraries print goes elsewhere from here on.

    for event in (Progress(stage="latents", done=1, total=2), STARTED, step(1), Warned(code="x", message="[red]mind")):
        display.emit(event)
    display.emit(Finished(step=100, path="m", seconds=1, loss=0.5))
    display.close()

    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert isinstance(display, LiveDisplay)
    assert "warning: [red]mind" in shown
    assert "loss 0.5000" in shown
    assert "1/100" in shown
    assert screen.getvalue().rstrip().endswith("\x1b[?25h")
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize("term", ["", "dumb"])
def test_a_dumb_terminal_gets_plain_lines(monkeypatch, term):
    """As does no terminal."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", term)

    assert isinstance(make_display(LoggingSettings()), PlainDisplay)


def test_sizes_and_durations_read_well():
    """Binary units; hours only where there are any."""
    assert [size(count) for count in (0, 1023, 1024, 5 * 2**20, 3 * 2**30)] == [
        "0 B", "1023 B", "1 KiB", "5 MiB", "3.00 GiB"
    ]  # fmt: skip
    assert [duration(seconds) for seconds in (-1, 59.6, 3599, 3600)] == ["0:00", "1:00", "59:59", "1:00:00"]


@pytest.mark.parametrize(
    ("level", "expected"),
    [("INFO", ["saved", "warning", "failed"]), ("WARNING", ["warning", "failed"]), ("ERROR", ["failed"])],
)
def test_the_console_shows_a_level_and_may_be_a_file(tmp_path, level, expected):
    """Also DEBUG and CRITICAL, which show all and nothing."""
    path = tmp_path / "console.log"
    display = make_display(LoggingSettings(console_log_level=level, console_log_file=str(path)))

    display.emit(Saved(step=1, path="saved", bytes=1, seconds=1, epoch=1))
    display.emit(Warned(code="x", message="warning"))
    display.emit(Failed(message="failed"))
    display.close()

    lines = path.read_text().splitlines()
    assert [next(word for word in expected if word in line) for line in lines] == expected


def test_a_console_file_that_can_not_be_written_is_named(tmp_path):
    with pytest.raises(EngineError, match=r"console_log_file = .* can't be written"):
        make_display(LoggingSettings(console_log_file=str(tmp_path)))

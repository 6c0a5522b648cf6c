"""What reaches the terminal: capabilities from the environment, no control byte, ASCII where asked, the clipboard."""

import base64

import pytest
from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color

from sdtui.graphics_query import read_reply
from sdtui.terminal import TextFilter, ascii_text, clipboard_sequences, detect, notification, plain_text

HOSTILE = [
    "\x1b]52;c;cm0gLXJm\x07", "\x1b[2J", "\x9b31m", "a\u202eb", "\x00\x08\x7f", "\u2066x\u2069", "line\r\nfeed",
    "\U000e0041", "\x1bPtmux;\x1b\x1b]52;c;AA\x07\x1b\\", "\ufeffbom",
]  # fmt: skip


def terminal(**environ):
    return detect({"TERM": "xterm-256color", **environ}, "utf-8")


@pytest.mark.parametrize(
    ("environ", "colors"),
    [
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "truecolor"),
        ({"TERM": "xterm-256color"}, "256"),
        ({"TERM": "screen"}, "16"),
        ({"TERM": "linux"}, "16"),
        ({"TERM": "dumb"}, "none"),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": "1"}, "none"),
        ({}, "none"),
    ],
)
def test_colours_follow_the_environment(environ, colors):
    assert detect(environ, "utf-8").colors == colors


@pytest.mark.parametrize(
    ("environ", "graphics"),
    [
        ({"KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM_PROGRAM": "WezTerm"}, "kitty"),
        ({"TERM": "foot"}, "sixel"),
        ({"KITTY_WINDOW_ID": "1", "TMUX": "x"}, ""),
        ({"TMUX": "x", "SDTUI_PICTURES": "sixel"}, "sixel"),
        ({}, ""),
    ],
)
def test_pictures_follow_the_environment(environ, graphics):
    assert terminal(**environ).graphics == graphics


def test_ascii_is_asked_for_or_follows_from_the_locale():
    assert terminal(SDTUI_ASCII="1").use_ascii
    assert detect({"TERM": "xterm"}, "ANSI_X3.4-1968").use_ascii
    assert not detect({"TERM": "xterm", "SDTUI_ASCII": "0"}, "latin-1").use_ascii
    assert not terminal().use_ascii


@pytest.mark.parametrize("text", HOSTILE)
def test_no_control_character_passes_the_last_filter(text):
    line = TextFilter(terminal()).apply([Segment(f"a{text}b")], Color(0, 0, 0))

    shown = "".join(segment.text for segment in line)
    assert not [
        char for char in shown if ord(char) < 32 or 127 <= ord(char) < 160 or char in "\u202e\u2066\u2069\ufeff"
    ]
    assert plain_text("caf\u00e9 \u732b\u200d") == "caf\u00e9 \u732b\u200d"


def test_ascii_keeps_the_width_of_every_line():
    text = "\u256d\u2500 \u25b8 \u2717 \u732b_01.png \u2026 \u28ff\u2588\u2591 \u2500\u256f"

    for keep_letters in (True, False):
        assert cell_len(text) == cell_len(ascii_text(text, keep_letters=keep_letters))
    assert ascii_text(text, keep_letters=False).isascii()
    assert "\u732b" in ascii_text(text, keep_letters=True)


def test_the_clipboard_sequence_holds_the_text():
    (plain,) = clipboard_sequences("sdtui train x", terminal())

    assert plain.startswith("\x1b]52;c;")
    assert base64.b64decode(plain[7:-1]) == b"sdtui train x"


def test_tmux_gets_both_forms_and_screen_short_pieces():
    plain, wrapped = clipboard_sequences("text", terminal(TMUX="1"))
    assert wrapped == "\x1bPtmux;\x1b" + plain + "\x1b\\"

    (pieces,) = clipboard_sequences("x" * 2000, terminal(STY="1"))
    assert max(len(piece) for piece in pieces.split("\x1b\\")) < 768
    assert "".join(piece.removeprefix("\x1bP") for piece in pieces.split("\x1b\\")).startswith("\x1b]52;c;")


def test_a_text_too_long_for_the_clipboard_is_not_cut():
    assert clipboard_sequences("x" * 100_000, terminal()) == ()


def test_a_notification_cannot_be_left_by_its_text():
    text = notification("sdtui", "done\x1b\\\x1b]52;c;AA\x07;x", terminal())

    assert text.count("\x1b") == 2
    assert text.endswith("\x1b\\\x07")


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (b"\x1b_Gi=31;OK\x1b\\\x1b[?62;c", "kitty"),
        (b"\x1b[?62;4;6c", "sixel"),
        (b"\x1b_Gi=31;OK\x1b\\\x1b[?62;4c", "kitty and sixel"),
        (b"\x1b[?1;2c", "no"),
        (b"\x1b[?64;14;42c", "no"),
        (b"", "no answer"),
        (b"garbage", "no"),
    ],
)
def test_the_terminals_answer_is_read(reply, answer):
    assert read_reply(reply) == answer

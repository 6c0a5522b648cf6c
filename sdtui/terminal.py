"""What the terminal can do, and text made fit for it: control bytes never pass, symbols become ASCII where asked."""

import base64
import locale
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

if TYPE_CHECKING:
    from sdtui.graphics import Mode

Colors = Literal["truecolor", "256", "16", "none"]
Graphics = Literal["kitty", "sixel", ""]
MAX_CLIPBOARD = 74_994  # Bytes of OSC 52 payload that xterm and tmux take.

# Control characters, and marks that reorder or hide text; joiners stay, since scripts need them.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]")
_NON_ASCII = re.compile(r"[^\x00-\x7f]")

_ASCII_PAIRS = {
    "\u2500\u2501\u2550\u2504\u2508\u254c\u2574\u2576\u2013\u2014\u2212": "-",
    "\u2502\u2503\u2551\u2506\u250a\u258d\u258e\u258f\u258a\u258b\u258c\u2590\u2595\u2016": "|",
    "\u250c\u2510\u2514\u2518\u256d\u256e\u256f\u2570\u251c\u2524\u252c\u2534\u253c\u2554\u2557\u255a\u255d": "+",
    "\u2588\u2580\u2584\u2593\u2592\u2586\u2587\u2585": "#", "\u2591\u2581\u2582\u00b7": ".",
    "\u2583\u2594": "-", "\u25cf\u25c9\u2022": "*", "\u25cb": "o", "\u25c6\u25b2": "^", "\u25bc\u25be": "v",
    "\u25b8\u25b6\u203a\u2192": ">", "\u25c2\u25c0\u2039\u2190": "<", "\u2191": "^", "\u2193": "v",
    "\u2713\u2714\u25a3\u2611": "x", "\u2717\u2718\u2716": "X", "\u26a0": "!", "\u25a0": "#", "\u25a1\u2610": "-",
    "\u2026": "~", "\u00d7": "x", "\u2264": "<", "\u2265": ">", "\u2248": "~", "\u00b1": "~", "\u00a0": " ",
    "\u2018\u2019": "'", "\u201c\u201d": '"', "\u2800": " ",
}  # fmt: skip
_ASCII = str.maketrans(
    {
        **{char: ascii_char for chars, ascii_char in _ASCII_PAIRS.items() for char in chars},
        **{chr(code): "*" for code in range(0x2801, 0x2900)},  # Braille dots of the plots.
    }
)


_CHOICES: Mapping[str, Graphics] = {"kitty": "kitty", "sixel": "sixel"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """What the environment says about the terminal; nothing is asked of the terminal itself."""

    name: str
    colors: Colors
    multiplexer: Literal["tmux", "screen", ""]
    is_ssh: bool
    is_utf8: bool
    use_ascii: bool
    graphics: Graphics
    is_browser: bool = False


def browser_terminal() -> Terminal:
    """Return what xterm.js in a browser can do, whatever terminal the server was started from."""
    kept = {name: os.environ.get(name, "") for name in ("NO_COLOR", "SDTUI_ASCII")}
    drawn = detect({**kept, "TERM": "xterm-256color", "COLORTERM": "truecolor"}, encoding="utf-8")
    return replace(drawn, name="a browser", is_browser=True)


def picture_mode(terminal: Terminal) -> "Mode":
    """Return how pictures are drawn in a terminal."""
    if terminal.use_ascii:
        return "ascii"
    return terminal.graphics or "blocks"


def detect(environ: Mapping[str, str] | None = None, encoding: str | None = None) -> Terminal:
    """Return what the environment says about the terminal; SDTUI_ASCII=1 or a locale without UTF-8 asks for ASCII."""
    env = os.environ if environ is None else environ
    charset = (locale.getpreferredencoding(do_setlocale=False) if encoding is None else encoding).lower()
    is_utf8 = charset.replace("-", "") in ("utf8", "cp65001")
    wanted = env.get("SDTUI_ASCII", "")
    return Terminal(
        name=env.get("TERM_PROGRAM") or env.get("TERM", ""),
        colors=_colors(env),
        multiplexer="tmux" if env.get("TMUX") else "screen" if env.get("STY") else "",
        is_ssh=bool(env.get("SSH_CONNECTION") or env.get("SSH_TTY")),
        is_utf8=is_utf8,
        use_ascii=wanted not in ("", "0") or (not is_utf8 and not wanted),
        graphics=_graphics(env),
    )


def _colors(env: Mapping[str, str]) -> Colors:
    term = env.get("TERM", "")
    if env.get("NO_COLOR") or term in ("dumb", "", "unknown"):
        return "none"
    if env.get("COLORTERM", "").lower() in ("truecolor", "24bit") or env.get("WT_SESSION"):
        return "truecolor"
    if "direct" in term or "kitty" in term:
        return "truecolor"
    return "256" if "256" in term else "16"


def _graphics(env: Mapping[str, str]) -> Graphics:
    program = env.get("TERM_PROGRAM", "").lower()
    if chosen := _CHOICES.get(env.get("SDTUI_PICTURES", "")):
        return chosen
    if env.get("TMUX") or env.get("STY"):
        return ""  # A multiplexer swallows both unless it is told not to; the doctor asks the terminal itself.
    if env.get("KITTY_WINDOW_ID") or "kitty" in env.get("TERM", "") or program in ("ghostty", "wezterm"):
        return "kitty"
    sixel_terms = ("foot", "mlterm", "contour", "yaft")
    return "sixel" if env.get("TERM", "").startswith(sixel_terms) or program == "iterm.app" else ""


def plain_text(text: str) -> str:
    """Return text without characters that a terminal would obey, as wide on the screen as before."""
    return _UNSAFE.sub(lambda found: "?" * cell_len(found[0]), text)


def ascii_text(text: str, *, keep_letters: bool) -> str:
    """Return text with symbols as ASCII; other letters stay or become question marks of the same width."""
    text = text.translate(_ASCII)
    return text if keep_letters else _NON_ASCII.sub(lambda found: "?" * cell_len(found[0]), text)


class TextFilter(LineFilter):
    """The last look at every line before it becomes bytes: whatever a widget forgot to clean stops here."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._use_ascii = terminal.use_ascii
        self._keep_letters = terminal.is_utf8

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Return the line with its text cleaned; `background` plays no part."""
        del background
        return [
            segment if segment.control else Segment(self._clean(segment.text), segment.style) for segment in segments
        ]

    def _clean(self, text: str) -> str:
        if text.isascii() and text.isprintable():
            return text
        text = plain_text(text)
        return ascii_text(text, keep_letters=self._keep_letters) if self._use_ascii else text


def clipboard_sequences(text: str, terminal: Terminal) -> tuple[str, ...]:
    """Return OSC 52, and inside tmux or screen also wrapped so that the outer terminal gets it; none if too long."""
    payload = base64.b64encode(text.encode("utf-8", "replace")).decode("ascii")
    if len(payload) > MAX_CLIPBOARD:
        return ()
    plain = f"\x1b]52;c;{payload}\a"
    if terminal.multiplexer == "tmux":
        return plain, "\x1bPtmux;" + plain.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    if terminal.multiplexer == "screen":
        # GNU screen passes strings of at most 768 bytes.
        parts = [plain[start : start + 250] for start in range(0, len(plain), 250)]
        return ("".join(f"\x1bP{part}\x1b\\" for part in parts),)
    return (plain,)


def notification(title: str, text: str, terminal: Terminal) -> str:
    """Return a desktop notification (OSC 9) with a bell, which terminals without notifications still ring."""
    words = plain_text(f"{title}: {text}").replace(";", ",")[:200]
    osc = f"\x1b]9;{words}\x1b\\"
    if terminal.multiplexer == "tmux":
        osc = "\x1bPtmux;" + osc.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    return osc + "\a"

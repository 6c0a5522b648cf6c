"""Colour themes: dark, light, high contrast, and the terminal's own sixteen colours."""

import os

from textual.theme import Theme

from sdtui import recent
from sdtui.terminal import Terminal

THEMES = (
    Theme(
        name="sdtui-dark", primary="#7aa2f7", secondary="#5f87af", accent="#e0af68", foreground="#c8d0e0",
        background="#12151c", surface="#171b24", panel="#1f2531", success="#8fce7a", warning="#e5c07b",
        error="#f07178", dark=True,
        variables={"muted": "#7c879c", "line": "#3a4358", "key": "#e0af68", "border": "#7aa2f7", "cursor": "#2d3f63",
                   "input-selection-background": "#7aa2f7 35%"},
    ),
    Theme(
        name="sdtui-light", primary="#1f5fbf", secondary="#4a6fa5", accent="#9a5b00", foreground="#1d2430",
        background="#fafafa", surface="#f1f2f4", panel="#e4e7ec", success="#2c7a1f", warning="#8a5a00",
        error="#b3261e", dark=False,
        variables={"muted": "#5d6675", "line": "#b4bcc9", "key": "#9a5b00", "border": "#1f5fbf", "cursor": "#c9dcf7"},
    ),
    Theme(
        name="sdtui-contrast", primary="#00d7ff", secondary="#ffffff", accent="#ffff00", foreground="#ffffff",
        background="#000000", surface="#000000", panel="#262626", success="#00ff5f", warning="#ffff00",
        error="#ff8787", dark=True,
        variables={"muted": "#d0d0d0", "line": "#ffffff", "key": "#ffff00", "border": "#00d7ff", "cursor": "#005f87"},
    ),
)  # fmt: skip
CYCLE = ("sdtui-dark", "sdtui-light", "sdtui-contrast", "ansi-dark", "ansi-light")


def default_theme(terminal: Terminal) -> str:
    """Return the theme that was chosen, else one that the terminal can show."""
    chosen = os.environ.get("SDTUI_THEME") or recent.preference("theme")
    if chosen in CYCLE:
        return chosen
    return "sdtui-dark" if terminal.colors in ("truecolor", "256") else "ansi-dark"


def extra_variables(theme: Theme) -> dict[str, str]:
    """Return muted, line, key and border for a theme that does not define them."""
    if theme.ansi:
        return {
            "muted": "ansi_default",
            "line": "ansi_default",
            "key": "ansi_default",
            "border": "ansi_blue",
            "cursor": "ansi_default",
        }
    accent = theme.accent or theme.primary
    grey = "#8a8f98" if theme.dark else "#5f6670"
    return {"muted": grey, "line": grey, "key": accent, "border": theme.primary, "cursor": theme.secondary or grey}

"""Every test of the screen has its own data folder and a terminal that can draw."""

import sys

import pytest

# Pseudo-terminals are a POSIX thing.
collect_ignore = ["test_guard.py", "test_first_screen.py", "test_serve.py"] if sys.platform == "win32" else []


@pytest.fixture(autouse=True)
def _own_terminal(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "NO_COLOR", "SDTUI_ASCII", "SDTUI_THEME", "TEXTUAL_THEME", "TMUX", "STY", "KITTY_WINDOW_ID", "TERM_PROGRAM",
        "SSH_CONNECTION", "SSH_TTY",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("SDTUI_DATA_DIR", str(tmp_path_factory.mktemp("data")))

"""The table of keys: bindings, footer, help and documentation come from it, so it must be consistent."""

import re
from pathlib import Path

import pytest

from sdtui.keys import KEYS, SCOPES, bindings, key_name, keys_markdown, keys_of
from sdtui.screens.home import menu_matches_keys

DOCUMENT = Path(__file__).parents[2] / "docs" / "keys.md"


def test_the_document_is_up_to_date():
    """`python -m sdtui.keys` writes docs/keys.md."""
    assert DOCUMENT.read_text("utf-8") == keys_markdown()


def test_every_key_is_written_once_in_its_scope_and_ends_in_a_full_stop():
    for scope in SCOPES:
        keys = [part for key in keys_of(scope) for part in key.key.split(",")]
        assert sorted(set(keys)) == sorted(keys), scope
    assert {key.scope for key in KEYS} == {*SCOPES}
    assert all(re.fullmatch(r"[A-Z].*\.", key.help) for key in KEYS)


@pytest.mark.parametrize("forbidden", ["alt+", "ctrl+shift+", "ctrl+b", "ctrl+a"])
def test_no_key_that_tmux_screen_or_a_terminal_swallows(forbidden):
    """tmux has ^b, screen has ^a; Alt and Ctrl+Shift do not arrive everywhere."""
    assert not [key for key in KEYS if any(part.startswith(forbidden) for part in key.key.split(","))]


def test_bindings_carry_help_and_an_identity():
    for binding in bindings("home"):
        assert binding.tooltip
        assert binding.id == f"home.{binding.action}"


def test_keys_are_written_as_people_write_them():
    assert [key_name(key) for key in ("question_mark", "slash", "ctrl+s", "shift+tab", "n")] == [
        "?",
        "/",
        "^s",
        "S-tab",
        "n",
    ]


def test_homes_menu_shows_keys_of_the_table():
    assert menu_matches_keys()

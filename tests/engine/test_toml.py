"""TOML files are read with the line of each key, and written without losing what the user wrote."""

import tomllib
from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.toml import edit_toml, key_lines, nearest, parse_toml, read_toml


def test_every_key_knows_its_line():
    """Errors name file and line, also below arrays of tables and after multi-line values."""
    text = """top = 1
[general]
enable_bucket = true
note = '''
[not.a.table]
fake = 1
'''
after = [
  1,
]
[[datasets]]
resolution = 512
  [[datasets.subsets]]
  image_dir = "a"
  [[datasets.subsets]]
  "image_dir" = "b" # comment
[[datasets]]
[[datasets.subsets]]
a.b = 1
"""
    tomllib.loads(text)
    lines = key_lines(text)

    assert lines["top",] == 1
    assert lines["general", "enable_bucket"] == 3
    assert ("fake",) not in lines
    assert ("general", "fake") not in lines
    assert lines["general", "after"] == 8
    assert lines["datasets", 0, "resolution"] == 12
    assert lines["datasets", 0, "subsets", 1, "image_dir"] == 16
    assert lines["datasets", 1, "subsets", 0, "a", "b"] == 19


def test_a_missing_key_is_placed_at_its_nearest_parent():
    """A key that should be there is reported at its table."""
    file = parse_toml("[a]\n[[a.b]]\nx = 1\n", Path("x.toml"))

    assert file.line_of("a", "b", 0, "missing") == 2
    assert file.place("nothing") == "x.toml"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a = 1\nb = \n", ["x.toml", "line 2"]),
        (b"a = 'x'\nb = '\xff'\n", ["x.toml:2", "UTF-8"]),
        (b'p = "C:\\Users"\n', ["backslash"]),
        (b"a = " + b"9" * 5000, ["can't be read"]),
        (b"a = " + b"[" * 5000 + b"]" * 5000, ["nested"]),
        (b"#" * 1_100_000, ["larger than"]),
    ],
)
def test_a_file_that_is_not_toml_is_refused_in_one_sentence(tmp_path, content, words):
    """Syntax, encoding, size and nesting errors name the file and, where there is one, the line."""
    path = tmp_path / "x.toml"
    path.write_bytes(content)

    with pytest.raises(EngineError) as caught:
        read_toml(path)

    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_a_bom_and_windows_line_ends_are_read(tmp_path):
    """Notepad writes both."""
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xef\xbb\xbfa = 1\r\n[t]\r\nb = 2\r\n")

    file = read_toml(path)

    assert file.data == {"a": 1, "t": {"b": 2}}
    assert file.line_of("t", "b") == 3


def test_editing_keeps_comments_order_and_spelling():
    """A value that did not change keeps the user's spelling, such as 1e-4."""
    text = "# mine\n[optimizer]\nlearning_rate = 1e-4 # why\nmax_grad_norm = 1.0\n"

    edited = edit_toml(text, {"optimizer": {"learning_rate": 1e-4, "max_grad_norm": 0.5}, "saving": {"x": None}})

    assert edited == "# mine\n[optimizer]\nlearning_rate = 1e-4 # why\nmax_grad_norm = 0.5\n"


def test_nearest_names_only_what_is_near():
    """A hint that is far off would mislead."""
    assert nearest("learning_rat", ["learning_rate", "seed"]) == "; did you mean 'learning_rate'?"
    assert nearest("zzz", ["learning_rate", "seed"]) == ""

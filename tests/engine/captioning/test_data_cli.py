"""The verbs of `data` that need no model: merge, clean, stats, tags, undo."""

import json

import pytest
from PIL import Image

from engine.captioning.textfile import decode
from engine.cli import main
from engine.errors import EngineError

HOSTILE = "x [/] [link=http://x]y[/link] \x1b]52;c;aGk=\x07 \u202eevil"
ODD_BYTES = {
    "bom": b"\xef\xbb\xbfcat, dog\r\n",
    "crlf": b"cat, dog\r\nbird\r\n\r\n",
    "utf16": "\ufeffcat, dog\n".encode("utf-16-le"),
    "plain": b"cat, dog",
    "accents": "cat, h\u00e9ron".encode(),
}


def data(*words):
    return main(["data", *map(str, words)])


@pytest.fixture
def folder(tmp_path):
    """Pictures with caption files of several encodings, one latin-1, one without any."""
    root = tmp_path / "pics"
    root.mkdir()
    for name in [*ODD_BYTES, "latin1", "bare"]:
        Image.new("RGB", (8, 8)).save(root / f"{name}.png")
    for name, raw in ODD_BYTES.items():
        (root / f"{name}.txt").write_bytes(raw)
    (root / "latin1.txt").write_bytes(b"cat, h\xe9ron")
    return root


def bytes_of(root):
    return {path.name: path.read_bytes() for path in root.iterdir()}


def test_an_edit_keeps_encodings_and_undo_restores_every_byte(folder, capsys):
    """Mark, UTF-16, CRLF and the missing end of line stay; latin-1 is named by its byte and left alone."""
    before = bytes_of(folder)

    assert data("tags", folder, "--rename", "cat=kitten", "--add", "new tag") == 0
    assert "byte 6 (0xe9) is not UTF-8" in capsys.readouterr().err
    after = bytes_of(folder)
    assert after["bom.txt"] == b"\xef\xbb\xbfkitten, dog, new tag\r\n"
    assert after["crlf.txt"] == b"kitten, dog, bird, new tag\r\n\r\n"
    assert after["utf16.txt"] == "\ufeffkitten, dog, new tag\n".encode("utf-16-le")
    assert after["plain.txt"] == b"kitten, dog, new tag"
    assert after["bare.txt"] == b"new tag\n"
    assert after["latin1.txt"] == before["latin1.txt"]
    assert data("undo", folder) == 0
    assert bytes_of(folder) == before
    assert data("undo", folder) == 2
    assert "left to undo" in capsys.readouterr().err


def test_undo_goes_back_change_by_change_and_spares_later_edits(folder, capsys):
    """The newest first; a file that was edited by hand since stays, unless forced."""
    before = bytes_of(folder)
    data("tags", folder, "--add", "one")
    middle = bytes_of(folder)
    data("tags", folder, "--add", "two", "--glob", "p*")
    assert data("undo", folder) == 0
    assert bytes_of(folder) == middle
    (folder / "plain.txt").write_text("by hand")
    assert data("undo", folder) == 0
    assert "plain.txt" in capsys.readouterr().err
    assert bytes_of(folder) == {**before, "plain.txt": b"by hand"}


def test_a_dry_run_shows_the_difference_and_writes_nothing(folder, capsys):
    """Old and new text of each, safely."""
    before = bytes_of(folder)
    (folder / "plain.txt").write_text(HOSTILE)

    assert data("tags", folder, "--query", "x*", "--prepend", "new", "--dry_run") == 0
    shown = capsys.readouterr().err
    assert "  + new, x [/]" in shown
    assert "\\x1b]52" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert bytes_of(folder) == {**before, "plain.txt": HOSTILE.encode()}


def test_tags_are_removed_and_ordered_over_a_selection(folder):
    """A query chooses the pictures; --first and --sort order what stays."""
    (folder / "plain.txt").write_text("d, c, b, a, xx, xy")
    data("tags", folder, "--query", "a, !nothing", "--remove", "x*", "--first", "c,a", "--sort")

    assert (folder / "plain.txt").read_text() == "c, a, b, d"
    assert (folder / "accents.txt").read_bytes() == ODD_BYTES["accents"]


def test_merge_clean_and_stats_of_a_folder(folder, tmp_path, capsys):
    """Captions and tags together by path; the metadata is cleaned in place; both are undone."""
    (folder / "latin1.txt").unlink()
    (folder / "plain.caption").write_text("a  a cat\n")
    out = tmp_path / "meta.json"

    assert data("merge", folder, out) == 0
    assert "2 pictures have no text" in capsys.readouterr().err
    merged = json.loads(out.read_text())
    assert merged["plain.png"] == {"caption": "a  a cat", "tags": "cat, dog"}
    assert merged["crlf.png"]["tags"] == "cat, dog\nbird"
    assert data("tags", out, "--add", "blue_cat") == 0
    assert data("clean", out, out) == 0
    cleaned = json.loads(out.read_text())
    assert cleaned["plain.png"] == {"caption": "a cat", "tags": "dog, blue cat"}
    capsys.readouterr()
    assert data("stats", out, "--json", "--top", 1) == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["pictures"] == 5
    assert counted["most_frequent"] == [{"tag": "blue cat", "pictures": 5}]
    for _change in range(3):
        assert data("undo", out) == 0
    assert not out.exists()


def test_the_classic_tools_by_their_names(folder, tmp_path, capsys):
    """Their flags, their keys, their text, and an error where a caption file is missing."""
    out = tmp_path / "meta.json"
    assert data("merge_captions_to_metadata", folder, out) == 2
    assert "no such caption file" in capsys.readouterr().err
    for name in ("latin1", "utf16", "bare"):
        (folder / f"{name}.png").unlink()

    assert data("merge_dd_tags_to_metadata", folder, out, "--full_path", "--recursive") == 0
    assert list(json.loads(out.read_text())) == sorted(f"{folder}/{n}.png" for n in ("accents", "bom", "crlf", "plain"))
    out.unlink()
    assert data("merge_dd_tags_to_metadata", folder, out) == 0
    assert list(json.loads(out.read_text())) == ["accents", "bom", "crlf", "plain"]
    assert data("clean_captions_and_tags", out, tmp_path / "clean.json", "--debug") == 0
    assert json.loads((tmp_path / "clean.json").read_text())["plain"] == {"tags": "cat, dog"}


def test_jsonl_is_written_and_read(folder, tmp_path):
    """One line for each picture, with image_path."""
    (folder / "latin1.txt").unlink()
    out = tmp_path / "meta.jsonl"

    assert data("merge", folder, out, "--only", "tags") == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0] == {"image_path": "accents.png", "tags": "cat, h\u00e9ron"}
    assert data("tags", out, "--add", "z") == 0
    assert json.loads(out.read_text().splitlines()[0])["tags"].endswith(", z")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["merge", "nowhere", "out.json"], "no such folder of pictures"),
        (["clean", "nowhere.json", "out.json"], "no such metadata file"),
        (["clean", "x.json"], "give IN.json and OUT.json"),
        (["tags", "."], "say what to do"),
        (["tags", ".", "--rename", "x"], "expected OLD=NEW"),
        (["tags", ".", "--add", "x", "--caption_extension", "txt"], "expected an extension"),
        (["undo", "."], "left to undo"),
        (["stats", ".", "--nonsense"], "is not understood"),
    ],
)
def test_wrong_usage_ends_with_a_sentence(words, message, tmp_path, monkeypatch, capsys):
    """Exit code 2, nothing written."""
    monkeypatch.chdir(tmp_path)

    assert data(*words) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_table_to_edit_is_written_once(tmp_path, capsys):
    """And never over a file that is there."""
    assert data("clean", "--write_rules", tmp_path / "my.toml") == 0
    (tmp_path / "in.json").write_text('{"a.png": {"tags": "x_yz, rating:s"}}')
    assert data("clean", tmp_path / "in.json", tmp_path / "in.json", "--rules", tmp_path / "my.toml") == 0
    assert json.loads((tmp_path / "in.json").read_text()) == {"a.png": {"tags": "x yz"}}
    assert data("clean", "--write_rules", tmp_path / "my.toml") == 2


def test_text_that_is_none_is_refused():
    """NUL and half a UTF-16 character."""
    with pytest.raises(EngineError, match="NUL"):
        decode(b"a\0b", "x")
    with pytest.raises(EngineError, match="byte 4"):
        decode(b"\xff\xfea\0b", "x")

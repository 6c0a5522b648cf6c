"""Which content a file had: remembered while the file stays as it is, forgotten when it changes."""

import os
import sqlite3
from pathlib import Path

import pytest

from engine.contents import Contents, signature_of


def _content(contents: Contents, path: Path) -> str | None:
    return contents.known([path])[0][1]


def test_content_is_known_to_the_next_run(tmp_path: Path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"1")
    contents = Contents(tmp_path / "c.sqlite")
    assert _content(contents, picture) is None
    contents.remember([(picture, signature_of(picture), "one")])
    contents.close()

    assert _content(Contents(tmp_path / "c.sqlite"), picture) == "one"


def test_changed_file_is_unknown(tmp_path: Path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"1")
    contents = Contents(None)
    contents.remember([(picture, signature_of(picture), "one")])

    os.utime(picture, ns=(1, 1))
    assert _content(contents, picture) is None
    contents.remember([(picture, signature_of(picture), "one")])
    picture.write_bytes(b"22")
    assert _content(contents, picture) is None


def test_missing_file_is_unknown(tmp_path: Path):
    assert Contents(None).known([tmp_path / "gone"]) == [(None, None)]


def test_names_that_are_no_text_are_kept(tmp_path: Path):
    picture = tmp_path / os.fsdecode(b"\xff\n.png")
    picture.write_bytes(b"1")
    contents = Contents(None)
    contents.remember([(picture, signature_of(picture), "one")])

    assert _content(contents, picture) == "one"


def test_damaged_table_is_made_anew(tmp_path: Path):
    file = tmp_path / "c.sqlite"
    file.write_bytes(b"no database" * 100)

    assert Contents(file).known([]) == []
    assert file.read_bytes().startswith(b"SQLite format 3")


def test_table_in_use_is_not_destroyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engine.contents._PATIENCE_SECONDS", 0)
    file = tmp_path / "c.sqlite"
    with sqlite3.connect(file, isolation_level=None) as other:
        other.execute("CREATE TABLE precious (a)")
        other.execute("BEGIN EXCLUSIVE")
        contents = Contents(file)
        assert "locked" in contents.refusal
        contents.close()
        other.execute("COMMIT")
        assert other.execute("SELECT * FROM precious").fetchall() == []
    other.close()


def test_place_that_cannot_be_written_is_named_and_memory_serves(tmp_path: Path):
    """The run goes on; only a later one has to read again."""
    (tmp_path / "file").write_bytes(b"a")

    contents = Contents(tmp_path / "file" / "c.sqlite")
    (known,) = contents.known([tmp_path / "file"])
    contents.remember([(tmp_path / "file", known[0], "hash")])

    assert "choose another folder" in contents.refusal
    assert contents.known([tmp_path / "file"]) == [(known[0], "hash")]
    contents.close()

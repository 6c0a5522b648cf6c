"""Captioning a folder: modes, metadata, resume after a kill, undo, cancel, hostile names, what can't be read."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from engine.captioning.base import Described
from engine.captioning.journal import journal_folder
from engine.captioning.run import Work, caption_pictures
from engine.captioning.texts import FolderTexts, MetadataTexts
from engine.cli import main
from tests.engine.captioning import models_support as models

HOSTILE = b"x [red] [@click=app.quit] \x1b]52;c;aGk=\x07 \xe2\x80\xae\xff\n.png"


def data(*words):
    return main(["data", *map(str, words)])


def write_pictures(folder, count, size=24):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (size, size), (number * 5 % 256, 40, 250)).save(folder / f"p{number:04}.png")
    return folder


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Counting:
    """A captioner without a model, which counts what it is given and may stop in the middle."""

    name = "wd14"
    kind = "tags"
    source = "none"
    identity = "counting"

    def __init__(self, fails_after=None):
        self.seen = []
        self._fails_after = fails_after

    def prepare(self, pixels_HWC):
        return pixels_HWC[0, 0]

    def describe(self, batch, keys):
        if self._fails_after is not None and len(self.seen) >= self._fails_after:
            raise KeyboardInterrupt
        self.seen += keys
        return [Described(text=f"red {pixel[0]}, same") for pixel in batch]


def work_on(folder, captioner, **options):
    pictures = FolderTexts(folder, ".txt")
    return Work(**{"pictures": pictures, "texts": pictures, "captioner": captioner, "batch_size": 4, **options})


def test_tags_are_written_beside_the_pictures_and_undone(tmp_path, capsys):
    """A real ONNX file through the command line; frequencies; undo leaves nothing behind."""
    folder = write_pictures(tmp_path / "pics", 3)
    before = bytes_of(folder)

    words = ["tag", folder, "--model_dir", models.wd14_v14(), "--remove_underscore", "--undesired_tags", "^_^"]
    assert data(*words, "--character_tags_first", "--frequency_tags", "--batch_size", 2) == 0
    assert (folder / "p0001.txt").read_text() == "hero (costume) (saga), 1girl, very blue\n"
    shown = capsys.readouterr().err
    assert "1girl: 3" in shown
    assert "3 described, 3 written, 0 kept" in shown
    assert data("undo", folder) == 0
    assert bytes_of(folder) == before


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("replace", "red 0, same\r\n"),
        ("append", "mine, same, red 0\r\n"),
        ("prepend", "red 0, mine, same\r\n"),
        ("skip", "mine, same\r\n"),
    ],
)
def test_modes_treat_a_text_that_is_there(tmp_path, mode, expected):
    """Tags are not written twice; encoding, mark and line ends stay; undo restores every byte."""
    folder = write_pictures(tmp_path / "pics", 2)
    (folder / "p0000.txt").write_bytes(b"\xef\xbb\xbfmine, same\r\n")
    before = bytes_of(folder)

    summary = caption_pictures(work_on(folder, Counting(), mode=mode))
    assert (folder / "p0000.txt").read_bytes() == b"\xef\xbb\xbf" + expected.encode()
    assert (folder / "p0001.txt").read_bytes() == b"red 5, same\n"
    assert (summary.written, summary.kept) == ((1, 1) if mode == "skip" else (2, 0))
    data("undo", folder)
    assert bytes_of(folder) == before


def test_a_caption_in_another_encoding_survives(tmp_path):
    """Appending leaves latin-1 alone and names the byte; replacing keeps its bytes for undo."""
    folder = write_pictures(tmp_path / "pics", 2)
    (folder / "p0000.txt").write_bytes(b"h\xe9ron")
    before = bytes_of(folder)

    summary = caption_pictures(work_on(folder, Counting(), mode="append"))
    assert "byte 1 (0xe9)" in summary.errors[0]
    assert (folder / "p0000.txt").read_bytes() == b"h\xe9ron"
    caption_pictures(work_on(folder, Counting(), mode="replace"))
    assert (folder / "p0000.txt").read_bytes() == b"red 0, same\n"
    data("undo", folder)
    data("undo", folder)
    assert bytes_of(folder) == before


def test_an_interrupted_run_goes_on_where_it_ended(tmp_path):
    """Each picture is described once in all, also in append mode; one undo takes back both parts."""
    folder = write_pictures(tmp_path / "pics", 10)
    (folder / "p0001.txt").write_text("mine")
    before = bytes_of(folder)
    first, second = Counting(fails_after=8), Counting()
    with pytest.raises(KeyboardInterrupt):
        caption_pictures(work_on(folder, first, mode="append"))
    assert len(list(folder.glob("*.txt"))) == 8

    summary = caption_pictures(work_on(folder, second, mode="append"))
    assert sorted(first.seen + second.seen) == sorted(path.name for path in folder.glob("*.png"))
    assert summary.resumed == 8
    assert (folder / "p0001.txt").read_text() == "mine, red 5, same"
    data("undo", folder)
    assert bytes_of(folder) == before
    assert caption_pictures(work_on(folder, Counting())).resumed == 0


def test_metadata_is_written_once_at_the_end_and_resumed(tmp_path):
    """Other members of entries stay, `image_size` comes; what was described before the interruption is not again."""
    folder, meta = write_pictures(tmp_path / "pics", 6), tmp_path / "meta.json"
    meta.write_text('{"p0000.png": {"caption": "a cat", "tags": "old"}, "zz": {"x": 1}}')
    before = meta.read_bytes()
    first, second = Counting(fails_after=4), Counting()
    with pytest.raises(KeyboardInterrupt):
        caption_pictures(work_on(folder, first, texts=MetadataTexts(meta)))
    assert meta.read_bytes() == before

    caption_pictures(work_on(folder, second, texts=MetadataTexts(meta)))
    assert sorted(first.seen + second.seen) == sorted(path.name for path in folder.iterdir())
    written = json.loads(meta.read_text())
    assert written["p0000.png"] == {"caption": "a cat", "tags": "red 0, same", "image_size": [24, 24]}
    assert written["p0005.png"] == {"tags": "red 25, same", "image_size": [24, 24]}
    assert written["zz"] == {"x": 1}
    data("undo", meta)
    assert meta.read_bytes() == before


def test_a_new_metadata_file_by_the_command_line(tmp_path, capsys):
    """Straight to .jsonl, named by whole paths; a dry run prints texts as JSON and writes nothing."""
    folder, out = write_pictures(tmp_path / "pics", 2), tmp_path / "m.jsonl"
    words = ["tag", folder, "--model_dir", models.wd14_v14(), "--output_path", out, "--full_path", "--json"]

    assert data(*words, "--dry_run", "--limit", 1) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document["texts"]) == ["p0000.png"]
    assert not out.exists()
    assert data(*words) == 0
    assert f"model: {models.wd14_v14()}" in capsys.readouterr().err
    (journal,) = journal_folder(out).iterdir()
    assert json.loads(journal.read_text().splitlines()[0])["model"] == str(models.wd14_v14())
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["image_path"] for row in rows] == [f"{folder}/p0000.png", f"{folder}/p0001.png"]
    assert all(row["image_size"] == [24, 24] for row in rows)


def test_what_can_t_be_read_is_named_and_the_rest_is_done(tmp_path, capsys):
    """A damaged picture, an unreadable name; nothing hostile reaches the terminal."""
    folder = write_pictures(tmp_path / "pics", 2)
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    os.link(folder / "p0000.png", os.fsencode(folder) + b"/" + HOSTILE)

    assert data("tag", folder, "--model_dir", models.wd14_v14(), "--debug") == 0
    shown = capsys.readouterr().err
    assert "torn.png" in shown
    assert "3 described, 3 written" in shown
    assert not any(char in shown for char in "\x1b\x07\u202e\udcff")
    assert (folder / os.fsdecode(HOSTILE.replace(b".png", b".txt"))).exists()
    assert data("undo", folder) == 0
    assert len(list(folder.glob("*.txt"))) == 0


def test_cancelling_ends_after_a_batch_and_goes_on_later(tmp_path):
    """Progress tells pictures and speed; what is done stays done."""
    folder = write_pictures(tmp_path / "pics", 12)
    told = []
    summary = caption_pictures(
        work_on(folder, Counting()), progress=lambda *what: told.append(what), cancel=lambda: len(told) == 2
    )

    assert summary.is_cancelled
    assert [(done, total) for done, total, _rate in told] == [(4, 12), (8, 12)]
    assert all(rate > 0 for _done, _total, rate in told)
    assert caption_pictures(work_on(folder, Counting())).resumed == 8


def test_blip_captions_by_the_command_line(tmp_path):
    """`data caption` writes .caption files."""
    folder = write_pictures(tmp_path / "pics", 3)
    assert data("caption", folder, "--caption_weights", models.blip(), "--max_length", 10, "--batch_size", 2) == 0

    texts = [path.read_text().split() for path in sorted(folder.glob("*.caption"))]
    assert len(texts) == 3
    assert all(set(text) <= set(models.WORDS) for text in texts)


def test_the_decoded_pictures_in_memory_are_bounded(tmp_path):
    """However slow the model, only a batch and a few more are decoded."""
    folder = write_pictures(tmp_path / "pics", 40)
    held = []

    class Slow(Counting):
        prepared = 0

        def prepare(self, pixels_HWC):
            self.prepared += 1
            return super().prepare(pixels_HWC)

        def describe(self, batch, keys):
            time.sleep(0.01)
            held.append(self.prepared - len(self.seen))
            return super().describe(batch, keys)

    caption_pictures(work_on(folder, Slow(), workers=2))
    assert max(held) <= 4 + (2 + 4) + 1


def start(tmp_path, folder, *words):
    command = [sys.executable, "-m", "engine", "data", "tag", str(folder), "--model_dir", str(models.wd14_v14())]
    environment = {**os.environ, "SDTUI_CACHE_DIR": str(tmp_path / "cache"), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen([*command, "--debug", *words], stderr=subprocess.PIPE, text=True, env=environment)


def test_killed_in_the_middle_then_run_again(tmp_path):
    """kill -9: no file is torn, nothing is left over, and the second run does only what the first did not."""
    folder = write_pictures(tmp_path / "pics", 40, size=300)
    with start(tmp_path, folder, "--batch_size", "2") as first:
        for _line in range(8):
            first.stderr.readline()
        first.kill()
    done = {path.stem for path in folder.glob("*.txt")}
    whole = ("1girl, very_blue, ^_^, hero_(costume)_(saga)\n",
             "1girl, very_blue, very_red, ^_^, hero_(costume)_(saga), other_hero\n")  # fmt: skip
    assert all(path.read_text() in whole for path in folder.glob("*.txt"))
    with start(tmp_path, folder, "--batch_size", "2") as second:
        again = {line.partition(".png:")[0] for line in second.stderr if line.startswith("p0")}
    assert second.returncode == 0

    assert 8 <= len(done) < 40
    assert again == {path.stem for path in folder.glob("*.png")} - done
    assert all(path.read_text() in whole for path in folder.glob("*.txt"))
    assert len(list(folder.iterdir())) == 80


def test_interrupted_by_the_user_ends_with_130(tmp_path):
    """Ctrl-C finishes the batch, says how to go on, and exits as the contract says."""
    folder = write_pictures(tmp_path / "pics", 80, size=300)
    with start(tmp_path, folder, "--batch_size", "1") as process:
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()

    assert process.returncode == 130
    assert "the same command goes on where it ended" in rest
    assert 0 < len(list(folder.glob("*.txt"))) < 80
    assert all(path.stat().st_size > 0 for path in folder.glob("*.txt"))

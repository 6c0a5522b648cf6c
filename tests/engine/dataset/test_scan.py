"""A scan finds every picture and caption, names every bad file once, and knows unchanged ones again."""

import json
import os
import shutil
import socket
import sqlite3
import struct
import time
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from engine.dataset import examine
from engine.dataset import scan as scan_module
from engine.dataset.config import DatasetConfig, DatasetPart, Subset
from engine.dataset.duplicates import find_duplicates
from engine.dataset.helper import Helper
from engine.dataset.index import FILE_NAME, Index
from engine.dataset.scan import Catalog, ScanCancelledError, scan
from engine.errors import EngineError

FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP"}


def _picture(suffix: str, size: tuple[int, int] = (80, 60), orientation: int | None = None, **options: object) -> bytes:
    file = BytesIO()
    if orientation:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    Image.new("RGB", size, (200, 100, 50)).save(file, FORMATS[suffix], **options)
    return file.getvalue()


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    path.mkdir()
    return path


def _scan(folder: Path, cache: str = "cache", **options: object) -> Catalog:
    subset = {key: options.pop(key) for key in list(options) if key in {"recursive", "metadata_file", "num_repeats"}}
    part = DatasetPart(subsets=(Subset(image_dir=folder, **subset),))
    progress = {key: options.pop(key) for key in list(options) if key in {"progress", "cancel"}}
    config = DatasetConfig(datasets=(part,), **options)
    return scan(config, cache_dir=folder.parent / cache, **progress)


def _codes(catalog: Catalog) -> dict[str, str]:
    return {problem.code: str(problem) for problem in catalog.problems}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_sizes_are_upright(folder: Path, suffix: str, orientation: int | None) -> None:
    """Width and height after the EXIF orientation, in every format that has one, as Pillow reads it."""
    if suffix == "bmp" and orientation:
        return
    (folder / f"a.{suffix}").write_bytes(_picture(suffix, (80, 60), orientation))
    catalog = _scan(folder)

    assert catalog.sizes_N2.tolist() == [[60, 80] if (orientation or 1) >= 5 else [80, 60]]
    assert catalog.orientations_N.tolist() == [orientation or 1]


def test_exif_behind_the_pixels_of_a_png_counts(folder: Path) -> None:
    """Tools that add EXIF later put it there."""
    plain = _picture("png", (400, 300))
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    (folder / "a.png").write_bytes(plain[:-12] + _png_chunk(b"eXIf", exif) + plain[-12:])
    pixels = zlib.compress(bytes(301 * 200), 0)
    header = b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", struct.pack(">IIBBBBB", 300, 200, 8, 0, 0, 0, 0))
    chunks = [_png_chunk(b"IDAT", pixels[start : start + 999]) for start in range(0, len(pixels), 999)]
    last = _png_chunk(b"eXIf", exif) + _png_chunk(b"IEND", b"")
    (folder / "b.png").write_bytes(header + b"".join(chunks) + last)
    (folder / "c.png").write_bytes(header + b"".join(chunks) + last[-12:])

    assert _scan(folder).sizes_N2.tolist() == [[300, 400], [200, 300], [300, 200]]


@pytest.mark.parametrize(
    "options", [{"lossless": True}, {"quality": 50}, {"icc_profile": b"x" * 9000, "quality": 50}], ids=str
)
def test_all_kinds_of_webp_are_read(folder: Path, options: dict) -> None:
    """Lossy, lossless, extended; EXIF behind large chunks."""
    (folder / "a.webp").write_bytes(_picture("webp", (333, 222), 8, **options))
    (folder / "b.webp").write_bytes(_picture("webp", (333, 222), **options))
    assert _scan(folder).sizes_N2.tolist() == [[222, 333], [333, 222]]


def test_large_segments_before_the_frame_are_jumped_over(folder: Path) -> None:
    """Profiles and comments of any length stand before a JPEG's size; progressive ones are read too."""
    (folder / "a.jpg").write_bytes(_picture("jpg", (500, 300), 6, icc_profile=b"p" * 150_000, progressive=True))
    (folder / "b.jpg").write_bytes(_picture("jpg", (500, 300), comment=b"c" * 60_000))
    assert _scan(folder).sizes_N2.tolist() == [[300, 500], [500, 300]]


def test_captions_come_from_files_beside_the_pictures(folder: Path) -> None:
    """.caption first, then .txt; byte-order mark, CRLF and empty lines go; missing and empty ones are counted."""
    captions = {
        "a.caption": b"from caption", "a.txt": b"from txt", "b.txt": b"\xef\xbb\xbfone\r\n\r\n two \r\n",
        "c.txt": "gr\u00fcn \U0001f600\u00a0x\n".encode(), "d.txt": b" \n\n",
    }  # fmt: skip
    for name, text in captions.items():
        (folder / name).write_bytes(text)
    for stem in "abcde":
        (folder / f"{stem}.png").write_bytes(_picture("png"))
    catalog = _scan(folder)

    assert catalog.captions == ["from caption", "one\ntwo", "gr\u00fcn \U0001f600\u00a0x", "", ""]
    codes = _codes(catalog)
    assert set(codes) == {"empty-caption", "no-caption"}
    assert "e.png" in codes["no-caption"]
    assert "d.txt" in codes["empty-caption"]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("a caf\u00e9".encode("latin-1"), "byte 5 (0xe9) is not UTF-8"),
        ("a cat".encode("utf-16"), "UTF-16"),
        ("a cat".encode("utf-16-le"), "byte 1 is NUL"),
        (b"a\0b", "byte 1 is NUL"),
        (b"fine\nthen \xff", "byte 10 (0xff)"),
    ],
)
def test_captions_in_a_wrong_encoding_are_named_with_the_byte(folder: Path, raw: bytes, words: str) -> None:
    """They stop the run; when bad pictures are skipped, theirs is left out, for a wrong caption would be learnt."""
    (folder / "a.png").write_bytes(_picture("png"))
    (folder / "a.txt").write_bytes(raw)
    (problem,) = _scan(folder).problems

    assert (problem.code, problem.severity) == ("caption-encoding", "error")
    assert problem.where.endswith("a.txt")
    assert words in problem.message
    skipped = _scan(folder, skip_bad_images=True)
    assert (len(skipped), skipped.problems[0].severity) == (0, "warning")


def test_long_captions_are_cut_at_64_kb(folder: Path) -> None:
    """Ten megabytes are not read; a character cut in two is left out."""
    (folder / "a.png").write_bytes(_picture("png"))
    (folder / "a.txt").write_bytes(b"x" + "\u00fc".encode() * 100_000)
    catalog = _scan(folder)

    assert catalog.captions == ["x" + "\u00fc" * 32767]
    assert list(_codes(catalog)) == ["long-caption"]


@pytest.mark.parametrize(
    ("name", "data", "code", "words"),
    [
        ("a.jpg", b"", "empty", "empty"),
        ("a.jpg", b"<!DOCTYPE html><html>", "not-a-picture", "web page"),
        ("a.png", b"just some text, not a picture", "not-a-picture", "not a picture"),
        ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n", "refused-format", "EPS"),
        ("a.png", b"8BPS\0\1" + bytes(50), "refused-format", "PSD"),
        ("a.jpg", b"II*\0" + bytes(50), "refused-format", "TIFF"),
        ("a.jxl", b"\xff\x0a" + bytes(50), "refused-format", "JPEG XL"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "damaged", "ends early"),
        ("a.jpg", b"\xff\xd8\xff\xe0\x00\x10JF", "damaged", ""),
        ("a.png", b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", struct.pack(">IIB", 0, 5, 8)), "damaged", "0x5"),
        (
            "a.png",
            b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", struct.pack(">II", 50_000, 50_000)),
            "too-large",
            "64 meg",
        ),
        ("a.webp", b"RIFF\0\0\0\0WEBPVP8 " + bytes(40), "damaged", ""),
        ("a.webp", b"RIFF\0\1\0\0WEBPVP8 " + bytes(40), "damaged", "ends before the picture"),
        (
            "a.png",
            b"\x89PNG\r\n\x1a\n"
            + _png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
            + _png_chunk(b"IDAT", bytes(90))[:50],
            "damaged",
            "ends before the picture",
        ),
    ],
)
def test_bad_files_are_named_with_what_they_are(folder: Path, name: str, data: bytes, code: str, words: str) -> None:
    """Found from the header, never handed to a decoder that could be harmed, each named once."""
    (folder / name).write_bytes(data)
    (folder / "good.png").write_bytes(_picture("png"))
    catalog = _scan(folder)
    errors = [problem for problem in catalog.problems if problem.severity == "error"]

    assert catalog.keys == ["good.png"]
    assert [(problem.code, Path(problem.where).name) for problem in errors] == [(code, name)]
    assert words in errors[0].message
    assert errors[0].fix


def test_pixel_limit_can_be_moved(folder: Path) -> None:
    """The limit holds for what the header says, also when that comes from the index."""
    (folder / "a.png").write_bytes(_picture("png", (80, 60)))
    assert len(_scan(folder, max_pixels=4800)) == 1
    assert list(_codes(_scan(folder, max_pixels=4799))) == ["too-large", "no-caption"][:1]


def test_pictures_under_a_wrong_name_are_used(folder: Path) -> None:
    """The content decides; the true format is told."""
    (folder / "a.png").write_bytes(_picture("jpg"))
    (folder / "b.JPEG").write_bytes(_picture("jpg"))
    file = BytesIO()
    Image.new("P", (30, 20)).save(file, "GIF")
    (folder / "c.jpg").write_bytes(file.getvalue())
    catalog = _scan(folder)

    assert catalog.keys == ["a.png", "b.JPEG", "c.jpg"]
    assert catalog.sizes_N2[2].tolist() == [30, 20]
    assert "2 pictures have another format" in _codes(catalog)["wrong-extension"]


def test_animated_pictures_give_their_first_frame(folder: Path) -> None:
    """Animated WebP and PNG are told."""
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "green")]
    for name in ("a.webp", "b.png"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    catalog = _scan(folder)

    assert len(catalog) == 2
    assert "2 pictures are animated" in _codes(catalog)["animated"]


def test_only_regular_files_are_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipes, sockets, dead links and loops of links are left out with a reason, and nothing hangs."""
    (folder / "good.png").write_bytes(_picture("png"))
    (folder / "sub").mkdir()
    (folder / "sub" / "inner.png").write_bytes(_picture("png"))
    (folder / "album.png").mkdir()
    (folder / "album.png" / "deep.png").write_bytes(_picture("png"))
    os.mkfifo(folder / "pipe.png")
    (folder / "dead.png").symlink_to(folder / "nowhere")
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "link.png").symlink_to(folder / "good.png")
    monkeypatch.chdir(folder)  # A socket's path may have no more than 107 characters.
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        catalog = _scan(folder, recursive=True)
        assert _scan(folder).keys == ["good.png", "link.png"]

    assert catalog.keys == ["good.png", "link.png", "album.png/deep.png", "sub/inner.png"]
    codes = _codes(catalog)
    assert codes["not-a-file"].startswith("4 entries are no regular files")
    assert "up" in codes["link-loop"]


def test_a_pipe_that_replaced_a_picture_does_not_hang(folder: Path) -> None:
    """Between listing and reading anything may happen to a file."""
    os.mkfifo(folder / "a.png")
    portion = examine.examine(str(folder), ["a.png"], [""], {})
    assert portion.notes == [("a.png", "not-a-picture", "no regular file")]


def test_names_from_hell_are_found_and_shown_safely(folder: Path) -> None:
    """Newlines, escapes, bytes that are no UTF-8, markup: the picture is used, messages carry no control character."""
    names = [b"new\nline.png", b"esc\x1b[31m.png", b"raw\xff\xfe.png", b"[red].png", b"x" * 251 + b".png"]
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(_picture("png"))
    for _ in range(2):  # The second time they come from the index.
        catalog = _scan(folder)
        assert sorted(os.fsencode(key) for key in catalog.keys) == sorted(names)
        assert all(ord(char) >= 32 for problem in catalog.problems for char in str(problem))
        assert all(str(problem).encode() for problem in catalog.problems)


def test_many_bad_files_are_told_in_one_line(folder: Path) -> None:
    """Up to twenty are named each; more are counted, with the first names."""
    for number in range(20):
        (folder / f"{number:02d}.jpg").touch()
    assert len([problem for problem in _scan(folder).problems if problem.code == "empty"]) == 20
    (folder / "20.jpg").touch()
    (problem,) = [problem for problem in _scan(folder).problems if problem.code == "empty"]
    assert problem.message.startswith("21 files are empty: ")
    assert problem.message.endswith("04.jpg and 16 more")


def test_an_empty_folder_is_an_error(folder: Path) -> None:
    """A data set without a picture can't be trained on; pictures in other formats are told."""
    (folder / "a.gif").touch()
    assert set(_codes(_scan(folder))) == {"no-pictures", "other-format"}


def _count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    original = examine._read_picture

    def counting(prefix: str, name: str, portion: examine.Portion) -> None:
        read.append(name)
        original(prefix, name, portion)

    monkeypatch.setattr(examine, "_read_picture", counting)
    return read


def test_a_rescan_reads_only_what_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times and sizes of pictures and captions decide; a new file moves the others without rereading them."""
    for number in range(600):
        (folder / f"{number:03d}.png").write_bytes(_picture("png"))
        (folder / f"{number:03d}.txt").write_text(f"caption {number}")
    first = _scan(folder)
    read = _count_reads(monkeypatch)

    again = _scan(folder)
    assert (again.keys, again.captions, again.sizes_N2.tolist()) == (
        first.keys,
        first.captions,
        first.sizes_N2.tolist(),
    )
    assert read == []

    (folder / "000a.png").write_bytes(_picture("png", (10, 10)))
    (folder / "300.txt").write_text("another caption")
    (folder / "400.png").write_bytes(_picture("png", (33, 44)))
    (folder / "500.txt").unlink()
    (folder / "599.png").unlink()
    changed = _scan(folder)
    assert read == ["000a.png", "300.png", "400.png", "500.png"]
    row = changed.keys.index
    assert changed.captions[row("300.png")] == "another caption"
    assert changed.sizes_N2[row("400.png")].tolist() == [33, 44]
    assert changed.captions[row("500.png")] == ""
    assert len(changed) == 600

    read.clear()
    assert _scan(folder).keys == changed.keys
    assert read == []


def test_problems_are_told_again_from_the_index(folder: Path) -> None:
    """What is wrong with a file stays wrong until the file changes."""
    (folder / "a.jpg").touch()
    (folder / "b.jpg").write_bytes(_picture("png"))
    (folder / "b.txt").write_bytes(b"\xff")
    first = _scan(folder)
    assert [str(problem) for problem in first.problems] == [str(problem) for problem in _scan(folder).problems]
    (folder / "a.jpg").write_bytes(_picture("jpg"))
    assert "empty" not in _codes(_scan(folder))


@pytest.mark.parametrize("damage", ["garbage", "table", "row"])
def test_a_damaged_index_is_built_anew(folder: Path, damage: str) -> None:
    """With a notice, and without losing a picture."""
    (folder / "a.png").write_bytes(_picture("png"))
    (folder / "a.txt").write_text("a")
    _scan(folder)
    path = folder.parent / "cache" / FILE_NAME
    if damage == "garbage":
        path.write_bytes(b"no database at all" * 500)
    else:
        with sqlite3.connect(path) as database:
            database.execute("DROP TABLE portion" if damage == "table" else "UPDATE portion SET columns = '[[1]]'")
        database.close()
    hurt = _scan(folder)
    assert hurt.keys == ["a.png"]
    if damage != "table":
        assert "is built anew" in _codes(hurt)["index"]
    assert _scan(folder).problems == ()


def test_an_index_that_can_not_be_written_only_costs_time(folder: Path) -> None:
    """A file where the cache folder should be: a notice, and the scan goes on."""
    (folder / "a.png").write_bytes(_picture("png"))
    (folder.parent / "cache").touch()
    catalog = _scan(folder)
    assert catalog.keys == ["a.png"]
    assert "can't be used" in _codes(catalog)["index"]


def test_two_scans_may_share_an_index(folder: Path) -> None:
    """Another program holding the index open does not disturb."""
    (folder / "a.png").write_bytes(_picture("png"))
    with Index(folder.parent / "cache") as other:
        other.remember_hashes([("x", 1, 2, "h")])
        assert _scan(folder).keys == ["a.png"]
        assert other.hashes(["x", "x"], [1, 1], [2, 3]) == ["h", ""]


def test_threads_and_helpers_find_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How the work is spread changes nothing of the result."""
    for number in range(900):
        (folder / f"{number:03d}.jpg").write_bytes(_picture("jpg", (20 + number % 50, 30)) if number % 90 else b"")
        (folder / f"{number:03d}.txt").write_text(f"caption {number}")
    monkeypatch.setattr(scan_module, "PORTION", 64)
    plain = _scan(folder, "plain")
    monkeypatch.setattr(scan_module, "_FRESH", 64)
    monkeypatch.setattr(scan_module, "_WORTH_HELPERS", 64)
    monkeypatch.setattr(scan_module, "num_helpers", lambda: 2)
    helped = _scan(folder, "helped")
    monkeypatch.setattr(scan_module, "_SLOW_SECONDS", 0.0)
    threaded = _scan(folder, "threaded")

    for other in (helped, threaded, _scan(folder, "helped")):
        assert plain.keys == other.keys
        assert plain.captions == other.captions
        assert plain.sizes_N2.tolist() == other.sizes_N2.tolist()
        assert plain.problems == other.problems


def test_helpers_that_wait_for_the_disk_become_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to as many as there would be threads."""
    started = []

    class Waiting(Helper):
        def __init__(self) -> None:
            self._process = None
            self.waits = True
            started.append(self)

    for number in range(90):
        (folder / f"{number:03d}.bmp").write_bytes(_picture("bmp", (8, 8)))
    for name, value in {"PORTION": 1, "_FRESH": 1, "_WORTH_HELPERS": 1, "num_helpers": lambda: 2}.items():
        monkeypatch.setattr(scan_module, name, value)
    monkeypatch.setattr(scan_module, "Helper", Waiting)
    assert len(_scan(folder)) == 90
    assert len(started) == 16


def test_a_dead_helper_is_replaced_by_ourselves(folder: Path) -> None:
    """A killed helper process costs time, not pictures."""
    (folder / "a.png").write_bytes(_picture("png"))
    helper = Helper()
    try:
        assert helper.examine(str(folder), ["a.png"], [""])[0].widths == [80]
        assert helper._process is not None
        helper._process.kill()
        helper._process.wait()
        assert helper.examine(str(folder), ["a.png"], [""])[0].widths == [80]
    finally:
        helper.close()


def test_progress_is_told_and_a_scan_can_be_stopped(folder: Path) -> None:
    """What was read before the stop is kept."""
    for number in range(520):
        (folder / f"{number:03d}.bmp").write_bytes(_picture("bmp", (8, 8)))
    told: list[tuple[int, int | None]] = []
    _scan(folder, "one", progress=lambda done, total: told.append((done, total)))
    assert told == [(520, None), (256, 520), (512, 520), (520, 520)]
    with pytest.raises(ScanCancelledError):
        _scan(folder, "two", cancel=lambda: True)


def test_listing_a_large_folder_asks_whether_to_stop(folder: Path) -> None:
    """The listing alone takes a while with 100,000 files, and a screen wants its turn."""
    for number in range(3001):
        (folder / f"{number:04d}.txt").touch()
    asked: list[None] = []
    _scan(folder, cancel=lambda: bool(asked.append(None)))
    assert len(asked) >= 4


def _metadata(folder: Path, entries: object, name: str = "meta.json") -> Catalog:
    path = folder.parent / name
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return _scan(folder, metadata_file=path)


def test_metadata_keys_find_their_pictures(folder: Path) -> None:
    """Relative, absolute, in folders, and by stem; caption and tags are joined; caption files are not read."""
    (folder / "sub").mkdir()
    for name in ("a.png", "b.webp", "sub/c.jpg", "d.png"):
        (folder / name).write_bytes(_picture(name.rpartition(".")[2]))
    (folder / "a.txt").write_text("not this")
    (folder.parent / "else.png").write_bytes(_picture("png"))
    catalog = _metadata(
        folder,
        {
            "a.png": {"caption": "a", "tags": "x, y", "train_resolution": [512, 512], "image_size": [1, 1]},
            "b": {"tags": "by stem"},
            "sub/c.jpg": {"caption": "c"},
            str(folder.parent / "else.png"): {},
        },
    )
    found = dict(zip(catalog.keys, catalog.captions, strict=True))

    assert found == {
        "a.png": "a,x, y", "b.webp": "by stem", "sub/c.jpg": "c", f"{folder.parent.as_posix()}/else.png": "",
    }  # fmt: skip
    assert catalog.sizes_N2[0].tolist() == [80, 60]
    assert list(_codes(catalog)) == ["stem-key"]


def test_metadata_problems_are_all_named(folder: Path) -> None:
    """Missing pictures, keys that lead out of the folder, wrong types and doubled pictures."""
    (folder / "a.png").write_bytes(_picture("png"))
    (folder.parent / "secret.png").write_bytes(_picture("png"))
    catalog = _metadata(
        folder, {"a.png": {}, "a": {}, "gone.png": {}, "../secret.png": {}, "x.png": 3, "y.png": {"tags": [1]}}
    )

    assert catalog.keys == ["a.png"]
    codes = _codes(catalog)
    assert "gone.png" in codes["missing-picture"]
    assert "../secret.png: leads out of" in codes["outside-image-dir"]
    assert "y.png" in codes["bad-metadata"]
    assert "twice" in codes


def test_metadata_lines_are_read(folder: Path) -> None:
    """JSONL with image_path; a broken line is named by its number."""
    (folder / "a.png").write_bytes(_picture("png"))
    lines = '{"image_path": "a.png", "caption": "c"}\n\n{"image_path": 3}\nno json\n'
    catalog = _metadata(folder, lines, "meta.jsonl")

    assert catalog.captions == ["c"]
    assert {problem.where.rpartition(":")[2] for problem in catalog.problems} == {"3", "4"}


@pytest.mark.parametrize(
    ("raw", "words"),
    [(b'{"a":\n oops', ":2: not valid JSON"), (b"[]", "expected an object"), (b'{"\xe9"', "byte 2 is not UTF-8"),
     ("{}".encode("utf-16"), "UTF-16")],
)  # fmt: skip
def test_unreadable_metadata_is_refused(folder: Path, raw: bytes, words: str) -> None:
    """One sentence with the line or byte."""
    path = folder.parent / "meta.json"
    path.write_bytes(raw)
    with pytest.raises(EngineError, match=words.replace("[", r"\[")):
        _scan(folder, metadata_file=path)


def test_subsets_are_told_apart(folder: Path) -> None:
    """Repeats and numbers of the subsets; a key that two subsets have gets the second's number."""
    other = folder.parent / "other"
    for path in (folder, other):
        path.mkdir(exist_ok=True)
        (path / "a.png").write_bytes(_picture("png"))
    (other / "b.png").write_bytes(_picture("png", (7, 9)))
    subsets = (Subset(image_dir=folder, num_repeats=3), Subset(image_dir=other))
    config = DatasetConfig(datasets=(DatasetPart(subsets=subsets[:1]), DatasetPart(subsets=subsets[1:])))
    catalog = scan(config, cache_dir=folder.parent / "cache")

    assert catalog.keys == ["a.png", "subset2/a.png", "b.png"]
    assert catalog.subsets_N.tolist() == [0, 1, 1]
    assert catalog.repeats_N.tolist() == [3, 1, 1]
    assert config.part_of_subset == (0, 1)


def test_duplicates_are_found_by_content(folder: Path) -> None:
    """Equal bytes under other names; nothing is removed, and hashes are known the next time."""
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(_picture("png", (80, 60)))
    (folder / "d.png").write_bytes(_picture("png", (80, 61)))
    (folder / "e.png").write_bytes(bytes(len(_picture("png", (80, 60)))))
    shutil.copy(folder / "d.png", folder / "f.png")
    catalog = _scan(folder, skip_bad_images=True)
    groups = find_duplicates(catalog, cache_dir=folder.parent / "cache")

    assert [[catalog.keys[row] for row in group.rows] for group in groups] == [
        ["a.png", "b.png", "c.png"], ["d.png", "f.png"],
    ]  # fmt: skip
    stamps = [catalog.modified_N.tolist(), catalog.file_sizes_N.tolist()]
    with Index(folder.parent / "cache") as index:
        assert all(index.hashes(catalog.paths, *stamps))


def test_a_scan_of_thousands_is_quick(folder: Path) -> None:
    """No quadratic step hides: 3000 pictures take far below a second a thousand."""
    data = _picture("jpg", (8, 8))
    for number in range(3000):
        (folder / f"{number}.jpg").write_bytes(data)
    start = time.perf_counter()
    _scan(folder)
    assert time.perf_counter() - start < 3

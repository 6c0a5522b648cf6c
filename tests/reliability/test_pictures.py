"""Rows 28 to 43 of docs/reliability.md: one folder of every bad picture, name and caption, scanned once.

tests/engine/dataset/test_scan.py and test_pixels*.py hold the details; here each row has its one named proof.
"""

import hashlib
import io
import os
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from engine.dataset.config import DatasetConfig, DatasetPart, Subset
from engine.dataset.scan import scan
from engine.errors import EngineError
from engine.pixels import PixelJob, load_pixels
from tests.engine.run_support import new_folder

ORIENTATION = 0x0112


def picture(size=(80, 60), mode="RGB", color=None, kind="PNG", **options):
    file = io.BytesIO()
    Image.new(mode, size, color if color is not None else 0).save(file, kind, **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*each) for each in chunks) + chunk(b"IEND", b"")


def turned(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return picture((80, 60), kind="JPEG", exif=exif)


FILES = {
    "good.png": picture(), "good.txt": b"a cat",
    # Rows 30, 31, 33: named by what they are, from their first bytes.
    "empty.jpg": b"", "page.jpg": b"<!DOCTYPE html><html></html>", "wrong.png": picture(kind="JPEG"),
    "huge.png": png(50_000, 50_000), "large.png": png(12_000, 12_000),
    "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n", "layers.png": b"8BPS\0\1" + bytes(50), "scan.png": b"II*\0" + bytes(50),
    # Rows 35 to 37.
    "moving.webp": picture(kind="WEBP", save_all=True, append_images=[Image.new("RGB", (80, 60), "red")]),
    **{f"turned{number}.jpg": turned(number) for number in range(1, 9)},
    "dot.png": picture((1, 1)), "line.png": picture((20_000, 1)),
    # Rows 41 and 42.
    "latin.png": picture(), "latin.txt": "caf\xe9".encode("latin-1"),
    "utf16.png": picture(), "utf16.txt": "a cat".encode("utf-16"),
    "bom.png": picture(), "bom.txt": b"\xef\xbb\xbfa cat,\r\n a hat \r\n",
    "nul.png": picture(), "nul.txt": b"a\0cat",
    "long.png": picture(), "long.txt": b"word, " * 1_700_000,
    "blank.png": picture(), "blank.txt": b" \n",
    "mute.png": picture(),
    # Row 43: shown, never sent.
    "escape.png": picture(), "escape.txt": b"\x1b]52;c;ZXZpbA==\x07 \x1b[2J [@click=app.quit]x[/] \xe2\x80\xae",
}  # fmt: skip
NAMES = [
    b"new\nline.png",
    b"esc\x1b[31m.png",
    b"raw\xff\xfe.png",
    b"[" + b"/red].png".replace(b"/", b""),
    b"x" * 251 + b".png",
]


@pytest.fixture(scope="module")
def scanned():
    """The folder, its catalog, and how long the scan took; nothing in the folder may have changed."""
    folder = new_folder() / "pictures"
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    for name in NAMES:
        (folder / os.fsdecode(name)).write_bytes(picture())
    (folder / "loop.png").symlink_to(folder / "loop.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    before = digests(folder)
    part = DatasetPart(subsets=(Subset(image_dir=folder, caption_extension=".txt"),))
    began = time.monotonic()
    catalog = scan(DatasetConfig(datasets=(part,)), cache_dir=folder.parent / "cache")
    seconds = time.monotonic() - began
    assert digests(folder) == before
    return folder, catalog, seconds


def digests(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file() and not path.is_symlink()
    }


def said(scanned, name):
    """Return the findings that name a file, as (code, text)."""
    return [(problem.code, str(problem)) for problem in scanned[1].problems if name in str(problem)]


def used(scanned, name):
    return name in scanned[1].keys


def test_row_30_empty_files_web_pages_and_wrong_extensions_are_named_by_what_they_are(scanned):
    """Each once, with what to do; a JPEG called .png is used."""
    ((empty, text),) = said(scanned, "empty.jpg")
    ((page, words),) = said(scanned, "page.jpg")
    assert (empty, page) == ("empty", "not-a-picture")
    assert "replace it" in text
    assert "web page" in words
    ((code, text),) = said(scanned, "wrong.png")
    assert (code, used(scanned, "wrong.png")) == ("wrong-extension", True)
    assert "JPEG" in text


def test_row_31_pictures_of_too_many_pixels_are_refused_from_their_header(scanned):
    """50,000 x 50,000 and 144 megapixels, in less than a tenth of a second each, with the limit's name."""
    for name in ("huge.png", "large.png"):
        ((code, text),) = said(scanned, name)
        assert code == "too-large"
        assert "max_image_pixels" in text
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"huge\.png: has far too many pixels"):
        load_pixels(PixelJob(path=scanned[0] / "huge.png", resized=(8, 8), crop=(0, 0, 8, 8)))
    assert time.monotonic() - began < 0.1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's words for it, which go to log.txt.
def test_row_32_compressed_bombs_and_corrupt_exif_end_in_a_sentence(tmp_path):
    """Whatever the decoder raises; damaged EXIF in a sound picture is no reason to refuse it."""
    (tmp_path / "bomb.png").write_bytes(png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(5_000_000)))))
    with pytest.raises(EngineError, match=r"bomb\.png: .*replace it or take it out"):
        load_pixels(PixelJob(path=tmp_path / "bomb.png", resized=(8, 8), crop=(0, 0, 8, 8)))
    (tmp_path / "exif.jpg").write_bytes(picture((8, 8), kind="JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert load_pixels(PixelJob(path=tmp_path / "exif.jpg", resized=(8, 8), crop=(0, 0, 8, 8))).pixels_HWC.size


def test_row_33_postscript_photoshop_and_tiff_under_another_name_reach_no_decoder(scanned):
    """Told by name: EPS would be handed to Ghostscript."""
    for name, kind in (("script.png", "EPS"), ("layers.png", "PSD"), ("scan.png", "TIFF")):
        ((code, text),) = said(scanned, name)
        assert code == "refused-format"
        assert kind in text
    with pytest.raises(EngineError, match="not a whole picture in a format that is read"):
        load_pixels(PixelJob(path=scanned[0] / "script.png", resized=(8, 8), crop=(0, 0, 8, 8)))


GOLDEN_PIXELS = {
    "RGB": ("PNG", (10, 20, 30), (10, 20, 30)),
    "L": ("PNG", 77, (77, 77, 77)),
    "1": ("PNG", 1, (255, 255, 255)),
    "I;16": ("PNG", 32896, (128, 128, 128)),
    "RGBA": ("PNG", (10, 20, 30, 0), (255, 255, 255)),
    "RGBA half": ("PNG", (0, 0, 0, 128), (127, 127, 127)),
    "LA": ("PNG", (10, 0), (255, 255, 255)),
    "P": ("PNG", None, (0, 0, 0)),
    "CMYK": ("JPEG", (255, 0, 0, 0), (0, 255, 255)),
}


@pytest.mark.parametrize("mode", GOLDEN_PIXELS)
def test_row_34_every_mode_gives_its_golden_pixel(tmp_path, mode):
    """16 bits scaled rather than clipped, alpha over white, CMYK turned."""
    kind, color, expected = GOLDEN_PIXELS[mode]
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(picture((8, 8), mode.split()[0], color, kind))

    pixels = load_pixels(PixelJob(path=path, resized=(8, 8), crop=(0, 0, 8, 8))).pixels_HWC

    assert pixels.shape == (8, 8, 3)
    assert np.abs(pixels[4, 4].astype(int) - expected).max() <= 1


def test_row_35_of_animations_the_first_frame_is_used_and_told(scanned):
    """Black comes first here, red second."""
    assert said(scanned, "moving.webp")[0][0] == "animated"
    job = PixelJob(path=scanned[0] / "moving.webp", resized=(80, 60), crop=(0, 0, 80, 60))
    assert load_pixels(job).pixels_HWC.max() < 8


def test_row_36_pictures_are_placed_by_their_upright_size(scanned):
    """EXIF orientations 5 to 8 turn by a quarter."""
    _, catalog, _ = scanned
    sizes = {key: tuple(size) for key, size in zip(catalog.keys, catalog.sizes_N2.tolist(), strict=True)}
    assert [sizes[f"turned{number}.jpg"] for number in range(1, 9)] == [(80, 60)] * 4 + [(60, 80)] * 4


def test_row_37_extreme_shapes_do_not_crash(scanned):
    """A dot and a line are read, and resized to whatever bucket they get."""
    for name in ("dot.png", "line.png"):
        assert used(scanned, name)
        job = PixelJob(path=scanned[0] / name, resized=(64, 64), crop=(0, 0, 64, 64))
        assert load_pixels(job).pixels_HWC.shape == (64, 64, 3)


def test_row_38_loops_pipes_and_devices_are_left_out_and_nothing_hangs(scanned):
    """Regular files alone are opened."""
    _, catalog, seconds = scanned
    text = " ".join(str(problem) for problem in catalog.problems if problem.code == "not-a-file")
    assert all(name in text for name in ("loop.png", "pipe.png", "zero.png"))
    assert seconds < 20


def test_row_39_what_can_not_be_read_is_named_with_owner_and_mode(tmp_path, monkeypatch):
    """As root nothing is unreadable: the refusal comes from a stand-in for open."""
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "b.png").write_bytes(picture())
    opened = os.open

    def refuse(path, *rest, **named):
        if str(path).endswith("a.png"):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    catalog = scan(
        DatasetConfig(datasets=(DatasetPart(subsets=(Subset(image_dir=tmp_path),)),)), cache_dir=tmp_path / "cache"
    )

    (problem,) = [problem for problem in catalog.problems if problem.code == "unreadable"]
    assert catalog.keys == ["b.png"]
    assert "a.png" in problem.where
    assert "mode -rw" in problem.message
    assert problem.fix == "change its permissions"


def test_row_40_names_of_any_bytes_train_and_are_shown_escaped(scanned):
    """Newline, ESC, bytes that are no UTF-8, markup, 255 bytes."""
    keys = {os.fsencode(key) for key in scanned[1].keys}
    assert set(NAMES) <= keys
    assert all(char.isprintable() for problem in scanned[1].problems for char in str(problem))


def test_row_41_captions_in_another_encoding_are_named_with_the_byte(scanned):
    """UTF-8 with a byte-order mark and Windows line ends is read; nothing else is guessed."""
    captions = dict(zip(scanned[1].keys, scanned[1].captions, strict=True))
    assert captions["bom.png"] == "a cat,\na hat"
    for name, word in (("latin.txt", "byte 3 (0xe9)"), ("utf16.txt", "UTF-16"), ("nul.txt", "byte 1 is NUL")):
        ((code, text),) = said(scanned, name)
        assert code == "caption-encoding"
        assert word in text
        assert "save the caption as UTF-8 text" in text


def test_row_42_long_missing_and_empty_captions_are_told(scanned):
    """10 MB are cut at 64 KB; without a caption a picture is trained without one, which is counted."""
    captions = dict(zip(scanned[1].keys, scanned[1].captions, strict=True))
    assert len(captions["long.png"]) <= 65_536
    assert said(scanned, "long.txt")[0][0] == "long-caption"
    assert said(scanned, "blank.txt")[0][0] == "empty-caption"
    assert captions["mute.png"] == captions["blank.png"] == ""
    codes = [problem.code for problem in scanned[1].problems]
    assert codes.count("no-caption") == 1


def test_row_43_escapes_in_captions_are_never_sent_as_they_are(scanned):
    """`safe_text` shows C0, C1, bidi and invisible characters; the screens' part is in tests/sdtui."""
    from engine.errors import safe_text

    captions = dict(zip(scanned[1].keys, scanned[1].captions, strict=True))
    shown = safe_text(captions["escape.png"])
    assert r"\x1b]52" in shown
    assert r"\x1b[2J" in shown
    assert r"\u202e" in shown
    assert shown.isprintable()


def test_row_29_a_damaged_but_decodable_picture_is_known_by_its_hash(tmp_path):
    """Nobody can see it in the pixels; the content's hash differs, which resume compares."""
    data = bytearray(picture((64, 64), color=(9, 99, 199), kind="JPEG", quality=95))
    paths = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    paths[0].write_bytes(data)
    data[-20] ^= 0x55
    paths[1].write_bytes(data)

    first, second = (load_pixels(PixelJob(path=path, resized=(64, 64), crop=(0, 0, 64, 64))) for path in paths)

    assert first.content != second.content


def test_row_22_a_scan_without_helpers_finds_the_same(tmp_path, monkeypatch):
    """Helper processes that can't be started, or are killed, are replaced by this process's own threads."""
    import subprocess

    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(picture())

    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    from engine.dataset.helper import Helper

    portion, _ = Helper().examine(str(tmp_path), ["0.png", "1.png", "2.png"], ["", "", ""])
    assert portion.widths == [80, 80, 80]

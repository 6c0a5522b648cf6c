"""Pictures for terminals: what is emitted decodes back to the picture."""

import base64
import io
import re
import time

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len

from engine.errors import EngineError
from sdtui.graphics import fit_cells, kitty_commands, kitty_delete, open_picture, render, sixel
from tests.sdtui.fake_run import draw_sample


@pytest.fixture
def picture(tmp_path):
    draw_sample(tmp_path / "a.png", index=1, progress=1.0, size=96)
    return open_picture(tmp_path / "a.png")


def decode_kitty(commands):
    """Return (control keys, picture) as kitty reads them: chunks of at most 4096 characters, m=1 while more come."""
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", commands)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in chunks) == commands
    assert all(len(data) <= 4096 for _keys, data in chunks)
    assert ["m=1"] * (len(chunks) - 1) + ["m=0"] == [keys.split(",")[-1] for keys, _data in chunks]
    keys = dict(pair.split("=") for pair in chunks[0][0].split(","))
    return keys, Image.open(io.BytesIO(base64.b64decode("".join(data for _keys, data in chunks))))


def decode_sixel(text):
    """Return the pixels of a sixel string, by the rules of the VT340: repeats, colours, $ and -."""
    head, body = re.fullmatch(r'\x1bP0;1q"1;1;(\d+;\d+)(.*)\x1b\\', text, re.DOTALL).groups()
    width, height = map(int, head.split(";"))
    pixels = np.zeros((height, width, 3), np.uint8)
    palette, color, x, top = {}, None, 0, 0
    for define, select, count, repeated, single, control in re.findall(
        r"#(\d+;2;\d+;\d+;\d+)|#(\d+)|!(\d+)([?-~])|([?-~])|([$-])", body
    ):
        if define:
            number, _kind, *channels = map(int, define.split(";"))
            palette[number] = [round(channel * 255 / 100) for channel in channels]
        elif select:
            color = palette[int(select)]
        elif control:
            x, top = 0, top + (6 if control == "-" else 0)
        else:
            bits, length = ord(repeated or single) - 63, int(count or 1)
            for row in (row for row in range(6) if bits >> row & 1):
                pixels[top + row, x : x + length] = color
            x += length
    return pixels


def test_kitty_bytes_decode_to_the_picture(picture):
    """PNG in base64, exact to the last bit, with a placement in cells for its placeholders."""
    keys, decoded = decode_kitty(kitty_commands(picture, 7, 20, 10))

    assert {"a": "T", "U": "1", "f": "100", "i": "7", "c": "20", "r": "10", "q": "2"}.items() <= keys.items()
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(decoded))


def test_kitty_never_sends_more_pixels_than_its_cells_can_show(picture):
    """Each kilobyte counts over SSH."""
    large = picture.resize((2000, 2000))

    assert decode_kitty(kitty_commands(large, 1, 8, 4))[1].size == (160, 160)


def test_kitty_cells_name_picture_and_row(picture):
    """A cell's colour is the picture's number, its combining mark the row; each cell is one column wide."""
    drawing = render(picture, "kitty", 20, 10, image_id=0x123456)

    assert [cell_len(line[0].text) for line in drawing.lines] == [20] * 10
    assert {(0x12, 0x34, 0x56)} == {tuple(line[0].style.color.triplet) for line in drawing.lines}
    assert len({line[0].text[1] for line in drawing.lines}) == 10
    assert "i=5," in kitty_delete(5)


@pytest.mark.parametrize("size", [(96, 96), (61, 35), (7, 1)])
def test_sixel_bytes_decode_to_the_picture(picture, size):
    """To the palette's and the percent scale's rounding, sizes that are no multiple of six included."""
    scaled = picture.resize(size)
    decoded = decode_sixel(sixel(scaled))

    assert (size[1], size[0], 3) == decoded.shape
    error = np.abs(decoded.astype(int) - np.asarray(scaled).astype(int))
    assert error.mean() < 3
    assert error.max() <= 40


def test_half_blocks_show_two_pixels_a_cell():
    """The upper half is the text's colour, the lower half the background's."""
    image = Image.new("RGB", (2, 2))
    image.putdata([(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)])

    (line,) = render(image, "blocks", 2, 1).lines

    assert [(tuple(segment.style.color.triplet), tuple(segment.style.bgcolor.triplet)) for segment in line] == [
        ((255, 0, 0), (0, 0, 255)),
        ((0, 255, 0), (9, 9, 9)),
    ]


def test_ascii_pictures_are_ascii(picture):
    """Brightness as characters, no colour."""
    lines = render(picture, "ascii", 30, 12).lines
    text = "".join(segment.text for line in lines for segment in line)

    assert text.isascii()
    assert len(set(text)) > 3
    assert all(segment.style is None for line in lines for segment in line)


def test_pictures_keep_their_shape():
    """A cell is twice as high as wide."""
    assert [fit_cells(size, 40, 10) for size in [(64, 64), (64, 128), (128, 64)]] == [(20, 10), (10, 10), (40, 10)]
    assert fit_cells((10_000, 1), 1, 1) == (1, 1)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_files_that_are_no_pictures_are_named(tmp_path, content):
    """One sentence with the file, and nothing crashes."""
    (tmp_path / "x\x1b[2J.png").write_bytes(content)

    with pytest.raises(EngineError, match=r"x\\x1b\[2J.png can't be shown"):
        open_picture(tmp_path / "x\x1b[2J.png")


def test_huge_pictures_are_refused_unread(tmp_path):
    """A picture of 81 megapixels is never decoded for a thumbnail."""
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    began = time.perf_counter()

    with pytest.raises(EngineError, match="9000x9000"):
        open_picture(tmp_path / "huge.png")

    assert time.perf_counter() - began < 1

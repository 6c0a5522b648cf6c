"""Preprocessing bit for bit, and each captioner on the fourteen pictures against its model's construction."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from engine.captioning.base import CaptionerOptions
from engine.captioning.captioners import CAPTIONERS
from engine.captioning.pictures import area_resize, blip_pixels, deepdanbooru_pixels, mapping_pixels, wd14_pixels
from engine.captioning.tagging import TagNames, TagOptions, parse_replacements
from engine.errors import EngineError
from engine.pixels import load_whole
from tests.conftest import GOLDEN
from tests.engine.captioning import models_support as models

PICTURES = sorted(path for path in (GOLDEN / "dataset" / "images").iterdir() if path.suffix not in {".txt", ".caption"})
SOME = [PICTURES[place] for place in (1, 4, 8, 9, 10, 13)]
"""Wide, smaller than 448, extremely tall, with alpha, with a palette, turned by EXIF."""


def opened(path):
    """The stated rule, straight on: upright, alpha laid on white."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode in {"RGBA", "LA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.split()[3])
        image = white
    return np.array(image.convert("RGB"))


def stated_wd14(path):
    """The stated rule: BGR, white square, 448 by area or Lanczos, float32 of 0 to 255."""
    image = opened(path)[:, :, ::-1]
    size = max(image.shape[:2])
    x, y = size - image.shape[1], size - image.shape[0]
    image = np.pad(image, ((y // 2, y - y // 2), (x // 2, x - x // 2), (0, 0)), constant_values=255)
    if size > 448:
        image = cv2.resize(image, (448, 448), interpolation=cv2.INTER_AREA)
    elif size < 448:
        rgb = Image.fromarray(np.ascontiguousarray(image[:, :, ::-1])).resize((448, 448), Image.LANCZOS)
        image = np.array(rgb)[:, :, ::-1]
    return image.astype(np.float32)


def test_wd14_preprocessing_bit_for_bit():
    """All fourteen pictures: alpha, palette, grey, EXIF, smaller and larger than the model's square."""
    assert len(PICTURES) == 14
    for path in PICTURES:
        expected, found = stated_wd14(path), wd14_pixels(load_whole(path))
        assert (found.dtype, found.shape) == (np.float32, (448, 448, 3))
        assert np.array_equal(expected, found), path.name


def test_mapping_preprocessing_bit_for_bit():
    """The same square, channels first, -1 to 1."""
    expected = stated_wd14(PICTURES[1]).transpose(2, 0, 1) / np.float32(127.5) - np.float32(1)

    assert np.array_equal(expected, mapping_pixels(load_whole(PICTURES[1])))


def test_deepdanbooru_preprocessing_bit_for_bit():
    """RGB, area-resized with the shape kept, edges repeated, 0 to 1."""
    for path in PICTURES:
        image = opened(path).astype(np.float32)
        height, width = image.shape[:2]
        scale = min(512 / height, 512 / width)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        if scale < 1:
            image = cv2.resize(image, inner, interpolation=cv2.INTER_AREA)
        elif scale > 1:
            image = area_resize(opened(path), inner)
        top, left = (512 - inner[1]) // 2, (512 - inner[0]) // 2
        rows = np.clip(np.arange(512) - top, 0, inner[1] - 1)
        columns = np.clip(np.arange(512) - left, 0, inner[0] - 1)
        expected = image[rows][:, columns] / np.float32(255)
        assert np.array_equal(expected, deepdanbooru_pixels(load_whole(path))), path.name


def test_growing_by_area_takes_the_mean_under_each_pixel():
    """Two pixels to three: the middle one lies under half of both."""
    grown = area_resize(np.array([[[0, 10, 20], [100, 110, 120]]], np.uint8), (3, 1))

    assert np.allclose([[[0, 10, 20], [50, 60, 70], [100, 110, 120]]], grown, atol=1e-4)


def test_blip_preprocessing_bit_for_bit():
    """Pillow's bicubic filter, CLIP's normalisation."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    for path in SOME:
        resized = Image.fromarray(opened(path)).resize((384, 384), Image.BICUBIC)
        expected = (np.asarray(resized, np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)
        assert np.array_equal(expected.transpose(2, 0, 1), blip_pixels(load_whole(path), (384, 384), mean, std))


@pytest.mark.parametrize(
    ("folder", "rows"), [(models.wd14_v14, models.WD14_TAGS), (models.wd14_v3, models.V3_TAGS)], ids=["v1.4", "v3"]
)
def test_wd14_scores_are_those_of_the_pixels(folder, rows):
    """Both layouts, on all fourteen pictures, in batches whose size the fixed model does not divide."""
    tagger = CAPTIONERS["wd14"](CaptionerOptions(model=str(folder())))
    batch = [tagger.prepare(load_whole(path)) for path in PICTURES]
    found = np.concatenate([tagger.scores(batch[:5]), tagger.scores(batch[5:])])

    expected = [models.scores(rows, stated_wd14(path).mean((0, 1), dtype=np.float64) / 255) for path in PICTURES]
    assert np.allclose(expected, found, atol=1e-5)
    names = [row[0] for row in rows]
    for row, described in zip(expected, tagger.describe(batch, [path.name for path in PICTURES]), strict=True):
        general = [name for name, score, row_ in zip(names, row, rows, strict=True) if score >= 0.35 and row_[1] == 0]
        characters = [
            name for name, score, row_ in zip(names, row, rows, strict=True) if score >= 0.35 and row_[1] == 4
        ]
        assert described.text == ", ".join(general + characters)


def test_deepdanbooru_scores_are_those_of_the_pixels():
    """A threshold of 0.5; the rating, its last tag, where asked for."""
    options = CaptionerOptions(model=str(models.deepdanbooru()), tags=TagOptions(use_rating_tags_as_last_tag=True))
    tagger = CAPTIONERS["deepdanbooru"](options)
    for path in SOME:
        prepared = tagger.prepare(load_whole(path))
        sky, tree = prepared[:, :, 2].mean(dtype=np.float64), prepared[:, :, 1].mean(dtype=np.float64)
        expected = [name for name, score in (("sky", sky), ("tree", tree)) if score >= 0.5]
        assert tagger.describe([prepared], [path.name])[0].text == ", ".join([*expected, "rating:safe"])


def test_a_tag_mapping_gives_logits_and_other_categories():
    """Qualities are tags like any other; ratings only on request."""
    tagger = CAPTIONERS["wd14"](CaptionerOptions(model=str(models.mapped())))
    described = tagger.describe([tagger.prepare(load_whole(SOME[0]))], ["x"])[0]

    assert described.text == "good, a_cat"
    assert dict(described.scores)["good"] == pytest.approx(1 / (1 + np.exp(-3.0)))


def names(**options):
    return TagNames(
        names=tuple(row[0] for row in models.WD14_TAGS),
        categories=tuple({9: "rating", 0: "general", 4: "character"}[row[1]] for row in models.WD14_TAGS),
        options=TagOptions(**options),
    )


HIGH = np.array([0.1, 0.8, 0, 0, 0.9, 0.5, 0.3, 0.4, 0.6, 0.1, 0.7, 0.36], np.float32)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "1girl, very_blue, very_red, ^_^, hero_(costume)_(saga), other_hero"),
        ({"thresh": 0.45}, "1girl, very_blue, ^_^, hero_(costume)_(saga)"),
        ({"general_threshold": 0.8}, "1girl, hero_(costume)_(saga), other_hero"),
        ({"character_threshold": 0.5}, "1girl, very_blue, very_red, ^_^, hero_(costume)_(saga)"),
        ({"remove_underscore": True}, "1girl, very blue, very red, ^_^, hero (costume) (saga), other hero"),
        ({"use_rating_tags": True, "thresh": 0.65}, "sensitive, 1girl, hero_(costume)_(saga)"),
        ({"use_rating_tags_as_last_tag": True, "thresh": 0.65}, "1girl, hero_(costume)_(saga), sensitive"),
        ({"character_tags_first": True, "thresh": 0.55}, "hero_(costume)_(saga), 1girl, ^_^"),
        ({"character_tag_expand": True, "thresh": 0.65}, "1girl, hero_(costume), saga"),
        ({"character_tag_expand": True, "remove_underscore": True, "thresh": 0.65}, "1girl, hero (costume), saga"),
        ({"undesired_tags": ("1girl", "very_red"), "thresh": 0.38}, "very_blue, ^_^, hero_(costume)_(saga)"),
        ({"always_first_tags": ("^_^", "1girl", "absent"), "thresh": 0.55}, "^_^, 1girl, hero_(costume)_(saga)"),
        ({"tag_replacement": {"1girl": "a, girl", "^_^": ""}, "thresh": 0.55}, "a, girl, hero_(costume)_(saga)"),
        ({"tag_replacement": {"very_blue": "blue"}, "remove_underscore": True, "thresh": 0.45},
         "1girl, blue, ^_^, hero (costume) (saga)"),
        ({"caption_separator": "; ", "thresh": 0.65}, "1girl; hero_(costume)_(saga)"),
    ],
)  # fmt: skip
def test_options_make_tags_of_scores(options, expected):
    """Each option alone; first tags come in the order given, and replacement works, unlike the original's."""
    assert expected == names(**options).text(HIGH)


def test_replacements_may_hold_the_separators():
    """A backslash protects them."""
    assert parse_replacements(r"a\,b,c\;d;e,f") == {"a,b": "c;d", "e": "f"}
    with pytest.raises(EngineError, match="expected source,target"):
        parse_replacements("a")


def test_blip_captions_depend_on_the_picture_not_on_the_batch():
    """Nucleus sampling: the same caption alone, in a batch and again; another seed draws otherwise."""
    make = CAPTIONERS["blip"]
    model = str(models.blip())
    captioner = make(CaptionerOptions(model=model, max_length=12))
    batch, keys = [captioner.prepare(load_whole(path)) for path in SOME], [path.name for path in SOME]
    texts = [said.text for said in captioner.describe(batch, keys)]

    assert len(set(texts)) > 3
    assert all(4 <= len(text.split()) <= 12 and set(text.split()) <= set(models.WORDS) for text in texts)
    assert [captioner.describe([one], [key])[0].text for one, key in zip(batch, keys, strict=True)] == texts
    other = make(CaptionerOptions(model=model, max_length=12, seed=7))
    assert [said.text for said in other.describe(batch, keys)] != texts
    assert captioner.identity != other.identity
    beams = make(CaptionerOptions(model=model, max_length=12, beam_search=True, num_beams=3))
    assert beams.describe(batch[:2], keys[:2]) == beams.describe(batch[:2], ["x", "y"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wd14", {"model": "no/such/folder/at/all"}, "hub"),
        ("wd14", {"model": "./nowhere at all"}, "no such folder, and no hub id"),
        ("wd14", {"model": "owner/name"}, "not on this machine"),
        ("blip", {}, "not on this machine"),
        ("deepdanbooru", {}, "name the folder of its ONNX export"),
        ("blip", {"model": "{wd14}"}, "has no config.json"),
        ("deepdanbooru", {"model": "{wd14}"}, "has no tags.txt"),
        ("blip", {"model": "{blip}", "top_p": 0.0}, "expected a number above 0"),
        ("wd14", {"model": "{wd14}", "tags": TagOptions(thresh=35)}, "expected a number from 0 to 1"),
    ],
)
def test_a_captioner_that_can_t_be_made_says_why(name, options, message):
    """One sentence, with what to do."""
    folders = {"{wd14}": models.wd14_v14, "{blip}": models.blip}
    model = folders[options["model"]]() if options.get("model") in folders else options.get("model", "")
    with pytest.raises(EngineError, match=message):
        CAPTIONERS[name](CaptionerOptions(**{**options, "model": str(model)}))


def test_damaged_models_are_refused(tmp_path):
    """Not ONNX, a list of another length, a torn list."""
    (tmp_path / "selected_tags.csv").write_text("tag_id,name,category,count\n1,a,0,1\n")
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(EngineError, match="not an ONNX model"):
        CAPTIONERS["wd14"](CaptionerOptions(model=str(tmp_path)))
    (tmp_path / "model.onnx").write_bytes((models.wd14_v14() / "model.onnx").read_bytes())
    with pytest.raises(EngineError, match="lists 1 tags but the model has 12 outputs"):
        CAPTIONERS["wd14"](CaptionerOptions(model=str(tmp_path)))
    (tmp_path / "selected_tags.csv").write_text("x\n")
    with pytest.raises(EngineError, match="expected the columns"):
        CAPTIONERS["wd14"](CaptionerOptions(model=str(tmp_path)))

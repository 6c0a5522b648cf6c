"""Captions to token ids: the original CLIP tokenizer's, chunk by chunk, and what does not fit is counted."""

import json
import random
import shutil
import string
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.tokens import (
    TOKENIZER_FOLDER,
    ClipTokenizer,
    count_tokens,
    load_tokenizer,
    parse_weights,
    token_ids,
    truncated_tokens,
    weighted_token_ids,
)

BEGIN, END, PAD_V2 = 49406, 49407, 0


@pytest.fixture(scope="module")
def v1() -> ClipTokenizer:
    return load_tokenizer(v2=False)


@pytest.fixture(scope="module")
def v2() -> ClipTokenizer:
    return load_tokenizer(v2=True)


@pytest.fixture(scope="module")
def rows() -> dict:
    return json.loads((Path(__file__).parents[1] / "golden" / "tokens.json").read_text("utf-8"))


@pytest.mark.parametrize("name", ["v1/75", "v1/150", "v1/225", "v2/75", "v2/150", "v2/225"])
def test_ids_equal_those_of_sd_scripts(name: str, rows: dict, v1: ClipTokenizer, v2: ClipTokenizer):
    """Every golden row: SD 1.x and 2.x, one, two and three chunks."""
    version, length = name.split("/")
    tokenizer = v2 if version == "v2" else v1

    assert rows["ids"][name] == [token_ids(caption, tokenizer, int(length)) for caption in rows["captions"]]


def test_counts_are_of_all_tokens_without_begin_and_end(rows: dict, v1: ClipTokenizer):
    assert rows["raw_len"] == count_tokens(rows["captions"], v1)


def test_one_chunk_is_the_default(v1: ClipTokenizer):
    assert token_ids("a cat", v1, 75) == token_ids("a cat", v1)


@pytest.mark.parametrize(
    ("tokens", "length", "lost"), [(75, None, 0), (76, None, 1), (76, 150, 0), (300, 225, 75), (0, 75, 0)]
)
def test_truncated_tokens_are_those_beyond_the_capacity(tokens: int, length: int | None, lost: int):
    assert lost == truncated_tokens(tokens, length)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("tom &amp; jerry", "tom & jerry"),
        ("ﬁne", "fine"),
        ("“quoted”", '"quoted"'),
        ("cafÃ©", "café"),
        ("A\tB\n C", "a b c"),
        ("red\x1b[31m car", "red car"),
        ("e\u0301", "é"),
    ],
)
def test_text_is_repaired_as_by_ftfy(text: str, same: str, v1: ClipTokenizer):
    """The text encoders were trained on ftfy-repaired text: entities, ligatures, mojibake, curly quotes, blanks."""
    assert v1.ids(same) == v1.ids(text)


def test_printable_ascii_without_entities_is_what_ftfy_leaves_alone():
    """The short cut past ftfy must not change an id."""
    import ftfy

    rng = random.Random(0)
    letters = "".join(char for char in string.printable if char.isprintable() and char != "&")
    texts = ["".join(rng.choices(letters, k=40)) for _ in range(500)]

    assert texts == [ftfy.fix_text(text) for text in texts]


def test_ids_equal_those_of_transformers_on_random_text(v1: ClipTokenizer):
    """A second implementation, on repaired text of words, digits, signs and letters of several scripts."""
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(TOKENIZER_FOLDER)
    rng = random.Random(0)
    parts = [
        "cat",
        "Dog's",
        "1girl",
        "12345",
        "x_y",
        "(a:1.2)",
        "...",
        "日本語",
        "naïve",
        "Ελλάδα",
        "😀",
        "русский",
        ",",
    ]
    for _ in range(300):
        text = " ".join(rng.choices(parts, k=12))
        assert theirs.encode(text, add_special_tokens=False) == v1.ids(text)


def test_marks_in_a_text_are_single_tokens(v1: ClipTokenizer, v2: ClipTokenizer):
    assert v1.ids("<|endoftext|>") == [END]
    assert v1.ids("<|STARTOFTEXT|>") == [BEGIN]
    assert v2.ids("!!!") == [PAD_V2] * 3, "SD 2.x: '!' is the pad token"


def test_lone_surrogates_are_repaired_rather_than_fatal(v1: ClipTokenizer):
    """File names and damaged captions may carry them."""
    assert v1.ids("a \udcff cat")


def test_weighting_grammar_follows_automatic1111():
    assert parse_weights("a (cat:1.3) on a [mat]") == [
        ("a ", 1.0),
        ("cat", 1.3),
        (" on a ", 1.0),
        ("mat", 1 / 1.1),
    ]
    assert [("deep", pytest.approx(1.1**3))] == parse_weights("(((deep)))")
    assert parse_weights(r"\(literal\) \[too\]") == [("(literal) [too]", 1.0)]
    assert parse_weights("(unbalanced") == [("unbalanced", 1.1)]
    assert parse_weights("[low") == [("low", 1 / 1.1)]
    assert parse_weights("a) b]") == [("a) b]", 1.0)]
    assert parse_weights("") == []


@pytest.mark.parametrize("caption", ["(a:1.2.3)", "(a:.)", "(a:" + "9" * 400 + ")"])
def test_a_weight_that_is_no_finite_number_is_text(caption: str):
    assert "(a:" not in parse_weights(caption)[0][0]
    assert all(weight == pytest.approx(1.1) for _, weight in parse_weights(caption))


def test_weights_stand_at_the_positions_of_their_tokens(v1: ClipTokenizer):
    ids, weights = weighted_token_ids("a (cat:1.5)", v1, 150)

    assert [BEGIN, *v1.ids("a"), *v1.ids("cat"), END] == ids[0][:4]
    assert weights[0][:4] == [1.0, 1.0, 1.5, 1.0]
    assert [[len(row) for row in ids], [len(row) for row in weights]] == [[77, 77], [77, 77]]
    assert count_tokens(["a (cat:1.5)"], v1, weighted=True) == [2]


def test_weights_beyond_the_capacity_are_cut_with_their_tokens(v1: ClipTokenizer):
    ids, weights = weighted_token_ids("(" + "cat " * 80 + ":0.5)", v1)

    assert [len(row) for row in ids] == [77]
    assert weights == [[1.0, *[0.5] * 75, 1.0]]


def test_vocabulary_of_a_model_folder_is_read(tmp_path: Path, v1: ClipTokenizer):
    shutil.copy(TOKENIZER_FOLDER / "vocab.json", tmp_path)
    shutil.copy(TOKENIZER_FOLDER / "merges.txt", tmp_path)

    assert v1.ids("a photo of a cat") == load_tokenizer(v2=False, folder=tmp_path).ids("a photo of a cat")


def test_vocabulary_in_one_tokenizer_json_is_read(tmp_path: Path, v1: ClipTokenizer):
    """What transformers 5 saves."""
    vocab = json.loads((TOKENIZER_FOLDER / "vocab.json").read_text("utf-8"))
    merges = (TOKENIZER_FOLDER / "merges.txt").read_text("utf-8").split("\n")[1:-1]
    model = {"vocab": vocab, "merges": [merge.split() for merge in merges]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}), "utf-8")

    assert v1.ids("a photo of a cat") == load_tokenizer(v2=False, folder=tmp_path).ids("a photo of a cat")


@pytest.mark.parametrize(
    "files", [{}, {"vocab.json": "{}", "merges.txt": ""}, {"vocab.json": "{", "merges.txt": ""}, {"vocab.json": "[]"}]
)
def test_a_folder_without_a_clip_vocabulary_is_named(files: dict[str, str], tmp_path: Path):
    for name, text in files.items():
        (tmp_path / name).write_text(text, "utf-8")

    with pytest.raises(EngineError, match=r"vocab\.json and merges\.txt"):
        load_tokenizer(v2=False, folder=tmp_path)


def test_counting_needs_no_torch():
    """The wizard counts tokens before torch is loaded."""
    code = "import sys, engine.tokens as t; t.load_tokenizer(v2=False).ids('a &amp; b'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"

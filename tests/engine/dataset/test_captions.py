"""Captions are processed as sd-scripts does, with the same draws from the same generator."""

import json
import random
from pathlib import Path

import pytest

from engine.dataset.captions import CaptionOptions, caption_text, is_static, process_caption

CASES = json.loads((Path(__file__).parents[2] / "golden" / "captions.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_captions_and_draws_are_those_of_sd_scripts(case: dict) -> None:
    """The same text in a row of calls, and the generator left in the same state."""
    options = CaptionOptions(**case["options"], replacements=case["replacements"])
    rng = random.Random(case["seed"])

    outputs = [
        process_caption(
            case["caption"], options, rng, epoch=case["epoch"], step=case["step"], max_steps=case["max_train_steps"]
        )
        for _ in case["outputs"]
    ]

    assert case["outputs"] == outputs
    assert case["rng_after"] == rng.random()


@pytest.mark.parametrize(
    ("caption", "tags", "wildcard", "text"),
    [
        ("a cat", "1girl, solo", False, "a cat,1girl, solo"),
        ("", "1girl", False, "1girl"),
        (None, "1girl", True, "1girl"),
        ("a cat", None, False, "a cat"),
        ("a cat", "", True, "a cat"),
        (None, None, False, ""),
        ("one\n\ntwo", "x\ny", True, "one,x,y\ntwo,x,y"),
        ("one\ntwo", "x", False, "one\ntwo,x"),
    ],
)
def test_caption_and_tags_are_joined(caption: str | None, tags: str | None, wildcard: bool, text: str) -> None:
    """A bare separator joins them; with wildcards every line of the caption gets the tags."""
    assert text == caption_text(caption, tags, ",", enable_wildcard=wildcard)


@pytest.mark.parametrize(
    "changed",
    [
        {"shuffle_caption": True}, {"caption_dropout_rate": 0.1}, {"caption_dropout_every_n_epochs": 2},
        {"enable_wildcard": True}, {"caption_tag_dropout_rate": 0.1}, {"token_warmup_step": 5},
        {"replacements": {"": ["a", "b"]}},
    ],
)  # fmt: skip
def test_captions_that_change_are_not_static(changed: dict) -> None:
    """Text states are cached only where a caption is the same at every step."""
    assert is_static(CaptionOptions(caption_prefix="p", keep_tokens=2, secondary_separator=";"))
    assert not is_static(CaptionOptions(**changed))

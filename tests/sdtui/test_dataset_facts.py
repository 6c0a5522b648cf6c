"""Tokens, tags and findings of a plan, computed without a screen."""

import numpy as np
import pytest

from engine.dataset.duplicates import find_duplicates
from engine.errors import Problem
from engine.plan import make_plan
from engine.settings_io import Given, build
from sdtui.bucket_facts import bucket_facts, planned_again
from sdtui.dataset_facts import StoppedError, examine, full_caption, groups_of, kept_length, matching, token_bins
from tests.sdtui.page_support import write_pictures

LONG = ", ".join(f"word{number}" for number in range(60))


@pytest.fixture
def plan_for(tmp_path):
    """A function that plans a folder under further settings."""

    def make(folder, **values):
        given = {"train_data_dir": str(folder), "caption_extension": ".txt", "enable_bucket": True, **values}
        givens = [Given(name=name, value=value, place=name, folder=tmp_path) for name, value in given.items()]
        return make_plan(build(givens).settings, cache_dir=tmp_path / "cache")

    return make


def test_tokens_and_tags_are_counted(tmp_path, plan_for):
    """A caption beyond the limit is found, and tags are counted over all captions."""
    folder = write_pictures(tmp_path / "pics", [(64, 64)] * 3, ["cat, red", "cat", LONG])
    facts = examine(plan_for(folder))
    assert facts.tokens_N.tolist()[:2] == [3, 1]
    assert facts.truncated_N.tolist() == [2]
    assert facts.tags[0] == ("cat", 2)
    assert not facts.is_words


def test_sentences_are_counted_by_word(tmp_path, plan_for):
    """Captions without separators have no tags to count."""
    folder = write_pictures(tmp_path / "pics", [(64, 64)] * 2, ["a red cat", "a dog"])
    facts = examine(plan_for(folder))
    assert facts.is_words
    assert facts.tags[0] == ("a", 2)


def test_a_caption_is_measured_at_its_longest(tmp_path, plan_for):
    """Dropout and warmup hide nothing from the count, and prefixes belong to it."""
    folder = write_pictures(tmp_path / "pics", [(64, 64)], ["one, two, three"])
    plan = plan_for(folder, caption_dropout_rate=1.0, token_warmup_step=100, shuffle_caption=True, caption_prefix="x,")
    assert full_caption(plan, 0) == "x, one, two, three"


def test_the_part_that_is_read_ends_with_a_word(tmp_path, plan_for):
    """What comes after it is what the text encoder never sees."""
    plan = plan_for(write_pictures(tmp_path / "pics", [(64, 64)], [LONG]))
    kept = LONG[: kept_length(plan, LONG)]
    assert LONG.startswith(kept)
    assert kept.split()[-1].startswith("word")
    assert kept_length(plan, "a cat") == len("a cat")


def test_findings_have_their_files(tmp_path, plan_for):
    """Pictures without caption, enlarged, truncated and doubled ones are listed by row, with the fix that helps."""
    folder = write_pictures(tmp_path / "pics", [(64, 64), (900, 900), (64, 64)], [None, LONG, "x"])
    plan = plan_for(folder)
    (folder / "p3.png").write_bytes((folder / "p1.png").read_bytes())
    (folder / "p3.txt").write_text("y")
    plan = plan_for(folder)
    twice = find_duplicates(plan.catalog, cache_dir=tmp_path / "cache")
    groups = {group.code: group for group in groups_of(plan.problems, plan, examine(plan), twice)}
    assert groups["no-caption"].rows_N.tolist() == [0]
    assert sorted(groups["enlarged"].rows_N.tolist()) == [0, 2]
    assert groups["truncated"].changes == {"max_token_length": 150}
    assert groups["duplicates"].peers == {1: 3, 3: 1}


def test_bad_files_can_be_left_out():
    """Errors come first, are counted by kind, and one setting goes on without them."""
    problems = [
        Problem(code="no-caption", severity="warning", where="", message="31 pictures have no caption: a and 30 more"),
        *(Problem(code="damaged", severity="error", where=f"{n}.png", message="torn") for n in range(2)),
    ]
    damaged, captions = groups_of(problems)
    assert (damaged.code, damaged.count, damaged.changes) == ("damaged", 2, {"skip_bad_images": True})
    assert captions.count == 31


def test_search_looks_at_names_and_captions(tmp_path, plan_for):
    """Case does not matter, and a search can be stopped."""
    plan = plan_for(write_pictures(tmp_path / "pics", [(64, 64)] * 3, ["Cat", "dog", "p0 twin"]))
    assert matching(plan, np.arange(3), "P0").tolist() == [0, 2]
    assert matching(plan, np.arange(3), "cat").tolist() == [0]
    with pytest.raises(StoppedError):
        matching(plan, np.arange(3), "cat", is_stopped=lambda: True)


def test_bins_cover_every_count():
    """Nothing is counted twice or left out."""
    tokens_N = np.arange(200, dtype=np.int32)
    assert sum(count for _label, count, _cut in token_bins(tokens_N, 75)) == 200
    assert token_bins(tokens_N, 75)[-1] == ("76+", 124, True)


def test_what_if_places_the_same_pictures_anew(tmp_path, plan_for):
    """Other bucket settings need no scan; other folders do."""
    plan = plan_for(write_pictures(tmp_path / "pics", [(64, 64), (512, 300)]))
    again = planned_again(plan, plan.settings.replace(bucket_no_upscale=True))
    assert bucket_facts(plan).num_enlarged == 2
    assert bucket_facts(again).num_enlarged == 0
    (tmp_path / "other").mkdir()
    assert planned_again(plan, plan.settings.replace(train_data_dir=str(tmp_path / "other"))) is None


def test_cuts_are_ordered(tmp_path, plan_for):
    """The picture that loses most comes first, in all and in its bucket."""
    facts = bucket_facts(plan_for(write_pictures(tmp_path / "pics", [(512, 512), (500, 90), (520, 500)])))
    assert facts.worst_N.tolist()[0] == 1
    assert (np.diff(facts.cut_N[facts.worst_N]) <= 0).all()
    assert 0 < facts.pixels_cut < 1

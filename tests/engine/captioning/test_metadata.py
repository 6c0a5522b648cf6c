"""sd-scripts' cleaning and merging row by row, and the rules of our own."""

import json

import pytest

from engine.captioning.cleaning import make_cleaner
from engine.captioning.metadata import MergeOptions, clean_caption, clean_tags, dump, merge
from engine.dataset.findings import Findings
from engine.dataset.metadata import locate, read_metadata
from engine.errors import EngineError
from tests.conftest import GOLDEN

ROWS = json.loads((GOLDEN / "cleaning.json").read_text("utf-8"))
FIELDS = {"merge_captions_to_metadata": "caption", "merge_dd_tags_to_metadata": "tags"}


@pytest.mark.parametrize("row", ROWS["clean_tags"], ids=lambda row: row["in"])
def test_tags_are_cleaned_as_sd_scripts_cleans_them(row):
    """Golden rows, 100 %."""
    assert row["out"] == clean_tags(row["in"]) == make_cleaner("classic").tags(row["in"])


@pytest.mark.parametrize("row", ROWS["clean_caption"], ids=lambda row: row["in"])
def test_captions_are_cleaned_as_sd_scripts_cleans_them(row):
    """Golden rows, 100 %."""
    assert row["out"] == clean_caption(row["in"]) == make_cleaner("classic").caption(row["in"])


@pytest.mark.parametrize("row", ROWS["merge"], ids=lambda row: f"{row['tool']} {row['case']}")
def test_merging_writes_what_sd_scripts_writes(row):
    """Golden rows, 100 %, as text."""

    def merged():
        options = MergeOptions(**row["options"])
        return merge(row["files"], row["in_json"], options, field=FIELDS[row["tool"]], image_dir="<DIR>/img")

    if "error" in row:
        with pytest.raises(FileNotFoundError, match="no such caption file"):
            merged()
    else:
        assert row["out_json_text"] == dump(merged())


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (
            "2girls, long_hair, short_hair, blue_eyes, red_eyes, blonde_hair, brown_hair, shirt, white_shirt, ^_^",
            "2girls, white shirt, ^_^",
        ),
        ("1girl, shirt, white_shirt, long_hair, hair_ornament", "1girl, white shirt, long hair, hair ornament"),
        ("girls eyes, boys eyes", ""),
        ("^_^_^, a_b", "^_^ ^, a b"),
    ],
)  # fmt: skip
def test_the_reference_page_s_own_rows(tags, expected):
    """And two rows on which sd-scripts stops with an assertion or is easily got wrong."""
    assert expected == clean_tags(tags)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("long_hair, >_<, ^_^, rating:safe, solo", "long hair, >_<, ^_^, solo"),
        ("shirt, white shirt, shirt, collared white shirt", "collared white shirt"),
        ("2girls, blue eyes, red eyes, closed eyes, long hair", "2girls, closed eyes, long hair"),
        ("1girl, blue eyes, red eyes", "1girl, blue eyes, red eyes"),
        ("haired, hair", "haired, hair"),
        ("", ""),
    ],
)
def test_the_default_table_cleans_whole_tags(tags, expected):
    """Duplicates, ratings, what can't be told apart, what another tag says more exactly."""
    assert expected == make_cleaner("default").tags(tags)


def test_the_default_table_leaves_words_alone():
    """Photographs of persons stay photographs of persons; only blanks and repeats go."""
    clean = make_cleaner("default").caption

    assert clean("a  a woman with  personal belongings ") == "a woman with personal belongings"
    assert clean("two lines\nof a a text") == "two lines\nof a text"


def test_the_drawings_table_replaces_whole_words_only():
    """Where sd-scripts makes "girlal" of "personal"."""
    clean = make_cleaner("drawings").caption

    assert (
        clean("a young Woman, personal malady, ladybug, anime anime anime woman")
        == "a girl, personal malady, ladybug, girl"
    )
    assert clean("an anime cartoon image of people") == "an image of girls"


def test_a_table_of_the_user_is_read_and_its_faults_are_named(tmp_path):
    """Rename, remove and replace; a wrong key with its line."""
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('[tags]\nremove = ["x*"]\n[tags.rename]\n"1girl" = "girl"\n[captions.replace]\n"cat" = "dog"\n')
    bad.write_text("[tags]\nremoves = []\n")
    cleaner = make_cleaner(str(good))

    assert cleaner.tags("1girl, xy, y") == "girl, y"
    assert cleaner.caption("a cat, a Cat, a catfish") == "a dog, a dog, a catfish"
    with pytest.raises(EngineError, match=r"bad.toml:2: "):
        make_cleaner(str(bad))
    with pytest.raises(EngineError, match="neither a table of rules nor one of classic, default, drawings"):
        make_cleaner("clasic")


def test_keys_by_path_are_found_by_training(tmp_path, golden):
    """All fourteen pictures, and folders inside; a stem key that sd-scripts wrote is given its path."""
    names = sorted(
        path.name for path in (golden / "dataset" / "images").iterdir() if path.suffix not in {".txt", ".caption"}
    )
    files = {
        **dict.fromkeys(names),
        "a_astronaut_square.caption": " new \n",
        "sub/x.Jpg": None,
        "sub/x.caption": "in sub",
    }
    options = MergeOptions(keys="path", recursive=True)
    old = {"a_astronaut_square": {"caption": "old", "tags": "kept"}, "zz": {"tags": "gone"}}
    merged = merge(files, old, options)

    assert list(merged) == ["a_astronaut_square.png", "zz", "sub/x.Jpg"]
    assert merged["a_astronaut_square.png"] == {"caption": "new", "tags": "kept"}
    (tmp_path / "meta.jsonl").write_text(dump({names[0]: {"caption": "c"}}, is_lines=True))
    entries = read_metadata(tmp_path / "meta.jsonl", Findings())
    findings = Findings()
    assert [path.rpartition("/")[2] for path in locate(entries, golden / "dataset" / "images", findings)] == names[:1]
    assert findings.problems() == ()


def test_stems_of_two_folders_are_refused_under_classic_keys():
    """sd-scripts stops with an assertion there."""
    with pytest.raises(EngineError, match="needs --full_path"):
        merge({}, None, MergeOptions(recursive=True))

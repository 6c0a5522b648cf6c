"""dataset.toml loads as sd-scripts' does, and everything wrong with one is told at once."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.dataset.config import DatasetConfig, dataset_json_schema, load_dataset_config
from engine.errors import EngineError, ProblemsError
from engine.settings import Settings


def _load(folder: Path, text: str, name: str = "dataset.toml", **settings: Any) -> DatasetConfig:
    (folder / "images").mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return load_dataset_config(Settings().replace(dataset_config=str(folder / name), **settings).flat())


def _errors(folder: Path, text: str, name: str = "dataset.toml") -> list[str]:
    with pytest.raises(ProblemsError) as caught:
        _load(folder, text, name)
    return [str(problem).removeprefix(str(folder) + "/") for problem in caught.value.problems]


SUBSET = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "images"\n'


def test_inner_levels_win_over_outer_ones_and_over_settings(tmp_path: Path) -> None:
    """Subset > data set > general > setting > default, for each key by itself."""
    text = """
[general]
keep_tokens = 1
shuffle_caption = true
flip_aug = true
batch_size = 3
[[datasets]]
keep_tokens = 2
resolution = 640
enable_bucket = true
[[datasets.subsets]]
image_dir = "images"
keep_tokens = 3
num_repeats = 4
shuffle_caption = false
caption_tag_dropout_rate = 0.5
[[datasets]]
batch_size = 5
resolution = [512, 768]
enable_bucket = true
[[datasets.subsets]]
image_dir = "images"
"""
    first, second = _load(tmp_path, text, keep_tokens=9, caption_prefix="by me", dataset_repeats=7).datasets

    assert (first.batch_size, first.resolution, second.batch_size, second.resolution) == (3, (640, 640), 5, (512, 768))
    one, two = first.subsets[0], second.subsets[0]
    assert (one.caption.keep_tokens, one.num_repeats, one.caption.shuffle_caption) == (3, 4, False)
    assert (two.caption.keep_tokens, two.num_repeats, two.caption.shuffle_caption) == (1, 7, True)
    assert one.caption.caption_prefix == two.caption.caption_prefix == "by me"
    assert one.augment.flip_aug


def test_paths_count_from_the_files_folder(tmp_path: Path) -> None:
    """A relative image_dir or metadata_file is looked for beside dataset.toml, whatever the current folder is."""
    (tmp_path / "meta.json").write_text("{}")
    config = _load(tmp_path, SUBSET + 'metadata_file = "meta.json"\n')

    subset = config.subsets[0]
    assert (subset.image_dir, subset.metadata_file) == (tmp_path / "images", tmp_path / "meta.json")


def test_json_says_the_same_as_toml(tmp_path: Path) -> None:
    """sd-scripts reads its data-set file as JSON too."""
    data = {"general": {"keep_tokens": 1}, "datasets": [{"subsets": [{"image_dir": "images"}]}]}
    assert _load(tmp_path, json.dumps(data), "dataset.json").subsets[0].caption.keep_tokens == 1
    assert "not valid JSON" in _raised(tmp_path, "{", "dataset.json")


def _raised(folder: Path, text: str, name: str) -> str:
    with pytest.raises(EngineError) as caught:
        _load(folder, text, name)
    return str(caught.value)


def test_every_problem_is_told_with_its_line(tmp_path: Path) -> None:
    """Unknown keys with the nearest one, keys on the wrong level, wrong types, bounds and choices, all in one go."""
    text = """[general]
shufle_caption = true
batch_size = true
[[datasets]]
resolution = "wide"
min_bucket_reso = 1.5
[[datasets.subsets]]
image_dir = "images"
batch_size = 2
caption_dropout_rate = nan
keep_tokens = 99999
resize_interpolation = "lanczo"
flip_aug = 1
num_repeats = "3"
[extra]
"""
    found = _errors(tmp_path, text)

    for line, words in {
        2: "shufle_caption is not a key of [general]; did you mean 'shuffle_caption'?",
        3: "batch_size = True: input should be a valid integer",
        5: "resolution = 'wide'",
        6: "min_bucket_reso = 1.5: input should be a valid integer",
        9: "batch_size is not a key of [[datasets.subsets]]; it belongs to [general] or [[datasets]]",
        10: "caption_dropout_rate = nan: input should be a finite number",
        11: "keep_tokens = 99999: input should be less than or equal to 1000",
        12: "did you mean 'lanczos'?",
        13: "flip_aug = 1: input should be a valid boolean",
        14: "num_repeats = '3': input should be a valid integer",
        15: "extra is not a key of a data-set file",
    }.items():
        assert [one for one in found if one.startswith(f"dataset.toml:{line}: ") and words in one], (line, found)
    assert len(found) == 11


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("custom_attributes = { a = 1 }", "data-set plug-ins"),
        ("is_reg = true", "regularisation"),
        ('class_tokens = "dog"', "caption_prefix"),
        ("cache_info = true", "index"),
    ],
)
def test_keys_that_do_not_work_here_are_refused_by_name(tmp_path: Path, line: str, words: str) -> None:
    """What would change the training elsewhere is never ignored."""
    (found,) = _errors(tmp_path, SUBSET + line + "\n")
    assert found.startswith(f"dataset.toml:4: {line.split(maxsplit=1)[0]} = ")
    assert words in found


def test_such_keys_are_accepted_where_they_change_nothing(tmp_path: Path) -> None:
    """A file that spells out their defaults loads."""
    general = "[general]\nvalidation_split = 0.0\nnetwork_multiplier = 1.0\n"
    assert _load(tmp_path, general + SUBSET + "alpha_mask = false\nis_reg = false\n").subsets


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no [[datasets]] is given"),
        ("[[datasets]]\n", "no [[datasets.subsets]] is given"),
        ("[[datasets]]\nsubsets = []\n", "no [[datasets.subsets]] is given"),
        ("[[datasets]]\n[[datasets.subsets]]\n", "no pictures are named"),
        (
            '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "a\\u0000b"\n',
            "image_dir = a\\x00b: holds a character that no file name can hold",
        ),
        ('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "nowhere"\n', "image_dir = nowhere: there is no such folder"),
        ("general = 3\n" + SUBSET, "general = 3"),
        ("datasets = 3\n", "datasets = 3"),
        ("[general]\nresolution = 500\n" + SUBSET, "multiples of 64"),
        ("[general]\nenable_bucket = true\nbucket_reso_steps = 32\n" + SUBSET, "multiples of 64"),
        ("[general]\nenable_bucket = true\nmin_bucket_reso = 640\n" + SUBSET, "below min_bucket_reso"),
        ("[general]\nenable_bucket = true\nresolution = 1280\n" + SUBSET, "above max_bucket_reso"),
    ],
)
def test_files_that_can_not_be_trained_on_are_refused(tmp_path: Path, text: str, words: str) -> None:
    """Each with one sentence that names the place."""
    assert words in _errors(tmp_path, text)[0]


def test_notes_do_not_stop_a_run(tmp_path: Path) -> None:
    """Rounded limits, keys without effect and a folder named twice are told as warnings."""
    text = "[general]\nenable_bucket = true\nmin_bucket_reso = 300\nkeep_tokens = 2\n" + SUBSET
    config = _load(tmp_path, text + '[[datasets.subsets]]\nimage_dir = "images"\n')

    assert config.datasets[0].min_bucket_reso == 256
    assert {"rounded", "no-effect", "twice"} == {problem.code for problem in config.problems}
    assert len(config.subsets) == 1


def test_a_folder_alone_is_a_data_set(tmp_path: Path) -> None:
    """train_data_dir, with or without in_json, as on sd-scripts' command line."""
    meta = tmp_path / "meta.json"
    meta.write_text("{}")
    plain = load_dataset_config(Settings().replace(train_data_dir=str(tmp_path), train_batch_size=3).flat())
    both = load_dataset_config(Settings().replace(train_data_dir=str(tmp_path), in_json=str(meta)).flat())

    assert (plain.datasets[0].batch_size, plain.subsets[0].image_dir) == (3, tmp_path)
    assert both.subsets[0].metadata_file == meta
    with pytest.raises(ProblemsError, match="train_data_dir"):
        load_dataset_config(Settings().flat())
    with pytest.raises(ProblemsError, match=r"train_data_dir = .*nowhere: there is no such folder"):
        load_dataset_config(Settings().replace(train_data_dir=str(tmp_path / "nowhere")).flat())


def test_schema_describes_every_key() -> None:
    """Editors complete and explain keys on all three levels."""
    definitions = dataset_json_schema()["$defs"]
    for level in ("General", "PartKeys", "SubsetKeys"):
        assert all(field.get("description") for field in definitions[level]["properties"].values())
    assert "image_dir" in definitions["SubsetKeys"]["properties"]
    assert "batch_size" not in definitions["SubsetKeys"]["properties"]

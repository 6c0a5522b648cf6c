"""The draft's own dataset.toml: comments survive, the user's file is never written, each change is a new version."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.dataset.config import load_dataset_config
from engine.errors import EngineError, ProblemsError
from sdtui.dataset_file import add_source, keys_in_file, publish, remove_source, set_part, set_subset
from sdtui.draft import new_draft

USER_FILE = """\
# my pictures
[general]
enable_bucket = true  # keep shapes

[[datasets]]
resolution = 512

  [[datasets.subsets]]
  image_dir = "cats"  # the best ones
  num_repeats = 3

  [[datasets.subsets]]
  image_dir = "dogs"
"""


@dataclass
class Project:
    folder: Path
    draft: object

    def apply(self, changes):
        self.draft.change(changes)
        return load_dataset_config(self.draft.settings.flat())

    @property
    def text(self):
        return Path(self.draft.settings.dataset.dataset_config).read_text()


@pytest.fixture
def project(tmp_path):
    for name in ("cats", "dogs", "birds"):
        (tmp_path / name).mkdir()
    return Project(folder=tmp_path, draft=new_draft(tmp_path, tmp_path / "drafts"))


@pytest.fixture
def with_file(project):
    (project.folder / "dataset.toml").write_text(USER_FILE)
    project.apply(add_source(project.draft, project.folder / "dataset.toml"))
    return project


def test_the_first_folder_is_a_setting(project):
    """One folder needs no further file."""
    changes = add_source(project.draft, project.folder / "cats")
    assert {"train_data_dir": str(project.folder / "cats")} == changes


def test_a_metadata_file_is_told_from_a_configuration(project):
    """Both end in .json; what they hold decides."""
    metadata, config = project.folder / "meta.json", project.folder / "config.json"
    metadata.write_text(json.dumps({"a.png": {"caption": "a cat"}}))
    config.write_text(json.dumps({"datasets": [{"subsets": [{"image_dir": "cats"}]}]}))
    assert {"in_json": str(metadata)} == add_source(project.draft, metadata)
    assert str(config) == add_source(project.draft, config)["dataset_config"]


def test_a_second_folder_makes_a_dataset_file(project):
    """Both folders are in it, and the setting of the first is gone, for the file would win over it."""
    project.apply(add_source(project.draft, project.folder / "cats"))
    config = project.apply(add_source(project.draft, project.folder / "dogs"))
    assert [project.folder / "cats", project.folder / "dogs"] == [subset.image_dir for subset in config.subsets]
    assert project.draft.settings.dataset.train_data_dir is None


def test_a_folder_is_added_once(project):
    """The message says how to show it more often."""
    project.apply(add_source(project.draft, project.folder / "cats"))
    with pytest.raises(EngineError, match="num_repeats"):
        add_source(project.draft, project.folder / "cats")


@pytest.mark.parametrize("name", ["nothing", "picture.png"])
def test_what_is_no_data_set_is_refused(project, name):
    """Neither a missing path nor a picture is a source."""
    (project.folder / "picture.png").write_bytes(b"x")
    with pytest.raises(EngineError, match=r"no such folder|is no folder"):
        add_source(project.draft, project.folder / name)


def test_options_of_a_lone_folder_are_settings(project):
    """They are undone like any other setting."""
    project.apply(add_source(project.draft, project.folder / "cats"))
    assert set_subset(project.draft, 0, {"num_repeats": 5}) == {"dataset_repeats": 5}


def test_a_change_copies_the_users_file(with_file):
    """The copy keeps comments and has absolute paths; the user's file stays as it was; undo goes back to it."""
    config = with_file.apply(set_subset(with_file.draft, 1, {"num_repeats": 7, "flip_aug": True}))
    assert [subset.num_repeats for subset in config.subsets] == [3, 7]
    assert config.subsets[1].augment.flip_aug
    assert "# the best ones" in with_file.text
    assert (with_file.folder / "dataset.toml").read_text() == USER_FILE
    with_file.draft.undo()
    assert with_file.draft.settings.dataset.dataset_config == str(with_file.folder / "dataset.toml")


def test_every_change_is_a_version_of_its_own(with_file):
    """So that undo and redo need only the setting that names the file."""
    with_file.apply(set_subset(with_file.draft, 0, {"num_repeats": 4}))
    first = with_file.draft.settings.dataset.dataset_config
    config = with_file.apply(set_subset(with_file.draft, 0, {"num_repeats": 5}))
    assert first != with_file.draft.settings.dataset.dataset_config
    assert config.subsets[0].num_repeats == 5
    with_file.draft.undo()
    assert load_dataset_config(with_file.draft.settings.flat()).subsets[0].num_repeats == 4


def test_a_value_is_set_on_the_level_that_gives_it(with_file):
    """[general] keeps what it gives, a data set what it gives; what the file is silent about stays a setting."""
    changes = set_part(with_file.draft, 0, {"enable_bucket": False, "resolution": (640, 512), "batch_size": 4})
    config = with_file.apply(changes)
    assert not config.datasets[0].enable_bucket
    assert config.datasets[0].resolution == (640, 512)
    assert changes["train_batch_size"] == 4
    assert "enable_bucket = false # keep shapes" in " ".join(with_file.text.split())


def test_a_value_that_cannot_be_used_is_refused(with_file):
    """Nothing is written and the problem names the key."""
    with pytest.raises(ProblemsError, match="num_repeats"):
        set_subset(with_file.draft, 0, {"num_repeats": 0})
    assert not list(with_file.draft.draft_path.with_suffix(".data").glob("*"))


def test_folders_are_removed_until_none_is_left(with_file):
    """The last one takes the file's name out of the settings."""
    config = with_file.apply(remove_source(with_file.draft, 0))
    assert [subset.image_dir.name for subset in config.subsets] == ["dogs"]
    assert remove_source(with_file.draft, 0) == {"dataset_config": None}


def test_none_takes_a_value_back(with_file):
    """The key leaves the file."""
    config = with_file.apply(set_subset(with_file.draft, 0, {"num_repeats": None}))
    assert config.subsets[0].num_repeats == 1
    assert "num_repeats" not in with_file.text


def test_what_the_file_gives_is_told_by_data_set(with_file):
    """[general] counts for every data set."""
    (given,) = keys_in_file(with_file.draft.settings.dataset)
    assert {"enable_bucket", "resolution"} <= given
    assert "batch_size" not in given


def test_saving_puts_the_own_file_beside_the_run(with_file):
    """A file of the user's is left where it is; the draft's own is copied under a free name."""
    assert publish(with_file.draft, with_file.folder) == {}
    with_file.apply(set_subset(with_file.draft, 0, {"num_repeats": 4}))
    config = with_file.apply(publish(with_file.draft, with_file.folder))
    assert str(with_file.folder / "dataset-2.toml") == with_file.draft.settings.dataset.dataset_config
    assert config.subsets[0].num_repeats == 4


def test_a_saved_run_does_not_depend_on_the_folder_of_drafts(with_file):
    """The draft's own dataset.toml is written beside the run.toml, which then names that one; the user's stays."""
    from engine.settings_io import load_run
    from sdtui.outlook import save_draft

    with_file.apply(set_subset(with_file.draft, 0, {"num_repeats": 4}))
    draft = with_file.draft

    save_draft(draft)

    named = Path(load_run(draft.target).settings.dataset.dataset_config)
    assert named.parent == draft.target.parent
    assert "num_repeats = 4" in named.read_text()
    assert (with_file.folder / "dataset.toml").read_text() == USER_FILE

"""Fetching a captioner from the hub: just its files, of one commit, each against its hash."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from engine.captioning.fetch import find_files, source_of
from engine.errors import EngineError

FILES = {
    "model.onnx": b"onnx", "selected_tags.csv": b"tags", "saved_model.pb": b"no", "README.md": b"no",
    "sub/model_optimized.onnx": b"sub", "sub/model_optimized.onnx.data": b"more", "sub/tag_mapping.json": b"{}",
}  # fmt: skip
WD14 = [("selected_tags.csv", "model.onnx", ""), ("tag_mapping.json", "model_optimized.onnx", "")]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of one repository, which tells what was asked of it; `wrong` names files whose hash is another."""
    state = SimpleNamespace(asked=[], wrong=set(), revisions=[])

    class Api:
        def model_info(self, *_repo, revision=None, **_options):
            state.revisions.append(revision)
            siblings = [
                SimpleNamespace(rfilename=name, lfs=SimpleNamespace(sha256=self._hash(name, data)))
                for name, data in FILES.items()
            ]
            return SimpleNamespace(siblings=siblings, sha="c0ffee")

        def _hash(self, name, data):
            return hashlib.sha256(b"other" if name in state.wrong else data).hexdigest()

        def hf_hub_download(self, repo, name, revision=None):
            state.asked.append((repo, name, revision))
            path = tmp_path / "hub" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(FILES[name])
            return str(path)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    return state


def test_only_the_files_of_a_tagger_are_fetched_from_one_commit(hub, tmp_path):
    """Neither TensorFlow's files nor anything else."""
    folder = find_files("owner/name:main", WD14)

    assert folder == tmp_path / "hub"
    assert hub.asked == [("owner/name", "selected_tags.csv", "c0ffee"), ("owner/name", "model.onnx", "c0ffee")]


def test_a_revision_is_asked_for_and_the_commit_it_was_is_told(hub, tmp_path, monkeypatch):
    """Said twice or of a folder it is refused; the hub's cache names the commit."""
    folder = find_files("owner/name", WD14, revision="v2")
    assert folder == tmp_path / "hub"
    assert hub.revisions == ["v2"]
    assert source_of(Path("/c/models--owner--name/snapshots/c0ffee/sub")) == "owner/name at c0ffee"
    assert source_of(tmp_path) == str(tmp_path)
    with pytest.raises(EngineError, match="say it once"):
        find_files("owner/name:main", WD14, revision="v2")
    with pytest.raises(EngineError, match="is a folder and has none"):
        find_files(str(tmp_path), WD14, revision="v2")


def test_a_folder_of_a_repository_may_be_named(hub, tmp_path):
    """With the weights that an .onnx keeps beside it."""
    folder = find_files("owner/name/sub", WD14)

    assert folder == tmp_path / "hub" / "sub"
    names = [name for _repo, name, _revision in hub.asked]
    assert names == ["sub/tag_mapping.json", "sub/model_optimized.onnx", "sub/model_optimized.onnx.data"]


def test_another_hash_and_missing_files_are_refused(hub):
    """The message names both hashes, or what is wanted."""
    hub.wrong.add("model.onnx")
    with pytest.raises(EngineError, match=r"model\.onnx is not what the hub lists"):
        find_files("owner/name", WD14)
    with pytest.raises(EngineError, match=r"has not config\.json and model\.safetensors"):
        find_files("owner/name", [("config.json", "model.safetensors")])


def test_a_folder_is_never_looked_up(hub, tmp_path):
    """A file in it names it too."""
    (tmp_path / "x.onnx").write_bytes(b"")

    assert find_files(str(tmp_path), WD14) == find_files(str(tmp_path / "x.onnx"), WD14) == tmp_path
    assert hub.asked == []

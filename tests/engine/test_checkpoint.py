"""When models are saved and removed: sd-scripts' names and its keep-last rules."""

import errno

import pytest

from engine.checkpoint import Due, ModelSaver, due_saves, size_of
from engine.errors import EngineError
from engine.settings import Settings


def saving(**values):
    return Settings().replace(output_dir="o", **values).saving


def dues(steps, steps_per_epoch, epochs, **values):
    """Return (step, stem, replaced stem) of a whole run."""
    chosen = saving(**values)
    return [
        (step, due.stem, due.replaces)
        for step in range(1, steps + 1)
        for due in due_saves(chosen, step=step, steps_per_epoch=steps_per_epoch, epochs=epochs)
    ]


def test_by_epochs_without_the_last():
    """The last epoch is left to the save at the end."""
    assert dues(8, 2, 4, save_every_n_epochs=1) == [
        (2, "last-000001", ""), (4, "last-000002", ""), (6, "last-000003", "")
    ]  # fmt: skip


def test_the_newest_n_by_epochs_stay():
    """save_last_n_epochs counts saves."""
    assert dues(12, 1, 12, save_every_n_epochs=3, save_last_n_epochs=2) == [
        (3, "last-000003", ""), (6, "last-000006", ""), (9, "last-000009", "last-000003")
    ]  # fmt: skip


def test_a_ratio_asks_for_about_so_many_saves():
    """It wins over save_every_n_epochs, as in sd-scripts."""
    assert [step for step, *_ in dues(10, 1, 10, save_n_epoch_ratio=3, save_every_n_epochs=1)] == [3, 6, 9]
    assert [step for step, *_ in dues(2, 1, 2, save_n_epoch_ratio=5)] == [1]


@pytest.mark.parametrize(
    ("keep", "replaced"),
    [(1, {4: 2, 6: 4, 8: 6}), (2, {6: 2, 8: 4}), (3, {6: 2, 8: 4}), (4, {8: 2})],
)
def test_the_newest_by_steps_stay(keep, replaced):
    """save_last_n_steps counts steps, rounded up to the next save."""
    found = dues(8, 100, 1, save_every_n_steps=2, save_last_n_steps=keep)

    assert {step: stem for step, _, stem in found if stem} == {
        step: f"last-step{old:08d}" for step, old in replaced.items()
    }


class Model:
    """Stands for a family: writes a few bytes, or fails."""

    error = None

    def save(self, path, save_model_as, **_):
        if self.error:
            raise self.error
        if save_model_as.startswith("diffusers"):
            path.mkdir()
            path /= "weights"
        path.write_bytes(b"12345")


def saver(folder, **values):
    return ModelSaver(folder=folder, saving=saving(**values), metadata=dict)


@pytest.mark.parametrize("kind", ["safetensors", "ckpt", "diffusers"])
def test_a_replaced_model_is_removed_after_the_new_one_stands(tmp_path, kind):
    """Files and folders; the event names both."""
    models = saver(tmp_path, save_model_as=kind)
    models.save(Model(), Due(occasion="step", stem="a"), epoch=1, step=1)

    event = models.save(Model(), Due(occasion="step", stem="b", replaces="a"), epoch=1, step=2)

    suffix = "" if kind == "diffusers" else f".{kind}"
    assert (event.path, event.bytes, event.removed) == (f"b{suffix}", 5, (f"a{suffix}",))
    assert [path.name for path in tmp_path.iterdir()] == [f"b{suffix}"]
    assert size_of(tmp_path / f"b{suffix}") == 5


def test_only_what_this_run_wrote_is_removed(tmp_path):
    """A file of the user's under the same name stays."""
    (tmp_path / "a.safetensors").write_bytes(b"mine")

    event = saver(tmp_path).save(Model(), Due(occasion="step", stem="b", replaces="a"), epoch=1, step=1)

    assert event.removed == ()
    assert (tmp_path / "a.safetensors").read_bytes() == b"mine"


def test_a_failed_save_removes_nothing(tmp_path):
    """One sentence names file and cause; the older model stays."""
    models, model = saver(tmp_path), Model()
    models.save(model, Due(occasion="step", stem="a"), epoch=1, step=1)
    model.error = OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(EngineError, match=r"b\.safetensors can't be written: the disk is full \(.* are free there\)"):
        models.save(model, Due(occasion="step", stem="b", replaces="a"), epoch=1, step=2)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_model_that_can_not_be_removed_ends_nothing(tmp_path, monkeypatch):
    """It stays, and is not told as removed."""
    models = saver(tmp_path)
    models.save(Model(), Due(occasion="step", stem="a"), epoch=1, step=1)

    def refuse(_path, missing_ok=False):
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.unlink", refuse)

    assert models.save(Model(), Due(occasion="step", stem="b", replaces="a"), epoch=1, step=2).removed == ()

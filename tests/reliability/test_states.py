"""States: exact resume, kills at every step and every call of a save, damage, retention, honest differences."""

import errno
import json
import os
import random
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.checkpoint import due_state
from engine.errors import EngineError, ProblemsError
from engine.events import Started, metric_row, read_events
from engine.models.safetensors_io import open_safetensors
from engine.resume import resume_run, setting_differences
from engine.settings import SavingSettings
from engine.snapshot import Snapshot
from engine.space import NotWrittenError
from engine.states import FOLDER, MANIFEST, clear_leftovers, list_states, new_state, newest_intact, read_json, verify
from tests.engine.run_support import new_folder, write_pictures

from .state_support import (
    STEPS,
    Killed,
    StopAt,
    copy_run,
    dying,
    go_on,
    good_states,
    hashes,
    train,
    write,
)


@pytest.fixture(scope="module")
def straight():
    """A run that was never interrupted, and the hashes of its last state."""
    run = train(write(new_folder()))
    return run, hashes(run.folder)


def kill_at(path, step):
    """Train until the process dies after a step; the lock goes with it."""
    with pytest.raises(Killed):
        train(path, listeners=[StopAt(step)])
    finish_writing()
    return path.parent / "out"


def finish_writing():
    """Let the writer of a run that was killed in this process end, as no thread outlives a real one."""
    for thread in threading.enumerate():
        if thread.name == "states":
            thread.join()


KILLS = range(1, STEPS) if os.environ.get("SDTUI_SOAK") else (2, 5, 7, 10, 11)
"""Steps after which a run is killed: all of them in `make soak`."""


@pytest.mark.parametrize("step", KILLS)
def test_row_02_killed_after_any_step_a_run_ends_with_the_same_bits(tmp_path, straight, step):
    """In the middle of an epoch or an accumulation, with average weights, shuffled and dropped captions, flips."""
    folder = kill_at(write(tmp_path), step)

    run = go_on(folder, restarts=True)

    assert hashes(folder) == straight[1]
    assert run.losses == straight[0].losses
    started = [event for event in read_events(folder / "events.jsonl") if isinstance(event, Started)]
    # The state of a step is written after it is told.
    assert started[-1].resumed_from == (step - 1) // 4 * 4


def test_a_second_and_a_third_resume_are_exact_too(tmp_path, straight):
    """States of a resumed run are as good as the first ones'."""
    folder = kill_at(write(tmp_path), 5)
    for step in (9, 11):
        with pytest.raises(Killed):
            go_on(folder, listeners=[StopAt(step)])
        finish_writing()
    go_on(folder)

    assert hashes(folder) == straight[1]


def test_a_run_without_cache_goes_on_with_other_threads_and_a_trained_text_encoder(tmp_path):
    """Pictures decoded anew, with one thread before and two after."""
    values = {"train_text_encoder": True, "cache_latents": False, "optimizer_type": "AdamW8bit"}
    expected = hashes(train(write(tmp_path / "straight", **values)).folder)

    folder = kill_at(write(tmp_path / "killed", max_data_loader_n_workers=0, **values), 7)
    go_on(folder, overrides=["max_data_loader_n_workers=2"])

    assert "text_encoder.safetensors" in expected
    assert hashes(folder) == expected


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer_type": "AdaFactor", "max_grad_norm": 0, "lr_scheduler": "constant"},
        {"optimizer_type": "Lion"},
        {"optimizer_type": "Prodigy", "learning_rate": 1.0},
        {"optimizer_type": "AdamWScheduleFree", "lr_scheduler": "constant", "use_ema": False},
        {"full_bf16": True, "mixed_precision": "bf16"},
    ],
    ids=lambda values: str(next(iter(values.values()))),
)
def test_every_kind_of_optimizer_state_comes_back(tmp_path, values):
    """By parameter names, in its own precision, whatever the optimizer keeps."""
    values = {"max_train_steps": 6, "save_every_n_steps": 3, **values}
    expected = hashes(train(write(tmp_path / "straight", **values)).folder, 6)

    folder = kill_at(write(tmp_path / "killed", **values), 4)
    go_on(folder)

    assert hashes(folder, 6) == expected


@pytest.fixture(scope="module")
def small_states():
    """A run folder with three states that are quick to write, and a way to write more."""
    folder = new_folder()
    for step in (1, 2, 3):
        write_small(folder, step)
    return folder


def write_small(folder, step):
    data = random.Random(step).randbytes(300)
    with new_state(folder, step, {"envelope": {}}) as new:
        (new.path / "unet.safetensors").write_bytes(data)
        import hashlib

        new.add("unet.safetensors", hashlib.sha256(data).hexdigest())
        new.add_json("state.json", {"step": step})


def telling_places(calls):
    """Return the numbers of all calls but writes, and of the first, the middle and the last write of each file."""
    writes = {}
    for number, (name, path) in enumerate(calls):
        if name == "write":
            writes.setdefault(path, []).append(number)
    others = {number for number, (name, _) in enumerate(calls) if name != "write"}
    return sorted(others | {places[at] for places in writes.values() for at in (0, len(places) // 2, -1)})


def test_row_01_killed_at_every_write_of_a_save_two_states_are_whole(monkeypatch, straight):
    """Thousands of them: the last state of the straight run is written beside the two before it, without training."""
    finished = straight[0].folder / FOLDER / f"step-{STEPS:08d}"
    folder = kill_at(write(new_folder()), 9)
    snapshot = Snapshot(
        step=STEPS,
        tensors={path.name: open_safetensors(path).tensors for path in finished.glob("*.safetensors")},
        state=read_json(finished),
        dataset=read_json(finished, "dataset.json"),
        facts={"envelope": {}},
    )
    with dying(monkeypatch, under=folder / FOLDER, at=None) as calls:
        snapshot.write(folder)
    assert hashes(folder) == straight[1]
    shutil.rmtree(folder / FOLDER / finished.name)
    before = good_states(folder)
    assert len(before) == 2

    for number in range(0, len(calls), 1 if os.environ.get("SDTUI_SOAK") else len(calls) // 4):
        with pytest.raises(Killed), dying(monkeypatch, under=folder / FOLDER, at=number):
            snapshot.write(folder)
        clear_leftovers(folder)
        assert {path.name for path in (folder / FOLDER).iterdir()} - {finished.name} == {
            f"step-{step:08d}" for step in before
        }, calls[number]
        assert [step for step in good_states(folder) if step != STEPS] == before, calls[number]
        shutil.rmtree(folder / FOLDER / finished.name, ignore_errors=True)


def test_row_01_killed_at_any_call_of_a_save_two_states_are_whole(monkeypatch, straight):
    """Every write, sync, rename and removal is a place to die, found by watching; resume ends in the same bits."""
    source = kill_at(write(new_folder()), 9)
    monkeypatch.setattr("engine.statesaver.ROOM_FACTOR", float("inf"))  # Written by this thread, so that it dies.
    watched = copy_run(source)
    with dying(monkeypatch, under=watched / FOLDER, at=None) as calls:
        go_on(watched)
    assert {"open", "write", "fsync", "replace", "rename", "mkdir"} <= {name for name, _ in calls}
    assert len(calls) > 30

    for number in telling_places(calls) if os.environ.get("SDTUI_SOAK") else (len(calls) // 2, len(calls) - 2):
        copy = copy_run(source)
        with pytest.raises(Killed), dying(monkeypatch, under=copy / FOLDER, at=number):
            go_on(copy)
        assert len(good_states(copy)) >= 2, calls[number]
        go_on(copy) if 12 not in good_states(copy) else clear_leftovers(copy)
        assert hashes(copy) == straight[1], calls[number]
        assert [entry.name for entry in (copy / FOLDER).iterdir() if entry.name.startswith(".")] == []
        shutil.rmtree(copy.parent)


def test_row_01_killed_at_any_call_of_a_small_save_the_others_are_whole(tmp_path, monkeypatch, small_states):
    """All of them, one after the other, and nothing is left behind by the next start."""
    watched = tmp_path / "watched"
    shutil.copytree(small_states, watched)
    with dying(monkeypatch, under=watched, at=None) as calls:
        write_small(watched, 4)

    for number in range(len(calls)):
        folder = tmp_path / str(number)
        shutil.copytree(small_states, folder)
        with pytest.raises(Killed), dying(monkeypatch, under=folder, at=number):
            write_small(folder, 4)
        assert good_states(folder)[-3:] == [3, 2, 1], calls[number]
        clear_leftovers(folder)
        assert {entry.name for entry in (folder / FOLDER).iterdir()} - {"step-00000004"} == {
            "step-00000001", "step-00000002", "step-00000003",
        }  # fmt: skip


def test_row_03_killed_while_states_are_removed_two_remain(tmp_path, monkeypatch, small_states):
    """The rename takes a state out of the list at once; the trash goes at the next start."""
    from engine.states import remove_replaced

    source = tmp_path / "source"
    shutil.copytree(small_states, source)
    for step in (4, 5):
        write_small(source, step)
    shutil.copytree(source, tmp_path / "watched")
    with dying(monkeypatch, under=tmp_path / "watched", at=None) as calls:
        assert len(remove_replaced(tmp_path / "watched", up_to_step=5)) == 3
    assert good_states(tmp_path / "watched") == [5, 4]

    for number in range(len(calls)):
        folder = tmp_path / str(number)
        shutil.copytree(source, folder)
        with pytest.raises(Killed), dying(monkeypatch, under=folder, at=number):
            remove_replaced(folder, up_to_step=5)
        assert good_states(folder)[:2] == [5, 4]
        clear_leftovers(folder)
        assert not [entry for entry in (folder / FOLDER).iterdir() if entry.name.startswith(".")]


def test_row_04_files_are_durable_before_the_state_gets_its_name(tmp_path, monkeypatch):
    """Every file is synced, then the manifest, then the folder, then comes the rename, then the parent is synced."""
    with dying(monkeypatch, under=tmp_path, at=None) as calls:
        write_small(tmp_path, 7)

    names = [(name, Path(path).name) for name, path in calls if name in ("fsync", "rename", "replace")]
    final = names.index(("rename", next(path for name, path in names if name == "rename")))
    before, after = names[:final], names[final + 1 :]
    synced = [path for name, path in before if name == "fsync"]
    assert any("state.json" in path for path in synced)
    assert max(i for i, path in enumerate(synced) if MANIFEST in path) > max(
        i for i, path in enumerate(synced) if "state.json" in path
    )
    assert synced[-1].startswith(".tmp-step-00000007")
    assert ("fsync", FOLDER) in after


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG])
def test_rows_05_07_a_disk_that_refuses_any_call_of_a_save_costs_no_other_state(
    tmp_path, monkeypatch, small_states, code
):
    """The others stay as they are byte for byte, nothing is left behind, and the next save succeeds."""
    shutil.copytree(small_states, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*") if path.is_file()}
    shutil.copytree(small_states, tmp_path / "watched")
    with dying(monkeypatch, under=tmp_path / "watched", at=None) as calls:
        write_small(tmp_path / "watched", 4)

    refusals = 0
    for number in range(len(calls)):
        with dying(monkeypatch, under=tmp_path / "run", at=number, error=OSError(code, os.strerror(code))):
            try:
                write_small(tmp_path / "run", 4)
            except NotWrittenError:
                refusals += 1
        assert {path: path.read_bytes() for path in before} == before
        shutil.rmtree(tmp_path / "run" / FOLDER / "step-00000004", ignore_errors=True)
        clear_leftovers(tmp_path / "run")
        assert good_states(tmp_path / "run") == [3, 2, 1]
    assert refusals > len(calls) // 2
    write_small(tmp_path / "run", 4)
    assert good_states(tmp_path / "run") == [4, 3, 2, 1]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "missing", "manifest", "no-manifest"])
def test_row_09_10_a_damaged_state_is_named_and_the_one_before_is_taken(tmp_path, small_states, damage):
    """Truncated, emptied, flipped, missing: each with its reason."""
    shutil.copytree(small_states, tmp_path / "run")
    state = tmp_path / "run" / FOLDER / "step-00000003"
    file = state / (MANIFEST if "manifest" in damage else "unet.safetensors")
    data = bytearray(file.read_bytes())
    if damage in ("missing", "no-manifest"):
        file.unlink()
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    else:
        file.write_bytes(data[: 0 if damage == "empty" else len(data) // 2])

    found, damaged = newest_intact(list_states(tmp_path / "run"))

    assert found is not None
    assert found.step == 2
    assert [state.step for state in damaged] == [3]
    assert file.name in damaged[0].reason


def test_row_10_a_renamed_state_is_not_taken_for_another_step(tmp_path, small_states):
    """The manifest knows its step."""
    shutil.copytree(small_states, tmp_path / "run")
    folder = tmp_path / "run" / FOLDER
    (folder / "step-00000003").rename(folder / "step-00000009")

    newest = list_states(tmp_path / "run")[0]
    assert "manifest is of step 3" in newest.reason
    assert newest_intact(list_states(tmp_path / "run"))[0].step == 2


def test_row_11_stray_folders_hide_nothing_and_are_left_alone(tmp_path, small_states):
    """Such as checkpoint-best, which made another trainer start anew."""
    shutil.copytree(small_states, tmp_path / "run")
    for name in ("checkpoint-best", "step-best", "latest", ".tmp-mine"):
        (tmp_path / "run" / FOLDER / name).mkdir()
        (tmp_path / "run" / FOLDER / name / "keep.txt").write_text("mine")

    assert [state.step for state in list_states(tmp_path / "run")] == [3, 2, 1]
    clear_leftovers(tmp_path / "run")
    assert (tmp_path / "run" / FOLDER / ".tmp-mine" / "keep.txt").exists()


def test_a_thousand_flipped_bytes_and_missing_files_are_all_found(tmp_path, small_states):
    """Any byte of any file of a state, the manifest included."""
    shutil.copytree(small_states, tmp_path / "run")
    state = tmp_path / "run" / FOLDER / "step-00000003"
    files = {file: file.read_bytes() for file in state.iterdir()}
    rng = random.Random(3)
    for _ in range(1000):
        file = rng.choice(list(files))
        data = bytearray(files[file])
        if rng.random() < 0.1:
            file.unlink()
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            file.write_bytes(data)
        assert not verify(state).is_intact, file.name
        file.write_bytes(files[file])
    assert verify(state).is_intact


@pytest.mark.parametrize("name", ["unet", "ema", "optimizer", "history"])
def test_demand_05_nothing_missing_is_passed_over_in_silence(straight, name):
    """Each item of a state removed in turn, manifest mended as if it had never been: refused by name."""
    folder = copy_run(straight[0].folder)
    shutil.rmtree(folder / FOLDER / "step-00000012")
    state = folder / FOLDER / "step-00000008"
    (state / f"{name}.safetensors").unlink()
    from engine.states import _manifest_bytes

    manifest = json.loads((state / MANIFEST).read_text())
    del manifest["files"][f"{name}.safetensors"], manifest["sha256"]
    (state / MANIFEST).write_bytes(_manifest_bytes(manifest))

    with pytest.raises(EngineError, match=name if name != "ema" else "average"):
        go_on(folder)


def test_row_45_changed_pictures_are_shown_and_need_a_word(tmp_path):
    """Added, removed, edited, recaptioned: each by name; going on with them is no longer exact, and says so."""
    data = write_pictures(tmp_path / "pictures")
    folder = kill_at(write(tmp_path / "run", pictures=data), 5)
    os.utime(data / "0.png")
    (data / "1.caption").write_text("another caption")
    shutil.copy(data / "2.png", data / "new.png")
    (data / "3.png").unlink()

    with pytest.raises(ProblemsError) as refused:
        go_on(folder)
    text = str(refused.value)
    assert "1 added: new.png" in text
    assert "1 removed: 3.png" in text
    assert "1 with another caption: 1.png" in text
    assert "another picture" not in text  # 0.png has a new date and the same content.
    assert "--changed_data" in text

    run = go_on(folder, accepts_changed_data=True)
    assert run.code == 0
    assert len([event for event in run.of("warning") if event.code == "changed-data"]) == 3


def test_row_46_changed_settings_are_free_warned_about_or_refused(straight):
    """Each with what it was and is."""
    before = {"learning_rate": 1e-3, "lr_scheduler": "cosine", "save_every_n_steps": 4, "seed": 42, "v2": None}
    now = {"learning_rate": 2e-3, "lr_scheduler": "cosine", "save_every_n_steps": 5, "seed": 43, "v2": None}
    from engine.settings import SECTION_OF

    both = dict.fromkeys(SECTION_OF)
    differing = setting_differences({**both, **before}, {**both, **now})
    found = {problem.message.split()[0]: problem.severity for problem in differing}
    assert found == {"learning_rate": "warning", "save_every_n_steps": "info", "seed": "error"}

    with pytest.raises(ProblemsError, match=r"optimizer_type was AdamW and is Lion"):
        resume_run(straight[0].folder, overrides=["optimizer_type=Lion"])
    folder = copy_run(straight[0].folder)
    run = go_on(folder, overrides=["max_train_steps=14", "learning_rate=5e-4"])
    assert len(run.losses) == 14
    assert "learning_rate was 0.001 and is 0.0005" in " ".join(event.message for event in run.of("warning"))


def test_row_57_states_are_ordered_by_step_not_by_clock(tmp_path):
    """A clock that jumps back does not make an old state the newest."""
    for step in (3, 1, 2):
        write_small(tmp_path, step)
        os.utime(tmp_path / FOLDER / f"step-{step:08d}", (step * 1000, 10**9 - step))

    assert [state.step for state in list_states(tmp_path)] == [3, 2, 1]


def test_row_59_a_newer_format_is_refused_by_its_number(tmp_path, small_states):
    """An old program does not guess."""
    shutil.copytree(small_states, tmp_path / "run")
    path = tmp_path / "run" / FOLDER / "step-00000003" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))

    assert list_states(tmp_path / "run")[0].reason == f"{MANIFEST} has format 2; this version reads format 1"


def test_a_stopped_run_leaves_a_state_and_goes_on_from_there(tmp_path, straight):
    """Also without save_state: a stop is meant to be continued."""
    from engine.control import Control

    class StopsAfterFive(Control):
        def take(self):
            if self._stop_reason == "" and list(folder.glob("events.jsonl")):
                steps = [event.step for event in read_events(folder / "events.jsonl") if event.kind == "step"]
                if steps and steps[-1] == 5:
                    self.stop("request")
            return super().take()

    path = write(tmp_path, save_state=False, save_every_n_steps=None, save_last_n_steps=None)
    folder = path.parent / "out"
    run = train(path, make_control=StopsAfterFive)
    ending = run.of("interrupted")[0]
    assert ending.state == "state/step-00000005"
    go_on(folder, overrides=["save_state_on_train_end=true"])

    assert hashes(folder) == straight[1]


def test_a_state_starts_a_new_run_elsewhere_or_gives_its_weights_alone(tmp_path, straight):
    """resume in another folder goes on at its step; resume_weights_only starts at step 0."""
    state = straight[0].folder / FOLDER / "step-00000008"
    onward = train(write(tmp_path / "onward", resume=str(state)))
    assert onward.losses == straight[0].losses[8:]

    fresh = train(write(tmp_path / "fresh", resume=str(state), resume_weights_only=True, max_train_steps=1))
    assert [step.step for step in fresh.steps] == [1]
    assert "left behind: optimizer" in fresh.of("warning")[-1].message


def test_sd_scripts_state_folders_give_their_weights_and_say_what_stays(tmp_path, straight):
    """accelerate's layout; the optimizer's order of parameters is not told there."""
    from safetensors.torch import save_file

    state = tmp_path / "last-state"
    state.mkdir()
    trained = load_file(straight[0].folder / FOLDER / "step-00000012" / "unet.safetensors")
    save_file(trained, state / "model.safetensors")
    (state / "optimizer.bin").write_bytes(b"\x80\x04K\x01.")

    run = train(write(tmp_path / "run", resume=str(state), max_train_steps=1, learning_rate=1e-12, use_ema=False))
    assert "its order of parameters is not told" in run.of("warning")[-1].message
    after = load_file(run.folder / FOLDER / "step-00000001" / "unet.safetensors")
    torch.testing.assert_close(after["conv_in.weight"], trained["conv_in.weight"])


def test_a_run_that_has_nothing_to_go_on_from_says_so(tmp_path):
    """No run, several runs, no state, all done: one sentence each."""
    with pytest.raises(EngineError, match=r"holds no run"):
        resume_run(tmp_path)
    folder = kill_at(write(tmp_path / "a", save_state=False), 1)
    with pytest.raises(EngineError, match=r"no intact state.*--restart"):
        resume_run(folder)
    assert resume_run(folder, restarts=True)[1].source is None
    with pytest.raises(EngineError, match=r"holds 1 runs"):
        resume_run(tmp_path / "a")


def test_old_states_are_replaced_by_rules_of_their_own():
    """By epochs and by steps as sd-scripts counts, the models' rules where there are none, and only with save_state."""

    def replaced(step, **values):
        due = due_state(SavingSettings(save_state=True, **values), step=step, steps_per_epoch=4, epochs=9)
        return None if due is None else due.replaces_up_to

    assert replaced(20, save_every_n_steps=5, save_last_n_steps=10) == 5
    assert replaced(20, save_every_n_steps=5, save_last_n_steps=10, save_last_n_steps_state=5) == 10
    assert replaced(20, save_every_n_epochs=1, save_last_n_epochs=2) == 12
    assert replaced(20, save_every_n_epochs=1, save_last_n_epochs=2, save_last_n_epochs_state=4) == 4
    assert replaced(20, save_every_n_epochs=1) == 0
    assert replaced(21, save_every_n_epochs=1) is None


@pytest.mark.parametrize(("rollbacks", "code"), [(1, 0), (0, 1)])
def test_a_loss_that_is_not_finite_goes_back_to_the_last_state_with_half_the_rate(
    tmp_path, monkeypatch, rollbacks, code
):
    """Where that is asked for, and once for each time it is; the run stops otherwise."""
    from engine import train as recipe

    real, failed = recipe.check_finite, []

    def once(parts, batches, numbers, *, step, rate):
        losses, timesteps, norm = numbers
        if step == 7 and not failed:
            failed.append(rate)
            losses = [float("nan"), *losses[1:]]
        real(parts, batches, (losses, timesteps, norm), step=step, rate=rate)

    monkeypatch.setattr(recipe, "check_finite", once)
    run = train(write(tmp_path, nan_rollbacks=rollbacks, max_train_steps=8, lr_scheduler="constant"))

    assert run.code == code
    if rollbacks:
        assert [event.resumed_from for event in run.of("started")] == [None, 4]
        assert [step.step for step in run.steps] == list(range(1, 9))
        assert {step.learning_rate for step in run.steps[4:]} == {5e-4}
        assert (run.folder / "metrics.bin").stat().st_size == 8 * len(metric_row(run.steps[0]))
        assert "back to step 4 with learning_rate = 0.0005" in run.of("warning")[-1].message

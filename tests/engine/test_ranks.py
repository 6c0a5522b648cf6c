"""Several processes that train one model: shares, order, weights, and the end of one of them. gloo on the CPU."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from engine.events import read_events
from engine.plan import make_plan
from engine.ranks import Ranks
from engine.run import RunFolder

from .run_support import Run, go, loaded_run, pictures, tiny_model, write_run

CHOICES = {"train_text_encoder": True, "cache_latents_to_disk": True, "use_ema": True, "subset": {"num_repeats": 2}}


def launch(run, *, processes=2):
    """Start a run as torchrun does, each process on one core."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    return subprocess.Popen(
        [*command, "-m", "engine", "train", str(run)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=run.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def order_of(plan):
    return [batch for step in range(2 * plan.steps_per_epoch) for batch in plan.window(step)]


def test_the_order_of_pictures_does_not_depend_on_the_number_of_processes(tmp_path):
    """Two epochs, cut into steps of one, two and three batches."""
    settings = loaded_run(tmp_path).settings
    plans = [make_plan(settings, cache_dir=tmp_path, processes=processes) for processes in (1, 2, 3)]

    assert order_of(plans[0]) == order_of(plans[1]) == order_of(plans[2])
    assert [plan.steps_per_epoch for plan in plans] == [4, 2, 2]


def test_the_processes_share_a_step_without_gap_or_overlap(tmp_path):
    """Also a step that has fewer batches than there are processes."""
    plan = make_plan(loaded_run(tmp_path).settings, cache_dir=tmp_path, processes=3)

    for step in range(plan.steps_per_epoch):
        window = plan.window(step)
        shares = [Ranks(rank=rank, world=3).share(window) for rank in range(3)]
        assert sorted(sum(shares, ()), key=window.index) == list(window)


def test_a_process_learns_its_place_from_its_launcher(monkeypatch):
    """Alone where nobody says anything."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Ranks.here() == Ranks(rank=0, world=1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Ranks.here() == Ranks(rank=2, world=4)


def test_two_processes_train_as_one_does_with_the_same_global_batch(tmp_path):
    """Losses, weights, events and files; the last step of an epoch has a batch for one of them only."""
    values = {"pictures": pictures(), "model": tiny_model(), "max_train_steps": 8, **CHOICES}
    path = write_run(tmp_path / "two", **values)
    with launch(path) as process:
        said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    two = Run(0, path.parent / "out")
    one = go(tmp_path / "one", max_train_steps=8, gradient_accumulation_steps=2, **CHOICES)

    plan = make_plan(loaded_run(tmp_path / "plan", **CHOICES).settings, cache_dir=tmp_path, processes=2)
    assert len(plan.window(plan.steps_per_epoch - 1)) == 1
    assert plan.steps_per_epoch < 8
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert [step.grad_norm for step in two.steps] == pytest.approx([step.grad_norm for step in one.steps], rel=1e-3)
    for name in ("images", "bucket", "epoch", "timesteps"):
        assert [getattr(step, name) for step in two.steps] == [getattr(step, name) for step in one.steps]
    kinds = [event.kind for event in two.events if event.kind != "progress"]
    assert kinds == [event.kind for event in one.events if event.kind != "progress"]
    assert {path.name for path in two.folder.iterdir()} == {path.name for path in one.folder.iterdir()}
    weights = one.weights()
    for name, value in two.weights().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=2e-3)


def test_a_killed_process_ends_the_run_with_a_sentence(tmp_path):
    """The main process says so in the events; none is left behind."""
    path = write_run(tmp_path, pictures=pictures(), model=tiny_model(), max_train_steps=100_000)
    folder = RunFolder(tmp_path / "out")
    with launch(path) as process:
        other = wait_for_step(folder, process)
        os.kill(other, signal.SIGKILL)
        said = process.communicate(timeout=60)[0]

    assert process.returncode == 1, said
    last = read_events(folder.events_path)[-1]
    assert last.kind == "failed"
    assert "one of the 2 processes ended" in last.message
    assert not folder.is_alive()


def wait_for_step(folder, process):
    """Return the process id of a process that is not the main one, once the third step is done."""
    import psutil

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        events = read_events(folder.events_path)
        if events and events[-1].step >= 3:
            main = next(event.pid for event in events if event.kind == "started")
            children = psutil.Process(process.pid).children()
            return next(child.pid for child in children if child.pid != main)
        time.sleep(0.1)
    raise AssertionError(process.communicate()[0])

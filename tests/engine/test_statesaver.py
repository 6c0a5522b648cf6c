"""Copies of states: memory is made ready while training runs, kept while another is to come, never taken when short."""

import pytest
import torch

from engine.checkpoint import due_state, is_state_to_come
from engine.models.lazy import lazy
from engine.settings import SavingSettings
from engine.snapshot import Snapshot, room_for
from engine.statesaver import StateSaver
from tests.engine.run_support import go

TWO_STATES = {"max_train_steps": 5, "save_state": True, "save_every_n_steps": 2}


def snapshot(*tensors):
    named = {str(number): lazy(tensor) for number, tensor in enumerate(tensors)}
    return Snapshot(step=1, tensors={"unet.safetensors": named}, state={}, dataset={}, facts={})


@pytest.fixture
def rooms(monkeypatch):
    """For every copy: the addresses of the memory that was ready, and of that which it takes."""
    seen, copied = [], StateSaver._copied

    def watch(self, taken):
        before = addresses(self._room)
        copy = copied(self, taken)
        seen.append((before, addresses(copy.tensors)))
        return copy

    monkeypatch.setattr(StateSaver, "_copied", watch)
    return seen


def addresses(tensors):
    return {name: tensor.tensor().data_ptr() for name, tensor in tensors.get("unet.safetensors", {}).items()}


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6, dtype=torch.float32).reshape(2, 3),
        torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
        torch.tensor(7),
        torch.tensor([True, False]),
        torch.empty(0),
        torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        torch.arange(6.0).reshape(2, 3).T,
    ],
)
@pytest.mark.parametrize("is_room_ready", [False, True])
def test_a_copy_has_the_same_bits_and_shares_nothing(tensor, is_room_ready):
    """Whatever the kind, and whether memory was made ready or not."""
    original, taken = tensor.clone(), snapshot(tensor)

    copy = taken.copied(room_for(taken.tensors) if is_room_ready else {}).tensors["unet.safetensors"]["0"].tensor()
    tensor.zero_()

    assert copy.dtype == original.dtype
    assert torch.equal(copy.nan_to_num(9), original.nan_to_num(9))


def test_the_first_copy_finds_its_memory_ready_and_the_last_one_frees_it(tmp_path, rooms, monkeypatch):
    """It is made after the first step, used by both states, and given back after the second."""
    held, write = [], StateSaver._write
    monkeypatch.setattr(
        StateSaver, "_write", lambda self, *a, **k: (held.append(bool(self._room)), write(self, *a, **k))
    )

    run = go(tmp_path, **TWO_STATES)

    assert [event.mode for event in run.of("saved") if event.path.startswith("state/")] == [
        "copied", "copied", "streamed",
    ]  # fmt: skip
    assert len(rooms) == 2
    assert rooms[0][0]
    assert rooms[0][0] == rooms[0][1] == rooms[1][0] == rooms[1][1]
    assert held == [True, False, False]


def test_nothing_is_held_where_no_state_is_due_while_training(tmp_path, monkeypatch):
    """That of the end is streamed."""
    monkeypatch.setattr(StateSaver, "_make_room", lambda *_: pytest.fail("memory was taken"))

    assert go(tmp_path, max_train_steps=2, save_state=True).code == 0


def test_memory_that_is_refused_in_spite_of_what_is_free_means_streaming(tmp_path, monkeypatch):
    """As in a container, whose limit is below what the machine reports."""

    def refuse(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("engine.statesaver.room_for", refuse)
    monkeypatch.setattr(Snapshot, "copied", refuse)

    run = go(tmp_path, **TWO_STATES)

    assert run.code == 0
    assert {event.mode for event in run.of("saved") if event.path.startswith("state/")} == {"streamed"}


@pytest.mark.parametrize(
    ("values", "last"),
    [
        ({"save_every_n_steps": 3}, 9),  # Of ten steps, four an epoch.
        ({"save_every_n_steps": 5}, 10),
        ({"save_every_n_epochs": 1}, 8),  # The third epoch is the last, and left to the end.
        ({"save_every_n_epochs": 2, "save_every_n_steps": 7}, 8),
        ({"save_n_epoch_ratio": 3}, 8),
        ({}, 0),
        ({"save_every_n_steps": 3, "save_state": False}, 0),
    ],
)
def test_a_state_is_to_come_up_to_the_last_that_is_due(values, last):
    """As `due_state` has them."""
    saving = SavingSettings(**{"save_state": True, **values})
    due = [step for step in range(1, 11) if due_state(saving, step=step, steps_per_epoch=4, epochs=3)]

    assert max(due, default=0) == last
    assert [step for step in range(11) if is_state_to_come(saving, step=step, steps=10, steps_per_epoch=4)] == list(
        range(last)
    )

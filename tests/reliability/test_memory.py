"""Row 27 of docs/reliability.md: a batch that does not fit is trained in halves, never left out."""

from functools import cache

import pytest
import torch

from engine import train
from engine.events import Step
from engine.hardware import is_out_of_memory
from engine.parts import Parts
from tests.engine.run_support import go, new_folder

# AdamW makes a whole step of any rounding error; this one makes a rounding error of it.
SETTINGS = {"max_train_steps": 3, "optimizer_type": "SGDNesterov", "learning_rate": 0.1}


@cache
def undisturbed():
    """Train the run to compare with: its second step is the first with two pictures of 128x64."""
    return go(new_folder(), **SETTINGS)


@pytest.fixture(autouse=True)
def _before_anything_is_patched():
    undisturbed()


class Card:
    """A card on which more than one picture of 128x64 does not fit: found out halfway through the backward pass."""

    def __init__(self, monkeypatch, most=1):
        self.most, self.tried, self.train_batch = most, [], train._train_batch
        monkeypatch.setattr(train, "_train_batch", self)

    def __call__(self, parts, loaded, *, share):
        self.tried.append((loaded.batch.bucket, loaded.images))
        result = self.train_batch(parts, loaded, share=share)  # Leaves gradients, which must be forgotten.
        if loaded.images > self.most and loaded.batch.bucket == (128, 64):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return result


def assert_same_training(run):
    """Equal up to the order of summation."""
    assert run.losses == pytest.approx(undisturbed().losses, rel=1e-5)
    expected, found = undisturbed().weights(), run.weights()
    assert all(torch.allclose(expected[name], found[name], atol=1e-5) for name in expected)
    norms = [[step.grad_norm for step in one.steps] for one in (undisturbed(), run)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_row_27_a_batch_that_does_not_fit_is_trained_in_halves(tmp_path, monkeypatch):
    """Told once for its bucket, with the same losses and weights as where it fits."""
    card = Card(monkeypatch)

    run = go(tmp_path, **SETTINGS)

    (message,) = [event.message for event in run.of("warning") if event.code == "out-of-memory"]
    assert run.code == 0
    assert message.startswith("2 pictures of 128x64 do not fit into memory; such batches are trained 1 at a time")
    assert card.tried.count(((128, 64), 2)) == 1
    assert [step.images for step in run.steps] == [step.images for step in undisturbed().steps]
    assert_same_training(run)


def test_row_27_the_largest_bucket_is_tried_once_the_optimizer_has_its_memory(tmp_path, monkeypatch):
    """On a card, after the first step: what does not fit is known before the night."""
    monkeypatch.setattr(Parts, "is_on_card", True)
    card = Card(monkeypatch)

    run = go(tmp_path, **SETTINGS)

    kinds = [
        (event.kind, event.step)
        for event in run.events
        if isinstance(event, Step) or getattr(event, "code", "") == "out-of-memory"
    ]
    assert kinds[:3] == [("step", 1), ("warning", 1), ("step", 2)]
    assert card.tried[1:4] == [((128, 64), 2), ((128, 64), 1), ((128, 64), 1)]
    assert_same_training(run)


def test_row_27_one_picture_that_does_not_fit_ends_in_a_sentence(tmp_path, monkeypatch):
    """Exit 1, with what to lower."""
    Card(monkeypatch, most=0)

    run = go(tmp_path, **SETTINGS)

    assert run.code == 1
    assert "memory ran out" in run.events[-1].message
    assert "gradient_checkpointing" in run.events[-1].message


def test_row_27_updates_within_the_backward_pass_are_not_tried_twice(tmp_path, monkeypatch):
    """Some weights are changed by then; a second attempt would change them again."""
    Card(monkeypatch)

    run = go(tmp_path, max_train_steps=6, fused_backward_pass=True, optimizer_type="AdaFactor", max_grad_norm=0.0)

    assert run.code == 1
    assert "memory ran out" in run.events[-1].message


def test_row_27_memory_that_is_short_is_known_by_its_words():
    """CUDA, mps and the processor word it differently; a bug is none of them."""
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))

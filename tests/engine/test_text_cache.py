"""Text states: each caption encoded once, the unconditional one always there, nothing stale across text encoders."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.text_cache import UNCONDITIONAL, TextStates


class Encoder:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, captions: Sequence[str]) -> Tensor:
        self.seen += captions
        values = torch.tensor([float(sum(map(ord, caption)) % 1000) for caption in captions])
        return values[:, None, None] * torch.ones(5, 4)


CAPTIONS = ["a cat", "a dog", "a cat", "", "a dog", "\udcff"]


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path if request.param == "disk" else None


def _states(folder: Path | None, encoder: Encoder, identity: str = "i" * 64, dtype: str = "float32") -> TextStates:
    states = TextStates(encoder, identity=identity, folder=folder, dtype=dtype)
    encoder.seen.clear()  # The first, unconditional one tells the shape.
    return states


def test_each_caption_is_encoded_once(folder: Path | None):
    encoder = Encoder()
    states = _states(folder, encoder)

    states.add(CAPTIONS, batch_size=2)
    states.add([*CAPTIONS, "new"])

    assert sorted(["", "a cat", "a dog", "\udcff", "new"]) == sorted(encoder.seen)
    assert torch.equal(Encoder()(["a dog", "new", "a dog"]), states.read(["a dog", "new", "a dog"]))


def test_unconditional_is_always_there(folder: Path | None):
    """Caption dropout needs no text encoder."""
    states = _states(folder, Encoder())
    states.add(["a cat"])

    assert torch.equal(Encoder()([UNCONDITIONAL]), states.read([UNCONDITIONAL]))


def test_next_run_encodes_nothing(tmp_path: Path):
    _states(tmp_path, Encoder()).add(CAPTIONS)
    encoder = Encoder()
    states = _states(tmp_path, encoder)

    states.add(CAPTIONS)

    assert encoder.seen == []
    assert torch.equal(Encoder()(CAPTIONS), states.read(CAPTIONS))


@pytest.mark.parametrize("change", [{"identity": "j" * 64}, {"dtype": "float16"}])
def test_another_text_encoder_or_precision_is_another_cache(change: dict, tmp_path: Path):
    _states(tmp_path, Encoder()).add(CAPTIONS)
    encoder = Encoder()

    _states(tmp_path, encoder, **change).add(CAPTIONS)

    assert len(encoder.seen) == 4


def test_damaged_record_is_encoded_again(tmp_path: Path):
    _states(tmp_path, Encoder()).add(["a cat", "a dog"])
    (file,) = tmp_path.rglob("*.bin")
    data = bytearray(file.read_bytes())
    data[100] ^= 1  # In "a cat", the second of three.
    file.write_bytes(data)
    encoder = Encoder()
    states = _states(tmp_path, encoder)
    states.add(["a cat", "a dog"])

    assert torch.equal(Encoder()(["a dog", "a cat"]), states.read(["a dog", "a cat"]))
    assert encoder.seen == ["a cat"]


def test_progress_and_size_are_told():
    states = _states(None, Encoder(), dtype="float16")
    seen: list[tuple[int, int]] = []

    states.add(["a", "b", "c"], batch_size=3, progress=lambda done, todo: seen.append((done, todo)))

    assert seen == [(3, 4), (4, 4)]
    assert states.bytes_per_caption == 2 * 5 * 4

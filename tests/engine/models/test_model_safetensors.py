"""A .safetensors file is checked before anything in it is believed, and written whole or not at all."""

import hashlib
import os
import stat
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.errors import EngineError
from engine.models import atomic
from engine.models.lazy import LazyTensor, lazy
from engine.models.safetensors_io import is_finite, open_safetensors, write_safetensors

from .models_support import header_file, write_tensors

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TENSORS = {
    "odd": torch.arange(3, dtype=torch.uint8),
    "half": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).half(),
    "brain": torch.ones(2, 2).bfloat16(),
    "scalar": torch.tensor(1),
    "empty": torch.zeros(0, 3),
    "strided": torch.arange(12.0).reshape(3, 4).t(),
}


def test_values_of_every_type_come_back(tmp_path):
    """Ours reads what ours wrote, and so does the safetensors library; values stay aligned to their size."""
    path = write_tensors(tmp_path / "x.safetensors", TENSORS, metadata={"who": "me"})
    opened, library = open_safetensors(path), load_file(path)

    assert opened.metadata == {"who": "me"}
    for name, tensor in TENSORS.items():
        assert torch.equal(tensor, opened.tensors[name].tensor())
        assert torch.equal(tensor, library[name])


def test_tensors_are_views_of_the_file_and_writing_to_them_leaves_it(tmp_path):
    """Loading copies nothing; a training that writes into the weights does not write into the model file."""
    path = write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(4)})
    before = path.read_bytes()
    first, second = (open_safetensors(path).tensors["a"].tensor() for _ in range(2))
    opened = open_safetensors(path)

    assert opened.tensors["a"].tensor().data_ptr() == opened.tensors["a"].tensor().data_ptr()
    first.add_(1)
    assert first.tolist() == [1.0] * 4
    assert second.tolist() == [0.0] * 4
    assert before == path.read_bytes()


def test_misaligned_values_of_other_writers_are_read(tmp_path):
    """The format does not promise alignment."""
    header = {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "b": {**GOOD, "data_offsets": [1, 9]}}
    path = header_file(tmp_path / "x.safetensors", header, b"\x07" + struct.pack("<2f", 1.5, 2.5))

    assert open_safetensors(path).tensors["b"].tensor().tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"a": GOOD}, b"1234567", "takes? 8 bytes and 7 are there"),
        ({"a": GOOD}, b"123456789", "1 bytes follow"),
        ({"a": {**GOOD, "shape": [3]}}, b"12345678", "can't take 8 bytes"),
        ({"a": {**GOOD, "dtype": "F31"}}, b"12345678", "unknown type F31"),
        ({"a": {**GOOD, "dtype": ["F32"]}}, b"12345678", "unknown type"),
        ({"a": {**GOOD, "shape": [-2]}}, b"12345678", "no valid shape"),
        ({"a": {**GOOD, "shape": [True, 2]}}, b"12345678", "no valid shape"),
        ({"a": {**GOOD, "shape": [1] * 99}}, b"12345678", "no valid shape"),
        ({"a": {**GOOD, "data_offsets": [8, 0]}}, b"12345678", "can't take -8"),
        ({"a": {**GOOD, "data_offsets": [0]}}, b"12345678", "no valid offsets"),
        ({"a": GOOD, "b": GOOD}, b"12345678", "starts at byte 0 where 8"),
        ({"a": {**GOOD, "data_offsets": [8, 16]}}, b"1" * 16, "starts at byte 8 where 0"),
        ({"a": {"dtype": "F32"}}, b"", "incomplete"),
        ({"a": 7}, b"", "incomplete"),
        ({"__metadata__": {"a": 1}}, b"", "not a table of texts"),
        ({"__metadata__": "a"}, b"", "not a table of texts"),
        (b'{"a": 1, "a": 2}', b"", "occurs twice"),
        (b"[1, 2, 3]", b"", "not a table of tensors"),
        (b'{"a": ', b"", "not valid"),
        (b'{"\xff": 1}', b"", "not valid"),
        (b'{"a":' + b"[" * 100_000, b"", "not valid"),
        (b'{"\\u001b[2J": 7}', b"", r"\\x1b\[2J"),
    ],
)
def test_inconsistent_headers_are_refused(tmp_path, header, data, words):
    """One sentence, naming the file and the cause."""
    path = header_file(tmp_path / "bad.safetensors", header, data)

    with pytest.raises(EngineError, match=words) as caught:
        open_safetensors(path)
    assert "bad.safetensors" in str(caught.value)
    assert "download or copy it again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_oversized_headers_are_refused_unread(tmp_path):
    """A header of 1 GB, or of a million tensors, is no model's."""
    path = tmp_path / "bad.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 1 << 30) + b"{")
        file.truncate(2 << 30)  # Sparse: takes no room.
    with pytest.raises(EngineError, match="1073741824 bytes"):
        open_safetensors(path)

    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    with pytest.raises(EngineError, match="100001 tensors"):
        open_safetensors(header_file(path, {str(n): empty for n in range(100_001)}))


def test_every_truncation_is_noticed(tmp_path):
    """Wherever a download stopped."""
    whole = write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(8), "b": torch.ones(8)}).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(EngineError, match=r"cut\.safetensors"):
            open_safetensors(tmp_path / "cut.safetensors")


def test_a_checksum_comes_with_writing(tmp_path):
    """No second reading."""
    digest = hashlib.sha256()
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": lazy(torch.ones(3))}, metadata={}, digest=digest)

    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest.hexdigest()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_values_that_are_not_finite_once_written_are_refused(tmp_path, value):
    """NaN, infinity, and what fp16 can't hold; the file of before stays, and nothing else is left."""
    path = write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1)})
    before = path.read_bytes()
    poisoned = {"fine": lazy(torch.ones(9)), "bad": lazy(torch.tensor([0.0, value])).astype("F16")}

    with pytest.raises(EngineError, match="bad holds NaN or infinite"):
        write_safetensors(path, poisoned, metadata={}, finite={"fine", "bad"})
    assert before == path.read_bytes()
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_found_among_many(dtype, value):
    """In every type, wherever it stands; extremes that are finite, nothing at all and integers pass."""
    for place in (0, 4567, 9999):
        values = torch.linspace(-5, 5, 10_000)
        values[place] = value
        assert not is_finite(values.to(dtype))
    extremes = torch.tensor([torch.finfo(dtype).min, torch.finfo(dtype).max], dtype=dtype)
    assert is_finite(extremes)
    assert is_finite(torch.zeros(0, dtype=dtype))
    assert is_finite(torch.tensor([1, 2]))


def test_a_failure_in_the_middle_leaves_the_file_of_before(tmp_path):
    """A disk that fills up is named with what was needed."""
    path = write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1)})
    before = path.read_bytes()

    def full():
        raise OSError(28, "No space left on device")

    broken = {"a": lazy(torch.ones(9)), "b": LazyTensor(shape=(1_000_000,), dtype="F32", source=full)}
    with pytest.raises(
        EngineError, match=r"x\.safetensors can't be written: the disk is full \(needs 4,.* are free there\)"
    ):
        write_safetensors(path, broken, metadata={})
    assert before == path.read_bytes()
    assert [path] == list(tmp_path.iterdir())


def test_the_file_is_durable_before_it_gets_its_name(tmp_path, monkeypatch):
    """fsync of the file, then rename, then fsync of the folder: after a power cut there is the old or the new file."""
    calls = []
    real_fsync, real_replace = os.fsync, atomic.Path.replace

    def fsync(handle):
        calls.append("sync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "sync file")
        real_fsync(handle)

    def replace(source, target):
        calls.append("rename")
        return real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(atomic.Path, "replace", replace)
    write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1)})

    assert calls == ["sync file", "rename", "sync folder"]


def test_a_file_system_that_cannot_sync_folders_is_no_obstacle(tmp_path, monkeypatch):
    """Windows and some network mounts refuse to open or sync a folder."""
    real_open = os.open

    def refuse_folders(path, flags, *mode):
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied")
        return real_open(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse_folders)

    assert write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1)}).exists()


def test_files_get_the_permissions_of_the_umask(tmp_path):
    """Others may read a model where the user's umask lets them."""
    old = os.umask(0o027)
    try:
        path = write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1)})
    finally:
        os.umask(old)

    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_large_tensor_passes_in_pieces(tmp_path):
    """At most 16 MB of it is held at a time, and the order of the values is kept."""
    tensor = lazy(torch.arange(9_000_000, dtype=torch.int32))
    pieces = list(tensor.astype("F32").pieces())

    assert max(piece.numel() for piece in pieces) * 4 <= 16_777_216
    assert torch.equal(torch.cat(pieces), torch.arange(9_000_000, dtype=torch.float32))

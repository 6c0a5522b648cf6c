"""Checkpoints of torch are read without running anything in them; hostile ones are refused by name."""

import io
import os
import pickle
import random
import struct
import time
import zipfile
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch

from engine.errors import EngineError
from engine.models.lazy import lazy
from engine.models.pickle_writer import write_pickle
from engine.models.pickles import open_pickle
from engine.models.unpickle import RefusedPickleError, read_pickle

BASE = torch.arange(24.0).reshape(4, 6)
TENSORS = {
    "plain": BASE,
    "transposed": BASE.t(),
    "window": BASE[1:3, 2:4],
    "half": torch.ones(5).half(),
    "brain": torch.ones(2, 2).bfloat16(),
    "ids": torch.arange(77).view(1, 77),
    "scalar": torch.tensor(3),
    "empty": torch.zeros(0, 3),
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


class Runs:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def zipped(path, data, members=(), compression=zipfile.ZIP_STORED):
    """Write a checkpoint by hand: a pickle and further members."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in members:
            archive.writestr(name, content)
    return path


class StoragePickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj[1:] if isinstance(obj, tuple) and obj[:1] == ("persistent",) else None


def tensor_pickle(numel, shape, stride, offset=0):
    """Return a pickle of one float32 tensor that claims what it likes of a storage."""
    from torch._utils import _rebuild_tensor_v2

    storage = ("persistent", "storage", torch.FloatStorage, "0", "cpu", numel)
    buffer = io.BytesIO()
    tensor = Runs(_rebuild_tensor_v2, storage, offset, shape, stride, False, OrderedDict())
    StoragePickler(buffer, protocol=2).dump({"state_dict": {"a": tensor}})
    return buffer.getvalue()


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_torch_saved_is_read(tmp_path, is_zip, protocol):
    """Both forms of torch.save, nested under state_dict, strided views and parameters among it."""
    path = tmp_path / "x.ckpt"
    data = {"state_dict": OrderedDict(TENSORS), "epoch": 3, "global_step": 9, "note": "hi"}
    torch.save(data, path, _use_new_zipfile_serialization=is_zip, pickle_protocol=protocol)
    opened = open_pickle(path)

    assert opened.metadata == {"epoch": "3", "global_step": "9", "note": "hi"}
    assert list(TENSORS) == list(opened.tensors)
    for name, tensor in TENSORS.items():
        assert torch.equal(tensor.detach(), opened.tensors[name].tensor()), name


def test_a_bare_table_of_tensors_is_read(tmp_path):
    """Files without state_dict are the table themselves."""
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")

    assert open_pickle(tmp_path / "x.pt").tensors["a"].tensor().tolist() == [1.0, 1.0]


def test_lightning_files_load_without_lightning(tmp_path):
    """Their callbacks hold a class of Lightning's, numpy scalars and odd containers, none of which is built."""

    class ModelCheckpoint:
        pass

    name = "pytorch_lightning.callbacks.model_checkpoint"
    buffer = io.BytesIO()
    state = {"best": np.float64(1.5), "array": np.ones(3), "mode": ModelCheckpoint}
    data = {"callbacks": {"c": state}, "loops": defaultdict(dict), "epoch": 1, "state_dict": {}}
    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = name, "ModelCheckpoint"
    pickler = pickle._Pickler(buffer, protocol=2)
    pickler.save_global = _by_name(pickler)
    pickler.dispatch = {**pickle._Pickler.dispatch, type: lambda self, obj: self.save_global(obj)}
    pickler.dump(data)
    opened = open_pickle(zipped(tmp_path / "x.ckpt", buffer.getvalue()))

    assert b"ModelCheckpoint" in buffer.getvalue()
    assert opened.metadata == {"epoch": "1"}


def _by_name(pickler):
    def save_global(obj, name=None):
        pickler.write(f"c{obj.__module__}\n{name or obj.__qualname__}\n".encode())
        pickler.memoize(obj)

    return save_global


@pytest.mark.parametrize(
    ("function", "args", "name"),
    [
        (os.system, ("touch CANARY",), "posix.system"),
        (eval, ("open('CANARY', 'w')",), "eval"),
        (exec, ("open('CANARY', 'w')",), "exec"),
        (open, ("CANARY", "w"), "open"),
        (getattr, (os, "system"), "getattr"),
        (torch.load, ("CANARY",), "torch.serialization.load"),
        (torch.hub.load, ("CANARY",), "torch.hub.load"),
        (bytearray.fromhex, ("00",), "getattr"),
    ],
)
@pytest.mark.parametrize("form", ["zip", "legacy", "bare", "beside"])
def test_code_is_refused_by_name_and_never_run(tmp_path, monkeypatch, function, args, name, form):
    """Wherever it hides; a canary file would tell."""
    monkeypatch.chdir(tmp_path)
    bomb = Runs(function, *args) if function is not getattr else Runs(getattr, "x", "upper")
    data = {"state_dict": {"a": torch.ones(1)}, "extra": bomb} if form == "beside" else {"state_dict": {"a": bomb}}
    path = tmp_path / "evil.ckpt"
    if form == "bare":
        path.write_bytes(pickle.dumps(data, protocol=2))
    else:
        torch.save(data, path, _use_new_zipfile_serialization=form != "legacy")

    with pytest.raises(EngineError, match=name) as caught:
        open_pickle(path)
    assert "refused, and nothing in it was run" in str(caught.value)
    assert not (tmp_path / "CANARY").exists()


@pytest.mark.parametrize(
    ("numel", "shape", "stride", "offset"),
    [
        (1, (10**6, 10**6), (0, 0), 0),
        (1, (2,), (1,), 0),
        (4, (2,), (1,), 3),
        (4, (2, 2), (3, 3), 0),
        (4, (-1,), (1,), 0),
        (4, (2,), (-1,), 0),
        (4, (2,), (1, 1), 0),
        (4, (True,), (1,), 0),
        (2**60, (2,), (1,), 0),
        (1000, (1000,), (1,), 0),
    ],
)
def test_tensors_that_reach_outside_their_storage_are_refused(tmp_path, numel, shape, stride, offset):
    """Stride 0 makes 4 bytes look like 4 TB; the rest would read the memory of others."""
    data = tensor_pickle(numel, shape, stride, offset)
    path = zipped(tmp_path / "x.ckpt", data, [("archive/data/0", bytes(16))])

    with pytest.raises(EngineError, match=r"x\.ckpt: refused"):
        open_pickle(path)


def test_a_handmade_tensor_that_is_in_order_is_read(tmp_path):
    """The tests above fail for what they say, not for how they are made."""
    data = tensor_pickle(4, (2, 2), (2, 1))
    path = zipped(tmp_path / "x.ckpt", data, [("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))])

    assert open_pickle(path).tensors["a"].tensor().tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_missing_values_are_named(tmp_path):
    """A member that the pickle refers to and the archive lacks."""
    with pytest.raises(EngineError, match="values of a are missing"):
        open_pickle(zipped(tmp_path / "x.ckpt", tensor_pickle(4, (4,), (1,))))


def test_compressed_archives_are_refused(tmp_path):
    """A 1 MB file must not become 1 GB in memory."""
    bomb = [("archive/data/0", bytes(50_000_000))]
    path = zipped(tmp_path / "x.ckpt", tensor_pickle(12_500_000, (12_500_000,), (1,)), bomb, zipfile.ZIP_DEFLATED)

    assert path.stat().st_size < 1_000_000
    with pytest.raises(EngineError, match="compressed"):
        open_pickle(path)


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "archive/code/__torch__.py", "archive/../x", "other/data/0", "a\\data/0"],
)
def test_members_that_are_no_part_of_a_checkpoint_are_refused(tmp_path, name):
    """TorchScript programs and paths that lead elsewhere."""
    with pytest.raises(EngineError, match=r"no part of a checkpoint|several folders"):
        open_pickle(zipped(tmp_path / "x.ckpt", pickle.dumps({}), [(name, b"x")]))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02.",
        b"\x80\x02e.",
        b"\x80\x02h\x05.",
        b"\x80\x02K\x01K\x02R.",
        b"\x80\x02K\x01)\x81.",
        b"\x80\x02]K\x01K\x02s.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02cos\n",
        b"\x80\x02\x82\x01.",
        b"\x80\x02(cposix\nsystem\nX\x02\x00\x00\x00lso.",
        b"\x80\x02(X\x02\x00\x00\x00lsiposix\nsystem\n.",
        b"\x80\x022.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02((K\x01QK\x01.",
        b"\x80\x02}((K\x01K\x01tK\x01u.",
        b"\x80\x02q\xff.",
        b"I" + b"9" * 100_000 + b"\n.",
    ],
)
def test_damaged_pickles_are_refused(data):
    """No instruction does anything but fail cleanly."""
    with pytest.raises(RefusedPickleError):
        read_pickle(io.BytesIO(data))


def test_no_instruction_takes_for_ever():
    """Tuples that double 60 times cost nothing to refer to, and are refused as keys, where hashing would not end."""
    doubling = b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60))
    began = time.monotonic()

    assert isinstance(read_pickle(io.BytesIO(b"\x80\x02)" + doubling + b".")), tuple)
    with pytest.raises(RefusedPickleError):
        read_pickle(io.BytesIO(b"\x80\x02})" + doubling + b"K\x01s."))
    assert time.monotonic() - began < 5


def test_every_truncation_is_noticed(tmp_path):
    """Wherever a download stopped, in either form."""
    for is_zip in (True, False):
        torch.save({"a": torch.ones(4)}, tmp_path / "x.ckpt", _use_new_zipfile_serialization=is_zip)
        whole = (tmp_path / "x.ckpt").read_bytes()
        for length in range(1, len(whole), 7):
            (tmp_path / "cut.ckpt").write_bytes(whole[:length])
            with pytest.raises(EngineError, match="refused"):
                open_pickle(tmp_path / "cut.ckpt")


@pytest.mark.parametrize("is_zip", [True, False])
def test_random_damage_never_breaks_out(tmp_path, is_zip):
    """Whatever bytes are changed or lost, the file is read or refused."""
    torch.save({"state_dict": {"a": torch.ones(4)}}, tmp_path / "x.ckpt", _use_new_zipfile_serialization=is_zip)
    whole = (tmp_path / "x.ckpt").read_bytes()
    rng, refused = random.Random(7), 0
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 3])):
            place = rng.randrange(len(data))
            data[place : place + rng.randrange(3)] = bytes([rng.choice([0, 1, 46, 127, 128, 255, rng.randrange(256)])])
        (tmp_path / "x.ckpt").write_bytes(data)
        try:
            for tensor in open_pickle(tmp_path / "x.ckpt").tensors.values():
                tensor.tensor()
        except EngineError:
            refused += 1
    assert refused > 500


def test_what_ours_writes_torch_loads(tmp_path):
    """Mapped or not, with the safe loader; every zip checksum is right and every value aligned to 64 bytes."""
    path = tmp_path / "x.ckpt"
    tensors = {name: lazy(tensor.detach()) for name, tensor in TENSORS.items()}
    write_pickle(path, tensors, extra={"epoch": 2, "global_step": 7})

    for is_mapped in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=is_mapped)
        assert (loaded["epoch"], loaded["global_step"]) == (2, 7)
        for name, tensor in TENSORS.items():
            assert torch.equal(tensor.detach(), loaded["state_dict"][name])
            assert is_mapped is False or tensor.numel() == 0 or loaded["state_dict"][name].data_ptr() % 64 == 0
    for name, tensor in TENSORS.items():
        assert torch.equal(tensor.detach(), open_pickle(path).tensors[name].tensor())
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_a_pickle_that_would_not_be_finite_is_not_written(tmp_path):
    """As for .safetensors."""
    with pytest.raises(EngineError, match="a holds NaN"):
        write_pickle(tmp_path / "x.ckpt", {"a": lazy(torch.tensor([float("nan")]))}, finite={"a"})
    assert list(tmp_path.iterdir()) == []

"""Writing .ckpt and .bin files that torch and every other program loads, tensor by tensor."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from engine.errors import EngineError, safe_text
from engine.models.atomic import atomic_file
from engine.models.lazy import LazyTensor
from engine.models.safetensors_io import data_pieces

_ROOT = "archive"
_ALIGNMENT = 64
_STORAGES = {
    "F64": "DoubleStorage", "F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage",
    "I64": "LongStorage", "I32": "IntStorage", "I16": "ShortStorage", "I8": "CharStorage",
    "U8": "ByteStorage", "BOOL": "BoolStorage", "C64": "ComplexFloatStorage",
}  # fmt: skip


def write_pickle(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    *,
    extra: Mapping[str, Any] | None = None,
    finite: Collection[str] = (),
) -> None:
    """Write tensors as torch.save would, without ever holding more than a piece of one.

    Args:
        path: Where; an existing file is replaced at the end.
        tensors: What.
        extra: With it, the tensors go under "state_dict" beside these plain values; without, they are the whole file.
        finite: Names whose values must be finite.

    Raises:
        EngineError: A value that must be finite isn't, or the disk refuses.
    """
    stored = {name: _Stored(_Storage(index, tensor)) for index, (name, tensor) in enumerate(tensors.items())}
    _write_archive(path, stored if extra is None else {"state_dict": stored, **extra}, tensors, finite)


def write_tables(path: Path, tables: object) -> None:
    """Write nested plain data as torch.save would: its dicts, tuples and lists, and the `LazyTensor`s in them.

    Raises:
        EngineError: A tensor's values are not finite, or the disk refuses.
    """
    tensors: dict[str, LazyTensor] = {}
    stored = _as_stored(tables, "", tensors)
    _write_archive(path, stored, tensors, tensors.keys())


def _as_stored(value: object, name: str, tensors: dict[str, LazyTensor]) -> object:
    """Return data with what stands for its tensors, which go to `tensors` by their place."""
    if isinstance(value, LazyTensor):
        tensors[name] = value
        return _Stored(_Storage(len(tensors) - 1, value))
    if isinstance(value, dict):
        return {key: _as_stored(inner, f"{name}/{key}".lstrip("/"), tensors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_as_stored(inner, f"{name}/{place}", tensors) for place, inner in enumerate(value))
    return value


def _write_archive(path: Path, table: object, tensors: Mapping[str, LazyTensor], finite: Collection[str]) -> None:
    strange = next((name for name, tensor in tensors.items() if tensor.dtype not in _STORAGES), None)
    if strange is not None:
        raise EngineError(
            f"{safe_text(str(path))}: {safe_text(strange)} has the type {tensors[strange].dtype}, which only "
            ".safetensors holds: choose that, or --save_precision"
        )
    total = sum(tensor.num_bytes for tensor in tensors.values())
    # No member "byteorder": A1111's older check of what may be in a file refuses it, and torch does without.
    with atomic_file(path, num_bytes=total) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _write_member(archive, file, "data.pkl", [_pickled(table)])
        for index, (name, tensor) in enumerate(tensors.items()):
            pieces = data_pieces(path, name, tensor, is_checked=name in finite)
            _write_member(archive, file, f"data/{index}", pieces)
        _write_member(archive, file, "version", [b"3\n"])


@dataclass(frozen=True, slots=True)
class _Storage:
    """Stands for a block of values: the pickle refers to it, the archive's member holds it."""

    index: int
    tensor: LazyTensor


@dataclass(frozen=True, slots=True)
class _Stored:
    """Stands for a tensor, and pickles as one."""

    storage: _Storage

    def __reduce__(self) -> tuple[Any, ...]:
        from torch._utils import _rebuild_tensor_v2

        shape = self.storage.tensor.shape
        return _rebuild_tensor_v2, (self.storage, 0, shape, _strides(shape), False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> tuple[Any, ...] | None:
        """Return what torch writes for a storage."""
        if not isinstance(obj, _Storage):
            return None
        import torch

        kind = getattr(torch, _STORAGES[obj.tensor.dtype])
        return "storage", kind, str(obj.index), "cpu", obj.tensor.numel


def _pickled(table: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(table)
    return buffer.getvalue()


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides)) if shape else ()


def _write_member(archive: zipfile.ZipFile, file: BinaryIO, name: str, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a member whose bytes start at a multiple of 64, so that the file can be mapped."""
    member = zipfile.ZipInfo(f"{_ROOT}/{name}")
    zip64_extra = 20
    start = file.tell() + 30 + len(member.filename) + zip64_extra
    padding = (-start - 4) % _ALIGNMENT
    member.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding  # Torch pads with the same field.
    with archive.open(member, "w", force_zip64=True) as stream:
        for piece in pieces:
            stream.write(piece)

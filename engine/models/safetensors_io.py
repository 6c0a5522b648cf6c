"""Reading and writing .safetensors: a header checked before anything is believed, and values that stream past.

Torch-free except where values are read or written.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from engine.errors import EngineError, safe_text
from engine.models.atomic import atomic_file
from engine.models.lazy import ITEM_BYTES, LazyTensor, MappedFile

if TYPE_CHECKING:
    import hashlib

    from torch import Tensor

MAX_HEADER_BYTES = 16_000_000
MAX_TENSORS = 100_000
_MAX_DIMENSIONS = 16
_RANK = {code: -size for code, size in ITEM_BYTES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFile:
    """The named tensors of a file, unread, and the text it carries beside them.

    `marks` are the top-level keys of a pickle, which tell what kind of file it is.
    """

    path: Path
    tensors: dict[str, LazyTensor]
    metadata: dict[str, str]
    marks: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def open_safetensors(path: Path) -> TensorFile:
    """Open a .safetensors file without reading its values.

    Raises:
        EngineError: It is truncated, oversized or inconsistent; the message says how to mend that.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header, start = _read_header(path, file, size)
    metadata = _metadata(path, header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        _refuse(path, f"its header lists {len(header)} tensors (at most {MAX_TENSORS})")
    entries = {name: _entry(path, name, value) for name, value in header.items()}
    _check_layout(path, entries, data_bytes=size - start)
    mapped = MappedFile(path)
    tensors = {name: mapped.lazy(entry.dtype, entry.shape, start + entry.begin) for name, entry in entries.items()}
    return TensorFile(path=path, tensors=tensors, metadata=metadata)


def _refuse(path: Path, why: str) -> NoReturn:
    shown = safe_text(str(path))
    raise EngineError(f"{shown}: not a sound .safetensors file: {why}; download or copy it again from its source")


def _read_header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.read(8), "little")
    if size < 10:
        _refuse(path, f"it has {size} bytes, fewer than any such file")
    if length > MAX_HEADER_BYTES:
        _refuse(path, f"its header would take {length} bytes (at most {MAX_HEADER_BYTES})")
    if 8 + length > size:
        _refuse(path, f"it is cut off: the header alone needs {8 + length} bytes and the file has {size}")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"its header is not valid ({safe_text(str(error), 80)})")
    if not isinstance(header, dict):
        _refuse(path, "its header is not a table of tensors")
    return header, 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _metadata(path: Path, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        _refuse(path, "its metadata is not a table of texts")
    try:
        "".join([*value, *value.values()]).encode("utf-8")
    except UnicodeEncodeError:
        _refuse(path, "its metadata holds half a character")
    return value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def _entry(path: Path, name: str, value: object) -> _Entry:
    shown = safe_text(name, 100)
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"the entry of {shown} is incomplete")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        _refuse(path, f"{shown} has the unknown type {safe_text(str(dtype), 40)}")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(map(_is_count, shape)):
        _refuse(path, f"{shown} has no valid shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        _refuse(path, f"{shown} has no valid offsets")
    begin, end = offsets
    if math.prod(shape) * ITEM_BYTES[dtype] != end - begin:
        _refuse(path, f"{shown} of shape {shape} and type {dtype} can't take {end - begin} bytes")
    return _Entry(dtype=dtype, shape=tuple(shape), begin=begin, end=end)


def _check_layout(path: Path, entries: Mapping[str, _Entry], *, data_bytes: int) -> None:
    """Hold the file to the format's rule that values follow one another without gap or overlap, to its end."""
    expected = max((entry.end for entry in entries.values()), default=0)
    if expected > data_bytes:
        _refuse(path, f"it is cut off: its tensors take {expected} bytes and {data_bytes} are there")
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            _refuse(path, f"{safe_text(name, 100)} starts at byte {entry.begin} where {position} was expected")
        position = entry.end
    if position != data_bytes:
        _refuse(path, f"{data_bytes - position} bytes follow its last tensor")


def write_safetensors(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    *,
    metadata: Mapping[str, str],
    finite: Collection[str] = (),
    digest: "hashlib._Hash | None" = None,
) -> None:
    """Write a file tensor by tensor, holding one piece at a time, and put it in place once it is whole.

    Args:
        path: Where; an existing file is replaced at the end.
        tensors: What, in this order within each item size (larger items first, which keeps all of them aligned).
        metadata: Texts for the header.
        finite: Names whose values must be finite.
        digest: Is fed the file's bytes, so that a checksum costs no second reading.

    Raises:
        EngineError: A value that must be finite isn't, or the disk refuses; `path` is as it was before.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: _RANK[item[1].dtype]))
    header = _header_bytes(ordered, metadata)
    total = len(header) + sum(tensor.num_bytes for tensor in ordered.values())
    with atomic_file(path, num_bytes=total) as file:
        for data in _file_pieces(path, header, ordered, finite):
            file.write(data)
            if digest:
                digest.update(data)


def _file_pieces(
    path: Path, header: bytes, tensors: Mapping[str, LazyTensor], finite: Collection[str]
) -> Iterator[bytes | memoryview]:
    yield header
    for name, tensor in tensors.items():
        yield from data_pieces(path, name, tensor, is_checked=name in finite)


def _header_bytes(tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, tensor in tensors.items():
        span = [position, position + tensor.num_bytes]
        entries[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": span}
        position = span[1]
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def data_pieces(path: Path, name: str, tensor: LazyTensor, *, is_checked: bool) -> Iterator[memoryview]:
    """Give a tensor's bytes in pieces.

    Raises:
        EngineError: `is_checked` and a value is not finite.
    """
    written = 0
    for piece in tensor.pieces():
        if is_checked and not is_finite(piece):
            raise EngineError(_not_finite(path, name, tensor))
        data = _bytes_of(piece)
        written += data.nbytes
        yield data
    assert written == tensor.num_bytes, (name, written, tensor.num_bytes)


def _bytes_of(piece: "Tensor") -> memoryview:
    import torch

    return piece.contiguous().view(torch.uint8).numpy().data


def is_finite(piece: "Tensor") -> bool:
    """Tell whether every value is finite; integers always are."""
    import torch

    if not piece.dtype.is_floating_point or not piece.numel():
        return True
    if piece.dtype.itemsize == 1:
        piece = piece.float()
    # Both ends are NaN as soon as one value is. Asking isfinite of every value takes 12 times as long.
    lowest, highest = torch.aminmax(piece)
    return math.isfinite(lowest.item()) and math.isfinite(highest.item())


def _not_finite(path: Path, name: str, tensor: LazyTensor) -> str:
    remedy = "take an earlier save and a lower learning rate"
    if tensor.dtype == "F16":
        remedy += ", or save_precision bf16 or float if values beyond 65504 are the cause"
    return f"{safe_text(str(path))}: not saved, because {safe_text(name)} holds NaN or infinite values; {remedy}"

"""Opening .ckpt, .pt and .bin files, of today's zip form and of the form before it, without running their pickles.

Torch-free except where values are read.
"""

import io
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from engine.errors import EngineError, safe_text
from engine.models.lazy import ITEM_BYTES, LazyTensor, MappedFile
from engine.models.safetensors_io import MAX_TENSORS, TensorFile
from engine.models.unpickle import MAX_PICKLE_BYTES, RefusedPickleError, StorageRef, TensorRef, read_pickle

if TYPE_CHECKING:
    from torch import Tensor

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_MEMBER = re.compile(
    r"[^/\\]+/(data\.pkl|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id|data/\w{1,40})"
)
_END_OF_DIRECTORY = b"PK\x05\x06"
_MAX_DIRECTORY_BYTES = 32_000_000


def open_pickle(path: Path) -> TensorFile:
    """Open a checkpoint saved by torch without running anything in it or reading its values.

    Its tensors are those of its `state_dict` where it has one; texts and numbers beside that become metadata.

    Raises:
        EngineError: It names code, is compressed, damaged, or no checkpoint at all.
    """
    data, places = _opened(path)
    return _tensor_file(path, data, places)


def open_tables(path: Path) -> Any:  # noqa: ANN401  # pickled data has any shape
    """Return the data of a file that torch saved as it is nested, its tensors unread; nothing in it is run.

    Raises:
        EngineError: It names code, is compressed, damaged, or no such file.
    """
    data, places = _opened(path)
    try:
        return _with_tensors(path, data, places)
    except RecursionError:
        _refuse(path, "its data is nested without end")


def _opened(path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Return a file's unpickled data and the places of its storages, whichever of the two forms it has."""
    try:
        return _open_zip(path) if zipfile.is_zipfile(path) else _open_legacy(path)
    except RefusedPickleError as error:
        _refuse(path, str(error))
    # What zipfile raises on damaged files, found by changing random bytes.
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError) as error:
        _refuse(path, f"it is damaged ({error or type(error).__name__})")


def _with_tensors(path: Path, data: object, places: dict[str, tuple[int, int]]) -> object:
    """Return nested data with its tensors to be read; what is referred to from many places is made once."""
    mapped = MappedFile(path)
    made: dict[int, object] = {}

    def convert(value: object) -> object:
        if id(value) in made:
            return made[id(value)]
        converted: object = value
        if isinstance(value, TensorRef):
            converted = _lazy(path, mapped, "a tensor", value, places)
        elif isinstance(value, dict):
            converted = {key: convert(inner) for key, inner in value.items()}
        elif isinstance(value, list | tuple):
            converted = type(value)(convert(inner) for inner in value)
        made[id(value)] = converted
        return converted

    return convert(data)


def _refuse(path: Path, why: str) -> NoReturn:
    raise EngineError(
        f"{safe_text(str(path))}: refused, and nothing in it was run: {safe_text(why)};"
        " get the model as .safetensors from a source you trust"
    )


def _open_zip(path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Return the unpickled data, and the byte offset and size of every storage by its key."""
    with path.open("rb") as file:
        _check_directory(file)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_members(members)
            root = members[0].filename.split("/")[0]
            names = {member.filename.removeprefix(f"{root}/"): member for member in members}
            if "data.pkl" not in names or names["data.pkl"].file_size > MAX_PICKLE_BYTES:
                raise RefusedPickleError("it is a zip file without a checkpoint's data.pkl of sane size")
            if "byteorder" in names and archive.read(names["byteorder"])[:6] != b"little":
                raise RefusedPickleError("it was written on a big-endian machine")
            data = read_pickle(io.BytesIO(archive.read(names["data.pkl"])))
        places = {
            name.removeprefix("data/"): (_data_offset(file, member), member.file_size)
            for name, member in names.items()
            if name.startswith("data/")
        }
    return data, places


def _check_directory(file: BinaryIO) -> None:
    """Refuse a directory of millions of members before Python builds an object for each."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 65_557))
    tail = file.read()
    position = tail.rfind(_END_OF_DIRECTORY)
    directory = int.from_bytes(tail[position + 12 : position + 16], "little")
    if directory == 0xFFFFFFFF or directory > _MAX_DIRECTORY_BYTES:
        raise RefusedPickleError("its zip directory is larger than any checkpoint's")


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    if not members or len(members) > MAX_TENSORS:
        raise RefusedPickleError(f"it is a zip file of {len(members)} members")
    for member in members:
        if not _MEMBER.fullmatch(member.filename):
            raise RefusedPickleError(f"it holds {member.filename}, which is no part of a checkpoint")
        if (
            member.flag_bits & 1
            or member.compress_type != zipfile.ZIP_STORED
            or member.compress_size != member.file_size
        ):
            raise RefusedPickleError(
                f"its member {member.filename} is compressed or encrypted, which no checkpoint's is"
            )
    if len({member.filename.split("/")[0] for member in members}) > 1:
        raise RefusedPickleError("its members lie in several folders")
    if len({member.filename for member in members}) < len(members):
        raise RefusedPickleError("a member occurs twice")


def _data_offset(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    """Return where a member's bytes start: behind its local header of 30 bytes, a name and an extra field."""
    file.seek(member.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\x03\x04":
        raise RefusedPickleError(f"the header of {member.filename} is damaged")
    name_bytes, extra_bytes = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    start = member.header_offset + 30 + name_bytes + extra_bytes
    if start + member.file_size > file.seek(0, io.SEEK_END):
        raise RefusedPickleError(f"it is cut off within {member.filename}")
    return start


def _open_legacy(path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Read the form of before torch 1.6: pickles of a magic number, version, system, data and keys, then the values."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = io.BytesIO(file.read(MAX_PICKLE_BYTES))
        if head.getvalue()[:1] != b"\x80" or read_pickle(head) != _LEGACY_MAGIC:
            raise RefusedPickleError("it is no file that torch saved")
        _version, system, data = read_pickle(head), read_pickle(head), read_pickle(head)
        keys = read_pickle(head)
        if not isinstance(keys, list) or (isinstance(system, dict) and system.get("little_endian") is False):
            raise RefusedPickleError("its list of values is missing or big-endian")
        item_bytes = {ref.key: ITEM_BYTES[ref.dtype] for ref in _storages(data)}
        position = head.tell()
        places = {}
        for key in map(str, keys):
            file.seek(position)
            num_bytes = int.from_bytes(file.read(8), "little") * item_bytes.get(key, 1)
            places[key] = (position + 8, num_bytes)
            position += 8 + num_bytes
            if position > size:
                raise RefusedPickleError(f"it is cut off: {position} bytes are needed and {size} are there")
    return data, places


def _storages(data: object) -> list[StorageRef]:
    """Return every storage that a value within reach refers to, following nested containers once each."""
    found, seen, waiting = [], set(), [data]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, TensorRef):
            found.append(value.storage)
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)
    return found


def _tensor_file(path: Path, data: object, places: dict[str, tuple[int, int]]) -> TensorFile:
    if not isinstance(data, dict):
        _refuse(path, "it holds no table of tensors")
    state = data.get("state_dict")
    table = state if isinstance(state, dict) else data
    mapped = MappedFile(path)
    tensors = {}
    for name, value in table.items():
        if isinstance(name, str) and isinstance(value, TensorRef):
            tensors[name] = _lazy(path, mapped, name, value, places)
    metadata = {
        key: str(value) for key, value in data.items() if isinstance(key, str) and isinstance(value, str | int | float)
    }
    return TensorFile(path=path, tensors=tensors, metadata=metadata, marks=frozenset(map(str, data)))


def _lazy(path: Path, mapped: MappedFile, name: str, ref: TensorRef, places: dict[str, tuple[int, int]]) -> LazyTensor:
    storage = ref.storage
    if storage.key not in places:
        _refuse(path, f"the values of {name} are missing")
    offset, num_bytes = places[storage.key]
    if storage.numel * ITEM_BYTES[storage.dtype] > num_bytes:
        _refuse(path, f"{name} claims {storage.numel} values where {num_bytes} bytes are stored")

    def read() -> "Tensor":
        flat = mapped.flat(storage.dtype, storage.numel, offset)
        return flat.as_strided(ref.shape, ref.stride, ref.offset)

    return LazyTensor(shape=ref.shape, dtype=storage.dtype, source=read)

"""Records of one size, appended once and read by memory map: the files under the latent and text caches. Torch-free.

NAME-000.bin    the records, one behind the other
NAME-000.idx    a 64-byte header, then 20 bytes a record: 16 of its key, 4 of the CRC-32 of its bytes
NAME-000.lock   held by the one process that appends; a second process appends to NAME-001 instead

What the disk refuses is kept in memory for as long as the process lives, while there is memory for it.

Entry n of the .idx is record n of the .bin and is written after it, so a killed process leaves at most an unfinished
tail, which the next one cuts off. Power may fail between the two files' reaching the disk: the CRC, compared when a
record is first read, finds what did not arrive. Where a key stands twice, the later record counts.
"""

import contextlib
import errno
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import psutil
from numpy.typing import NDArray

from engine.errors import EngineError, safe_text
from engine.lock import try_lock
from engine.space import NotWrittenError, writing

KEY_BYTES = 16
ABSENT = -1  # The row of a key that is not there.

_HEADER_BYTES = 64
_ENTRY = np.dtype([("key", "<u8", (2,)), ("crc", "<u4")])
_SYNC_EVERY = 256  # Records that a power failure may cost; a sync for each would halve the speed.
_SLOT_BITS = 40  # A row is a file's number above these bits and the record's slot in it below.
_SLOT_MASK = (1 << _SLOT_BITS) - 1
_MOST_FILES = 1000
_IN_MEMORY = _MOST_FILES  # The number of the block that holds what the disk refused.
_SPARE_MEMORY_BYTES = 1 << 30

Array = NDArray[Any]
_sync_data: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


class DamagedRecordsError(EngineError):
    """Records whose bytes are not what was written; they have been dropped, so that `find` no longer returns them."""

    def __init__(self, folder: Path | None, rows: Sequence[int]) -> None:
        super().__init__(
            f"{safe_text(str(folder))}: {len(rows)} cached records came back damaged and were dropped; "
            "start again and they are made anew, but check this disk"
        )
        self.rows = tuple(rows)


class Shards:
    """All records of one name: in a folder, or in memory where `folder` is None.

    A row says where a record is, for good. What was appended is found after `refresh`.
    """

    def __init__(self, folder: Path | None, name: str, *, shape: tuple[int, ...], dtype: str) -> None:
        self.folder = folder
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._name = name
        self._blocks: dict[int, _Block] | None = None
        self._writer: _Writer | None = None
        self._kept_entries: list[Array] = []
        self._kept_records: list[Array] = []
        self.refusal = ""
        """Why the disk takes no more and records are kept in memory, "" while it takes them."""

    @property
    def record_bytes(self) -> int:
        """How much one record takes."""
        return self.dtype.itemsize * int(np.prod(self.shape))

    def find(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Return the row of each key of 16 bytes, ABSENT where there is none."""
        wanted = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)
        rows = np.full(len(wanted), ABSENT, np.int64)
        for number, block in self._open_blocks().items():
            slots = block.find(wanted)
            rows[slots >= 0] = slots[slots >= 0] | (number << _SLOT_BITS)
        return rows

    def read(self, rows: Sequence[int]) -> Array:
        """Return the records of the rows, (n, *shape).

        Raises:
            DamagedRecordsError: Some are not what was written.
        """
        blocks = self._open_blocks()
        slots = [row & _SLOT_MASK for row in rows]
        if len(blocks) == 1:  # The usual case, in one copy.
            records, damaged = next(iter(blocks.values())).read(slots)
        else:
            parts = [blocks[row >> _SLOT_BITS].read([slot]) for row, slot in zip(rows, slots, strict=True)]
            records = np.concatenate([record for record, _ in parts])
            damaged = [place for place, (_, is_damaged) in enumerate(parts) if is_damaged]
        if damaged:
            raise DamagedRecordsError(self.folder, [rows[place] for place in damaged])
        return records

    def append(self, keys: Sequence[bytes], records: Array) -> None:
        """Add records, (n, *shape), under their keys.

        Raises:
            NotWrittenError: The disk refuses them, and there is not the memory to keep them.
            EngineError: The folder is in use by too many processes.
        """
        assert records.shape == (len(keys), *self.shape), records.shape
        records = np.ascontiguousarray(records, self.dtype)
        entries = np.empty(len(keys), _ENTRY)
        entries["key"] = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)
        entries["crc"] = [zlib.crc32(record.data) for record in records]
        if self.folder is None or not self._reaches_disk(self.folder, entries, records):
            self._kept_entries.append(entries)
            self._kept_records.extend(records)

    def _reaches_disk(self, folder: Path, entries: Array, records: Array) -> bool:
        """Append to the folder's file; once the disk has refused, say so without trying again."""
        try:
            self._append_to_file(folder, entries, records)
        except NotWrittenError as error:
            if psutil.virtual_memory().available < records.nbytes + _SPARE_MEMORY_BYTES:
                raise
            self._give_up_disk(error)
            return False
        return True

    def _give_up_disk(self, error: NotWrittenError) -> None:
        self.refusal = str(error)
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()

    def refresh(self) -> None:
        """See what has been appended, here or by other processes."""
        self._blocks = None

    def close(self) -> None:
        """Bring what was appended to the disk and let another process append."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            with writing(writer.folder):
                writer.close()
        except NotWrittenError as error:  # Records that did not arrive are found by their CRC.
            self.refusal = str(error)

    def __enter__(self) -> Self:
        """Return itself; leaving closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append_to_file(self, folder: Path, entries: Array, records: Array) -> None:
        if self.refusal:
            raise NotWrittenError(self.refusal)
        with writing(folder):
            if self._writer is None:
                folder.mkdir(parents=True, exist_ok=True)
                self._writer = _Writer(folder, self._name, self._header(), self.record_bytes)
            self._writer.append(entries, records)

    def _header(self) -> bytes:
        sides = ",".join(map(str, self.shape))
        return f"sdtui-shard 1 {self.dtype.str} {sides}\n".encode().ljust(_HEADER_BYTES)

    def _open_blocks(self) -> "dict[int, _Block]":
        if self._blocks is None:
            self._blocks = {} if self.folder is None else self._map_blocks(self.folder)
            if self.folder is None or self._kept_entries:
                self._blocks[_IN_MEMORY] = self._keep_block()
        return self._blocks

    def _keep_block(self) -> "_Block":
        entries = np.concatenate([np.empty(0, _ENTRY), *self._kept_entries])
        self._kept_entries = [entries]
        return _Block(entries, self._kept_records, Path())

    def _map_blocks(self, folder: Path) -> "dict[int, _Block]":
        blocks = {}
        for file in sorted(folder.glob(f"{self._name}-[0-9][0-9][0-9].idx")):
            block = _open_block(file, self._header(), self.shape, self.dtype)
            if block is not None:
                blocks[int(file.stem[-3:])] = block
        return blocks


class _Block:
    """The records of one file, or those in memory, behind the sorted first halves of their keys."""

    __slots__ = ("_checked", "_entries", "_index_file", "_num_unchecked", "_order", "_records", "_sorted")

    def __init__(self, entries: Array, records: list[Array] | Array, index_file: Path) -> None:
        self._entries = entries
        self._records = records
        self._index_file = index_file
        self._checked = bytearray(len(entries))
        self._num_unchecked = len(entries)
        self._order = np.argsort(entries["key"][:, 0], kind="stable")
        self._sorted = entries["key"][:, 0][self._order]

    def find(self, wanted: Array) -> NDArray[np.int64]:
        """Return the slot of each key, (n, 2) uint64, or -1; of equal keys the last."""
        if not len(self._sorted):
            return np.full(len(wanted), ABSENT, np.int64)
        places = np.searchsorted(self._sorted, wanted[:, 0], side="right") - 1
        slots = self._order[places]
        # Two keys that share their first half hide each other: that one is encoded again, never mistaken.
        return np.where((places >= 0) & (self._entries["key"][slots] == wanted).all(axis=1), slots, ABSENT)

    def read(self, slots: list[int]) -> tuple[Array, list[int]]:
        """Return the records of the slots, and the places in the list of those that are not what was written."""
        if isinstance(self._records, list):
            return np.stack([self._records[slot] for slot in slots]), []
        records: Array = self._records[slots]
        if not self._num_unchecked:
            return records, []
        return records, [place for place, slot in enumerate(slots) if not self._check(slot, records[place])]

    def _check(self, slot: int, record: Array) -> bool:
        """Compare a record with its CRC, once; a damaged one is dropped, here and in the file."""
        if self._checked[slot]:
            return True
        if zlib.crc32(record.data) == self._entries["crc"][slot]:
            self._checked[slot] = 1
            self._num_unchecked -= 1
            return True
        self._entries["key"][slot] = 0
        # Where the cache can't be written, the next process meets the damage again, and drops it again.
        with contextlib.suppress(OSError), self._index_file.open("r+b") as file:
            file.seek(_HEADER_BYTES + slot * _ENTRY.itemsize)
            file.write(bytes(KEY_BYTES))
        return False


def _open_block(file: Path, header: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> _Block | None:
    """Map the records of a file, or return None where it is of another kind or holds nothing yet."""
    record_bytes = dtype.itemsize * int(np.prod(shape))
    try:
        index = file.read_bytes()
        bin_file = file.with_suffix(".bin")
        count = min((len(index) - _HEADER_BYTES) // _ENTRY.itemsize, bin_file.stat().st_size // record_bytes)
        if count <= 0 or index[:_HEADER_BYTES] != header:
            return None
        mapped = np.memmap(bin_file, dtype, "r", shape=(count, *shape))
    except OSError as error:
        raise EngineError(
            f"{safe_text(str(file))}: the cache can't be read ({error.strerror or error}); "
            "delete this file and the .bin beside it, and they are made anew"
        ) from error
    entries = np.frombuffer(index, _ENTRY, count, _HEADER_BYTES).copy()
    return _Block(entries, np.asarray(mapped), file)


class _Writer:
    """The end of the one file that this process appends to."""

    def __init__(self, folder: Path, name: str, header: bytes, record_bytes: int) -> None:
        self.folder = folder
        self._unsynced = 0
        with contextlib.ExitStack() as stack:
            stem, self._lock = _claim(folder, name, header)
            stack.callback(self._lock.close)
            self._index = stack.enter_context(_open_to_append(stem.with_suffix(".idx")))
            self._records = stack.enter_context(_open_to_append(stem.with_suffix(".bin")))
            self._cut_unfinished(header, record_bytes)
            self._files = stack.pop_all()

    def append(self, entries: Array, records: Array) -> None:
        self._records.write(records.data)
        self._records.flush()
        self._index.write(entries.tobytes())
        self._index.flush()
        self._unsynced += len(entries)
        if self._unsynced >= _SYNC_EVERY:
            self._sync()

    def close(self) -> None:
        with self._files:
            self._sync()

    def _sync(self) -> None:
        _sync_data(self._records.fileno())
        _sync_data(self._index.fileno())
        self._unsynced = 0

    def _cut_unfinished(self, header: bytes, record_bytes: int) -> None:
        if self._index.seek(0, os.SEEK_END) < _HEADER_BYTES:
            self._index.truncate(0)
            self._index.seek(0)
            self._index.write(header)
        entries = (self._index.seek(0, os.SEEK_END) - _HEADER_BYTES) // _ENTRY.itemsize
        count = min(entries, self._records.seek(0, os.SEEK_END) // record_bytes)
        self._index.truncate(self._index.seek(_HEADER_BYTES + count * _ENTRY.itemsize))
        self._records.truncate(self._records.seek(count * record_bytes))


def _open_to_append(file: Path) -> IO[bytes]:
    file.touch()
    return file.open("r+b")


def _claim(folder: Path, name: str, header: bytes) -> tuple[Path, IO[bytes]]:
    """Return the first file that no other process appends to, and the lock on it."""
    for number in range(_MOST_FILES):
        stem = folder / f"{name}-{number:03d}"
        lock = stem.with_suffix(".lock").open("ab")
        outcome = try_lock(lock)
        if outcome == "unknown":  # Two processes could write to one file.
            lock.close()
            raise OSError(errno.ENOLCK, "this disk knows no locks")
        if outcome == "ours" and _is_of_kind(stem.with_suffix(".idx"), header):
            return stem, lock
        lock.close()
    raise EngineError(f"{safe_text(str(folder))}: {_MOST_FILES} cache files of {name} are in use; empty this folder")


def _is_of_kind(file: Path, header: bytes) -> bool:
    if not file.exists() or file.stat().st_size < _HEADER_BYTES:
        return True
    with file.open("rb") as index:
        return index.read(_HEADER_BYTES) == header

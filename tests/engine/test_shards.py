"""Record files: appended whole or not at all, found by key, never believed when damaged."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.errors import EngineError
from engine.shards import ABSENT, DamagedRecordsError, Shards

SHAPE = (2, 3)


def _key(number: int) -> bytes:
    return (number + 1).to_bytes(16, "little")  # No hash is all zeros: that marks a dropped record.


def _records(*numbers: int) -> np.ndarray:
    return np.stack([np.full(SHAPE, number % 1000, np.float16) for number in numbers])


def _open(folder: Path | None, **options: object) -> Shards:
    return Shards(folder, "a", **{"shape": SHAPE, "dtype": "float16"} | options)


def _append(folder: Path, *numbers: int) -> None:
    with _open(folder) as shards:
        shards.append([_key(number) for number in numbers], _records(*numbers))


def _found(folder: Path, *numbers: int) -> list[int | None]:
    """Return the value stored under each key, None where there is none."""
    shards = _open(folder)
    rows = shards.find([_key(number) for number in numbers]).tolist()
    return [None if row == ABSENT else int(shards.read([row])[0, 0, 0]) for row in rows]


def test_records_are_found_again_by_another_process(tmp_path: Path):
    _append(tmp_path, 1, 2, 3)
    _append(tmp_path, 4)

    assert _found(tmp_path, 4, 2, 9, 1) == [4, 2, None, 1]


def test_memory_holds_what_a_folder_would():
    shards = _open(None)
    shards.append([_key(1), _key(2)], _records(1, 2))
    shards.append([_key(3)], _records(3))
    shards.refresh()

    rows = shards.find([_key(3), _key(1), _key(9)]).tolist()

    assert rows[2] == ABSENT
    np.testing.assert_array_equal(_records(3, 1), shards.read(rows[:2]))


def test_a_batch_is_read_in_the_order_asked_for(tmp_path: Path):
    _append(tmp_path, *range(50))
    shards = _open(tmp_path)
    wanted = [7, 0, 49, 7]

    records = shards.read(shards.find([_key(number) for number in wanted]).tolist())

    np.testing.assert_array_equal(_records(*wanted), records)


def test_later_record_of_a_key_counts(tmp_path: Path):
    _append(tmp_path, 1)
    with _open(tmp_path) as shards:
        shards.append([_key(1)], _records(8))

    assert _found(tmp_path, 1) == [8]


def test_keys_that_share_their_first_half_are_never_mistaken(tmp_path: Path):
    with _open(tmp_path) as shards:
        shards.append([_key(1), _key(1 + (1 << 64))], _records(1, 2))

    assert None in _found(tmp_path, 1, 1 + (1 << 64))
    assert 2 not in _found(tmp_path, 1)


def test_two_writers_use_two_files_and_both_are_read(tmp_path: Path):
    """Two runs, or two processes of one, share a cache."""
    with _open(tmp_path) as first, _open(tmp_path) as second:
        for number in range(0, 20, 2):
            first.append([_key(number)], _records(number))
            second.append([_key(number + 1)], _records(number + 1))

    assert sorted(file.name for file in tmp_path.glob("*.bin")) == ["a-000.bin", "a-001.bin"]
    assert list(range(20)) == _found(tmp_path, *range(20))
    shards = _open(tmp_path)
    np.testing.assert_array_equal(_records(4, 5), shards.read(shards.find([_key(4), _key(5)]).tolist()))


def test_refresh_shows_what_another_process_appended(tmp_path: Path):
    shards = _open(tmp_path)
    assert shards.find([_key(1)]).tolist() == [ABSENT]
    _append(tmp_path, 1)

    shards.refresh()

    assert shards.find([_key(1)]).tolist() != [ABSENT]


@pytest.mark.parametrize("cut", range(1, 200, 7))
@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_torn_tail_is_cut_off_and_the_rest_kept(suffix: str, cut: int, tmp_path: Path):
    """Whatever a crash left of either file, every record is whole or absent, and appending goes on."""
    _append(tmp_path, *range(10))
    file = tmp_path / f"a-000{suffix}"
    os.truncate(file, max(0, file.stat().st_size - cut))

    before = _found(tmp_path, *range(10))
    _append(tmp_path, 100)

    kept = before.index(None) if None in before else 10
    assert [*range(kept), *[None] * (10 - kept)] == before
    assert [*before, 100] == _found(tmp_path, *range(10), 100)


def test_killed_writer_costs_at_most_the_last_record(tmp_path: Path):
    """SIGKILL while appending; the lock is freed by the system."""
    script = (
        "import sys, numpy as np\nfrom pathlib import Path\nfrom engine.shards import Shards\n"
        "shards = Shards(Path(sys.argv[1]), 'a', shape=(2, 3), dtype='float16')\n"
        "for number in range(10**9):\n"
        "    shards.append([(number + 1).to_bytes(16, 'little')], np.full((1, 2, 3), number % 1000, np.float16))\n"
        "    print(number, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        last = max(int(writer.stdout.readline()) for _ in range(300))
        writer.send_signal(signal.SIGKILL)

    assert [number % 1000 for number in range(last + 1)] == _found(tmp_path, *range(last + 1))
    _append(tmp_path, last + 1000)
    assert [file.name for file in tmp_path.glob("*.bin")] == ["a-000.bin"]


def test_every_flipped_bit_is_found_and_the_record_dropped(tmp_path: Path):
    _append(tmp_path, *range(8))
    size = _open(tmp_path).record_bytes
    for number in range(8):
        data = bytearray((tmp_path / "a-000.bin").read_bytes())
        data[number * size + number] ^= 1 << number
        (tmp_path / "a-000.bin").write_bytes(data)
        shards = _open(tmp_path)
        row = shards.find([_key(number)]).tolist()

        with pytest.raises(DamagedRecordsError, match="1 cached records came back damaged") as caught:
            shards.read(row)

        assert tuple(row) == caught.value.rows
        assert shards.find([_key(number)]).tolist() == [ABSENT]
        assert _found(tmp_path, number) == [None], "the next process knows too"


def test_power_failure_between_the_files_is_found(tmp_path: Path):
    """The entry arrived, its record is zeros."""
    _append(tmp_path, 1, 2)
    data = bytearray((tmp_path / "a-000.bin").read_bytes())
    data[12:] = bytes(12)
    (tmp_path / "a-000.bin").write_bytes(data)
    shards = _open(tmp_path)

    with pytest.raises(DamagedRecordsError):
        shards.read(shards.find([_key(1), _key(2)]).tolist())

    assert _found(tmp_path, 1, 2) == [1, None]


@pytest.mark.parametrize("other", [{"shape": (3, 2)}, {"dtype": "float32"}])
def test_file_of_another_kind_is_left_alone(other: dict, tmp_path: Path):
    _append(tmp_path, 1)
    before = (tmp_path / "a-000.bin").read_bytes()

    with _open(tmp_path, **other) as shards:
        assert shards.find([_key(1)]).tolist() == [ABSENT]
        shards.append([_key(1)], np.zeros((1, *shards.shape), shards.dtype))

    assert before == (tmp_path / "a-000.bin").read_bytes()
    assert _found(tmp_path, 1) == [1]


def test_many_records_are_synced_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A power failure costs at most 256 records: data first, then the entries that name it."""
    synced = []
    monkeypatch.setattr("engine.shards._sync_data", lambda number: synced.append(os.fstat(number).st_size))
    with _open(tmp_path) as shards:
        for start in range(0, 512, 64):
            numbers = range(start, start + 64)
            shards.append([_key(number) for number in numbers], _records(*numbers))
        assert synced == [256 * 12, 64 + 256 * 20, 512 * 12, 64 + 512 * 20]


def test_what_an_unwritable_folder_refuses_is_kept_in_memory(tmp_path: Path):
    """The run goes on; the reason is there to be told."""
    (tmp_path / "file").write_bytes(b"")

    with _open(tmp_path / "file" / "folder") as shards:
        shards.append([_key(1)], _records(1))
        shards.append([_key(2)], _records(2))

    shards.refresh()
    assert "can't be written: its folder is gone" in shards.refusal
    assert shards.read(shards.find([_key(2), _key(1)])).tolist() == _records(2, 1).tolist()


def test_a_disk_that_fills_up_keeps_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Half on disk, half in memory, read alike; the next process finds the first half."""
    shards = _open(tmp_path)
    shards.append([_key(1)], _records(1))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.shards._Writer.append", fail)
    shards.append([_key(2)], _records(2))
    shards.close()
    shards.refresh()

    assert "the disk is full" in shards.refusal
    assert shards.read(shards.find([_key(2), _key(1)])).tolist() == _records(2, 1).tolist()
    assert _found(tmp_path, 1, 2) == [1, None]


def test_a_full_disk_is_one_sentence_where_memory_is_short_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Filling the memory would end the run worse."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.shards._Writer.append", fail)
    monkeypatch.setattr("engine.shards._SPARE_MEMORY_BYTES", 1 << 60)

    with pytest.raises(EngineError, match="the disk is full"), _open(tmp_path) as shards:
        shards.append([_key(1)], _records(1))

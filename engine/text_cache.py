"""Text states encoded once, while captions stand still and the text encoder is frozen.

Each different caption is one record, so repeats and pictures that share a caption cost nothing, and the unconditional
caption is always among them: caption dropout stays cacheable. Kept in memory or, across runs, on disk.

Dimension key: B captions, L positions (77, 152 or 227), D width of the text encoder.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from engine.shards import ABSENT, KEY_BYTES, DamagedRecordsError, Shards

Encode = Callable[[Sequence[str]], Tensor]  # B captions -> states (B, L, D).
Progress = Callable[[int, int], None]  # Captions done, captions to do.

UNCONDITIONAL = ""


class TextStates:
    """The states of a set of captions, read by caption; the unconditional one, "", is always in it."""

    def __init__(self, encode: Encode, *, identity: str, folder: Path | None = None, dtype: str = "float16") -> None:
        """Open the store.

        Args:
            encode: Gives the states of a batch of captions.
            identity: `fingerprint(text_encoder, clip_skip, max_token_length, ...)`: all that `encode` depends on.
            folder: The cache folder; None keeps the states in memory.
            dtype: float16, which holds bfloat16's precision and more in the range of these states, or float32.
        """
        self._encode = encode
        _, positions, width = encode([UNCONDITIONAL]).shape
        place = None if folder is None else folder / "text" / f"{identity[:16]}-{dtype}"
        self._shards = Shards(place, "states", shape=(positions, width), dtype=dtype)
        self._rows: dict[str, int] = {}

    def __len__(self) -> int:
        """Return the number of different captions, the unconditional one among them."""
        return len(self._rows)

    @property
    def bytes_per_caption(self) -> int:
        """How much memory or disk one caption takes."""
        return self._shards.record_bytes

    @property
    def refusal(self) -> str:
        """Why the disk takes no more and states are kept in memory, "" while it takes them."""
        return self._shards.refusal

    def add(self, captions: Iterable[str], *, batch_size: int = 16, progress: Progress | None = None) -> None:
        """Encode the captions that aren't stored yet."""
        wanted = [caption for caption in dict.fromkeys([UNCONDITIONAL, *captions]) if caption not in self._rows]
        found = self._find(wanted)
        absent = [caption for caption, row in found.items() if row == ABSENT]
        with self._shards:
            for start in range(0, len(absent), batch_size):
                batch = absent[start : start + batch_size]
                states_BLD = self._encode(batch).detach().float().cpu()
                self._shards.append([_key(caption) for caption in batch], states_BLD.numpy())
                if progress is not None:
                    progress(start + len(batch), len(absent))
        self._shards.refresh()
        self._rows |= found | self._find(absent)

    def read(self, captions: Sequence[str]) -> Tensor:
        """Return the states of captions that were added, (B, L, D) in the store's dtype.

        Records that were damaged on disk are encoded again.
        """
        try:
            return torch.from_numpy(self._shards.read([self._rows[caption] for caption in captions]))
        except DamagedRecordsError as error:
            damaged = [caption for caption in captions if self._rows[caption] in error.rows]
        for caption in dict.fromkeys(damaged):
            del self._rows[caption]
        self.add(damaged)
        return torch.from_numpy(self._shards.read([self._rows[caption] for caption in captions]))

    def _find(self, captions: Sequence[str]) -> dict[str, int]:
        rows = self._shards.find([_key(caption) for caption in captions]).tolist()
        return dict(zip(captions, rows, strict=True))


def _key(caption: str) -> bytes:
    return hashlib.blake2b(caption.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()

"""Keyed randomness: every draw is a pure function of its key, so a resumed run needs no generator state.

Torch-free; tensors are drawn by handing `seed_for(...)` to a CPU `torch.Generator`.
"""

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def seed_for(*parts: object) -> int:
    """Return a 63-bit seed for a key such as (seed, "noise", epoch, position).

    BLAKE2b rather than `hash()`, which Python salts anew in every process; stable across machines and versions.
    """
    text = "\x1f".join(map(str, parts))
    return (
        int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little") >> 1
    )


def python_rng(*parts: object) -> random.Random:
    """Return a `random.Random` of its own for the key."""
    return random.Random(seed_for(*parts))


def numpy_rng(*parts: object) -> "np.random.Generator":
    """Return a counter-based numpy generator for the key."""
    import numpy as np

    return np.random.Generator(np.random.Philox(seed_for(*parts)))

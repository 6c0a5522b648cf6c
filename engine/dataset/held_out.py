"""Which pictures are kept from training to measure the loss on. Torch-free."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.rng import seed_for


def held_out(keys: Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    """Return for each picture whether it is held out: a share of them, rounded, but at least one if it is not 0.

    Each is drawn by its own key, so a picture that is added moves few others from one side to the other.
    """
    chosen_N = np.zeros(len(keys), bool)
    if share > 0 and keys:
        count = max(1, round(share * len(keys)))
        draws = [seed_for(seed, "held out", key) for key in keys]
        chosen_N[np.argsort(draws, kind="stable")[:count]] = True
    return chosen_N

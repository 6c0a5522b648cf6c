"""The planes of the memory table: what a step holds, as a function of the sizes of its batch. Torch-free."""

from typing import Literal

Attention = Literal["fused", "math", "sliced"]
"""Without scores; with all of them; with those of one head of one image at a time."""


def case_name(precision: str, attention: str, *, is_checkpointed: bool, has_hypernetwork: bool) -> str:
    """Return the key of planes in the table, such as "mixed checkpointed fused"."""
    words = (precision, "checkpointed" if is_checkpointed else "plain", attention, "hypernetwork")
    return " ".join(words[: 4 if has_hypernetwork else 3])


def features(batch: int, area: float, length: float, attention: Attention) -> tuple[float, ...]:
    """Return what a plane's coefficients multiply: 1, B, B p, B t, and for scores B p^2, B p t (sliced: p^2, p t).

    `area` is that of the latents over a 512 x 512 picture's, `length` that of the captions over 77 tokens.
    """
    linear = (1.0, batch, batch * area, batch * length)
    if attention == "fused":
        return linear
    images = batch if attention == "math" else 1
    return (*linear, images * area * area, images * area * length)

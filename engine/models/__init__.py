"""Model families: what they are, and how they are loaded and saved. Importing this loads no torch."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.models.sd import StableDiffusion


def _load_stable_diffusion(source: str, **options: Any) -> "StableDiffusion":  # noqa: ANN401  # those of load()
    from engine.models.sd import StableDiffusion

    return StableDiffusion.load(source, **options)


FAMILIES: dict[str, Callable[..., "StableDiffusion"]] = {
    "sd1": _load_stable_diffusion,
    "sd2": _load_stable_diffusion,
}

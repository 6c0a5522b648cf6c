"""The starter project: a tiny Stable Diffusion 1.x, and drawn pictures of a concept that it does not know."""

from pathlib import Path

__all__ = ["model_folder", "write_pictures"]


def model_folder() -> Path:
    """Return the diffusers folder of the starter model; it holds no tokenizer, since every SD 1.x shares CLIP's."""
    return Path(__file__).parent / "model"


def write_pictures(folder: Path, count: int = 40) -> None:
    """Draw `count` pictures of the concept the starter model does not know into `folder`, each with a `.caption`.

    The same `count` gives the same pictures on every call; `folder` is made where it is missing.
    """
    from sdtui.starter import draw

    draw.write_pictures(folder, count)

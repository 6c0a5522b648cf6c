"""What is known of a plan only after reading every caption and looking at every file. Torch-free.

Dimension key: N pictures.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.dataset.duplicates import DuplicateGroup, find_duplicates
from engine.errors import safe_text
from engine.plan import Plan
from engine.tokens import count_tokens, load_tokenizer

_SIDED = re.compile(r"\b(left|right)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanFacts:
    """What captions and files are like."""

    captions: tuple[str, ...]
    """Each picture's caption as it is first shown."""
    tokens_N: NDArray[np.int64]
    """Their tokens, without begin and end and before truncation."""
    num_sided: int = 0
    """Captions that say left or right of pictures that are mirrored."""
    duplicates: tuple[DuplicateGroup, ...] = ()
    old_npz: tuple[str, ...] = ()
    """sd-scripts' caches that are older than their pictures."""
    bad_masks: tuple[str, ...] = ()
    """Pictures without a mask, or with one of another size, where masks weigh the loss; each with what is wrong."""
    no_alpha: tuple[str, ...] = ()
    """Pictures that have no alpha channel where it is to weigh the loss."""


def gather_facts(
    plan: Plan, *, cache_dir: Path, v2: bool = False, cancel: Callable[[], bool] = lambda: False
) -> PlanFacts:
    """Read what the rules want to know; 100,000 captions take some seconds.

    Raises:
        EngineError: `cancel` said so.
    """
    captions = tuple(plan.caption(row, 0, epoch=1, step=0) for row in range(plan.num_images))
    tokens = count_tokens(captions, load_tokenizer(v2=v2), weighted=plan.settings.model.weighted_captions)
    memory = plan.settings.memory
    return PlanFacts(
        captions=captions,
        tokens_N=np.array(tokens, np.int64),
        num_sided=_count_sided(plan),
        duplicates=find_duplicates(plan.catalog, cache_dir=cache_dir, cancel=cancel),
        old_npz=_old_npz(plan) if memory.cache_latents or memory.cache_latents_to_disk else (),
        bad_masks=tuple(_bad_masks(plan)),
        no_alpha=tuple(_no_alpha(plan)),
    )


def _bad_masks(plan: Plan) -> Iterator[str]:
    if not plan.settings.loss.masked_loss:
        return
    sizes = plan.catalog.sizes_N2.tolist()
    for row, key in enumerate(plan.catalog.keys):
        folder = plan.subset_of(row).conditioning_data_dir
        if folder is None:
            continue
        mask = plan.find_mask(folder, row)
        if mask is None:
            yield f"{safe_text(key, limit=60)} has none"
            continue
        size = _header(mask)[0]
        if size and [*size] != sizes[row]:
            yield f"that of {safe_text(key, limit=60)} is {size[0]}x{size[1]}, not {sizes[row][0]}x{sizes[row][1]}"


def _no_alpha(plan: Plan) -> Iterator[str]:
    for row, key in enumerate(plan.catalog.keys):
        subset = plan.subset_of(row)
        has_file = subset.conditioning_data_dir is not None and plan.settings.loss.masked_loss
        if subset.alpha_mask and not has_file and not _header(Path(plan.catalog.paths[row]))[1]:
            yield safe_text(key, limit=60)


def _header(path: Path) -> tuple[tuple[int, int] | None, bool]:
    """Return a picture's size as stored and whether it has alpha; what can't be read is said when it is loaded."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size, image.has_transparency_data
    except (OSError, ValueError, Image.DecompressionBombError):
        return None, False


def _count_sided(plan: Plan) -> int:
    flips = [subset.augment.flip_aug for subset in plan.config.subsets]
    if not any(flips):
        return 0
    subsets = plan.catalog.subsets_N.tolist()
    pairs = zip(plan.catalog.captions, subsets, strict=True)
    return sum(1 for caption, subset in pairs if flips[subset] and _SIDED.search(caption))


def _old_npz(plan: Plan) -> tuple[str, ...]:
    """Look for caches where there are any: one listing for each folder rather than three looks for each picture."""
    from engine.npz import find_npz

    catalog = plan.catalog
    has_npz: dict[str, bool] = {}
    old = []
    for row, path in enumerate(catalog.paths):
        folder = os.path.dirname(path)  # noqa: PTH120 - a million paths
        if folder not in has_npz:
            with os.scandir(folder or ".") as entries:
                has_npz[folder] = any(entry.name.endswith(".npz") for entry in entries)
        if has_npz[folder]:
            width, height = catalog.sizes_N2[row].tolist()
            npz = find_npz(Path(path), (width, height))
            if npz is not None and npz.stat().st_mtime_ns < int(catalog.modified_N[row]):
                old.append(str(npz))
    return tuple(old)

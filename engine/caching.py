"""The caches of a training, filled ahead of it; and sd-scripts' own latent files, written on request.

Dimension key: C latent channels, h x w latent size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.captioning.journal import Change, Journal
from engine.dataset.buckets import crop_ltrb
from engine.errors import safe_text
from engine.latents import Latents
from engine.parts import fill_caches
from engine.plan import Plan
from engine.settings import Settings
from engine.telling import Teller

_FILES_AT_ONCE = 16  # Written after one note in the journal.


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What lies in the caches: latents, text states (None where captions change from step to step), .npz files."""

    latents: int
    texts: int | None
    npz_written: int = 0
    npz_kept: tuple[str, ...] = ()
    """Files that were there already and stay."""


def cache_ahead(settings: Settings, plan: Plan, *, cache_dir: Path, tell: Teller, writes_npz: bool = False) -> Filled:
    """Encode what the disk cache lacks of a plan's latents and text states; what is there is not encoded again.

    Raises:
        EngineError: The model or a picture can't be read, latents are not finite, or the disk is full.
    """
    latents, texts = fill_caches(settings, plan, cache_dir=cache_dir, tell=tell)
    written, kept = write_npz(plan, latents, tell.progress("save")) if writes_npz else (0, ())
    return Filled(latents=len(latents), texts=texts, npz_written=written, npz_kept=kept)


def write_npz(plan: Plan, latents: Latents, progress: Callable[[int, int | None], None]) -> tuple[int, tuple[str, ...]]:
    """Write the latents of each picture as sd-scripts does, `<stem>_<width>x<height>_sd.npz` beside it.

    Returns the number written, and the files that stay because something is there; `data undo` removes what is new.
    """
    written, kept = 0, []
    for number, subset in enumerate(plan.config.subsets):
        rows = np.flatnonzero(plan.catalog.subsets_N == number).tolist()
        files = {row: _npz_path(plan, row) for row in rows}
        kept += [safe_text(str(file)) for file in files.values() if file.exists()]
        todo = [row for row in rows if not files[row].exists()]
        if not todo:
            continue
        journal = Journal(subset.image_dir, "cache --npz")
        try:
            for start in range(0, len(todo), _FILES_AT_ONCE):
                part = todo[start : start + _FILES_AT_ONCE]
                journal.apply([_change(plan, latents, row, files[row]) for row in part])
                written += len(part)
                progress(written, plan.num_images)
        finally:
            journal.close(is_finished=True)
    return written, tuple(kept)


def _npz_path(plan: Plan, row: int) -> Path:
    picture = Path(plan.catalog.paths[row])
    width, height = plan.placement(row).size
    return picture.with_name(f"{picture.stem}_{width:04d}x{height:04d}_sd.npz")


def _change(plan: Plan, latents: Latents, row: int, file: Path) -> Change:
    place = plan.placement(row)
    arrays: dict[str, Any] = {
        "latents": _read(latents, [row], flipped=False),
        "original_size": np.array(place.size),
        "crop_ltrb": np.array(crop_ltrb(place.bucket, place.size)),
    }
    if plan.subset_of(row).augment.flip_aug:
        arrays["latents_flipped"] = _read(latents, [row], flipped=True)
    buffer = BytesIO()
    np.savez(buffer, **arrays)
    return Change(path=file, before=None, after=buffer.getvalue())


def _read(latents: Latents, rows: Sequence[int], *, flipped: bool) -> NDArray[np.float32]:
    """Return one picture's unscaled latents, (C, h, w) float32."""
    return np.asarray(latents.read(rows, [flipped])[0].float().numpy())

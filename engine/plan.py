"""What training will do, before it does: every picture's fate and every batch of every step. Torch-free.

Dimension key: N pictures, M items (a picture once for each repeat), K buckets of all data sets.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.dataset.augment import Augmentation, draw_augmentation
from engine.dataset.buckets import Placement, Placements, centre_crop, place_many
from engine.dataset.captions import CaptionOptions, process_caption
from engine.dataset.config import DatasetConfig, Subset, load_dataset_config
from engine.dataset.held_out import held_out
from engine.dataset.order import EpochBatches, epoch_batches, expand_repeats
from engine.dataset.scan import Catalog, scan
from engine.dataset.walk import PICTURE_SUFFIXES
from engine.errors import EngineError, Problem, ProblemsError, safe_text
from engine.rng import python_rng
from engine.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from engine.pixels import PixelJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The items of one forward pass: rows of the catalog, with the repeat that each stands for."""

    bucket: tuple[int, int]
    epoch: int
    """Counted from 1."""
    first_position: int
    """How many items of the epoch come before; keys the draws of noise and timesteps."""
    rows: tuple[int, ...]
    repeats: tuple[int, ...]

    @property
    def positions(self) -> range:
        """The items' positions in the epoch."""
        return range(self.first_position, self.first_position + len(self.rows))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bucket:
    """One size of one data set: how many pictures it holds, and how many items an epoch shows of them."""

    part: int
    size: tuple[int, int]
    images: int
    items: int
    batch_size: int

    @property
    def batches(self) -> int:
        """Batches in an epoch, the last of which may be short."""
        return -(-self.items // self.batch_size)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """A run as a pure function of its settings and the pictures found."""

    settings: Settings
    config: DatasetConfig
    catalog: Catalog
    buckets: tuple[Bucket, ...]
    bucket_N: "NDArray[np.int64]"
    """Each picture's number in `buckets`."""
    resized_N2: "NDArray[np.int32]"
    rows_M: "NDArray[np.int64]"
    repeats_M: "NDArray[np.int64]"
    batches_per_epoch: int
    problems: tuple[Problem, ...]
    processes: int = 1
    """Processes that share each step's batches; a step holds gradient_accumulation_steps batches for each of them."""
    held_out_N: "NDArray[np.bool_]"
    """Whether each picture is kept from training, to measure the loss on."""
    _epochs: dict[int, EpochBatches] = field(default_factory=dict)
    _masks: dict[Path, dict[str, Path]] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """Pictures, without their repeats."""
        return len(self.catalog.keys)

    @property
    def held_out_rows(self) -> tuple[int, ...]:
        """The pictures that are not trained on."""
        return tuple(self.held_out_N.nonzero()[0].tolist())

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; a step never spans two epochs, so its last one may hold fewer batches."""
        return -(-self.batches_per_epoch // self.batches_per_step)

    @property
    def batches_per_step(self) -> int:
        """Batches of an optimizer step, over all processes."""
        return self.settings.training.gradient_accumulation_steps * self.processes

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        training = self.settings.training
        if training.max_train_epochs is not None:
            return training.max_train_epochs * self.steps_per_epoch
        return training.max_train_steps

    @property
    def epochs(self) -> int:
        """Epochs of the run, the last of which may be cut short."""
        return -(-self.steps // self.steps_per_epoch)

    def batches_of(self, epoch: int) -> EpochBatches:
        """Return the order of an epoch, counted from 1; the last few are remembered."""
        found = self._epochs.get(epoch)
        if found is None:
            sizes = [bucket.batch_size for bucket in self.buckets]
            seed = self.settings.training.seed
            found = epoch_batches(self.bucket_N[self.rows_M], sizes, seed=seed, epoch=epoch)
            # Two are kept: the loading thread is in the next epoch while the last steps of this one are trained.
            for old in sorted(self._epochs)[:-1]:
                self._epochs.pop(old, None)
            self._epochs[epoch] = found
        return found

    def window(self, step: int) -> tuple[Batch, ...]:
        """Return the batches of an optimizer step, counted from 0, those of all processes."""
        epoch, index = divmod(step, self.steps_per_epoch)
        first = index * self.batches_per_step
        last = min(first + self.batches_per_step, self.batches_per_epoch)
        order = self.batches_of(epoch + 1)
        return tuple(self._batch(order, number, epoch + 1) for number in range(first, last))

    def _batch(self, order: EpochBatches, number: int, epoch: int) -> Batch:
        items = order.at(number)
        rows = self.rows_M[items]
        return Batch(
            bucket=self.buckets[int(self.bucket_N[rows[0]])].size,
            epoch=epoch,
            first_position=int(order.starts[number]),
            rows=tuple(rows.tolist()),
            repeats=tuple(self.repeats_M[items].tolist()),
        )

    def subset_of(self, row: int) -> Subset:
        """Return the subset a picture belongs to."""
        return self.config.subsets[int(self.catalog.subsets_N[row])]

    def placement(self, row: int) -> Placement:
        """Return where a picture goes when nothing is random."""
        bucket = self.buckets[int(self.bucket_N[row])].size
        width, height = self.catalog.sizes_N2[row].tolist()
        resized = int(self.resized_N2[row, 0]), int(self.resized_N2[row, 1])
        crop = centre_crop(resized, bucket)
        return Placement(size=(width, height), bucket=bucket, resized=resized, crop=crop)

    def cut_fractions(self) -> "NDArray[np.float64]":
        """Return the share of each picture that cropping throws away when nothing is random, 0 to 1, (N,)."""
        import numpy as np

        area_K = np.array([bucket.size[0] * bucket.size[1] for bucket in self.buckets], np.float64)
        resized_N2 = self.resized_N2.astype(np.float64)
        cut_N: NDArray[np.float64] = 1 - area_K[self.bucket_N] / (resized_N2[:, 0] * resized_N2[:, 1])
        return cut_N

    def caption(self, row: int, repeat: int, *, epoch: int, step: int) -> str:
        """Return the caption of one showing, a function of (seed, epoch, picture, repeat) and, in a warmup, step."""
        seed, key = self.settings.training.seed, self.catalog.keys[row]
        rng = python_rng(seed, "caption", epoch, key, repeat)
        options = self.subset_of(row).caption
        return process_caption(self.catalog.captions[row], options, rng, epoch=epoch, step=step, max_steps=self.steps)

    def still_caption(self, row: int) -> str:
        """Return the caption of a picture that is measured: whole, in its own order, with nothing dropped."""
        options = replace(
            self.subset_of(row).caption,
            shuffle_caption=False,
            caption_dropout_rate=0.0,
            caption_dropout_every_n_epochs=0,
            caption_tag_dropout_rate=0.0,
            token_warmup_step=0,
        )
        rng = python_rng("still", self.catalog.keys[row])
        return process_caption(self.catalog.captions[row], options, rng, epoch=1, step=0, max_steps=self.steps)

    def static_captions(self, options: Sequence[CaptionOptions]) -> list[str]:
        """Return the different captions of all pictures, with options for each subset that draw nothing."""
        rng = python_rng("static")
        captions = (
            process_caption(caption, options[subset], rng, epoch=1, step=0, max_steps=self.steps)
            for caption, subset in zip(self.catalog.captions, self.catalog.subsets_N.tolist(), strict=True)
        )
        return list(dict.fromkeys(captions))

    def augmentation(self, row: int, repeat: int, *, epoch: int) -> Augmentation:
        """Return what happens to a picture at one showing."""
        options, key = self.subset_of(row).augment, self.catalog.keys[row]
        seed = self.settings.training.seed
        return draw_augmentation(options, self.placement(row), seed=seed, epoch=epoch, key=key, repeat=repeat)

    def pixel_job(self, row: int, augmentation: Augmentation | None = None) -> "PixelJob":
        """Return how a picture becomes pixels; without an augmentation as it is cached."""
        from engine.pixels import PixelJob

        place = self.placement(row)
        subset = self.subset_of(row)
        return PixelJob(
            path=Path(self.catalog.paths[row]),
            size=place.size,
            orientation=int(self.catalog.orientations_N[row]),
            resized=augmentation.resized if augmentation else place.resized,
            crop=augmentation.crop if augmentation else place.crop,
            interpolation=subset.resize_interpolation,
            background=self.settings.dataset.background_color,
            augmentation=augmentation,
            max_pixels=self.settings.dataset.max_image_pixels,
        )

    def mask_job(self, row: int, augmentation: Augmentation | None = None) -> "PixelJob | None":
        """Return how the mask of a picture becomes pixels, None where the picture counts in full."""
        subset = self.subset_of(row)
        if subset.conditioning_data_dir is not None and self.settings.loss.masked_loss:
            mask = self._mask(subset.conditioning_data_dir, row)
            return replace(self.pixel_job(row, augmentation), path=mask, orientation=1)
        return replace(self.pixel_job(row, augmentation), shows_alpha=True) if subset.alpha_mask else None

    def _mask(self, folder: Path, row: int) -> Path:
        mask = self.find_mask(folder, row)
        if mask is None:
            raise EngineError(
                f"conditioning_data_dir: {safe_text(str(folder))} holds no mask for "
                f"{safe_text(Path(self.catalog.paths[row]).name)}; "
                "add one of that name, white where the picture counts in full"
            )
        return mask

    def find_mask(self, folder: Path, row: int) -> Path | None:
        """Return the file of a picture's name among the masks, None where there is none."""
        if folder not in self._masks:
            found = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in PICTURE_SUFFIXES)
            self._masks[folder] = {path.stem: path for path in found}
        return self._masks[folder].get(Path(self.catalog.paths[row]).stem)


def make_plan(
    settings: Settings,
    *,
    cache_dir: Path,
    progress: Callable[[int, int | None], None] = lambda _done, _total: None,
    cancel: Callable[[], bool] = lambda: False,
    processes: int = 1,
) -> Plan:
    """Scan the pictures and return the plan.

    Raises:
        ProblemsError: The data set's configuration is wrong.
        EngineError: There is not one picture to train on.
    """
    config = load_dataset_config(settings.flat())
    catalog = scan(config, cache_dir=cache_dir, progress=progress, cancel=cancel)
    if any(problem.severity == "error" for problem in catalog.problems):
        raise ProblemsError((*config.problems, *catalog.problems))
    if not len(catalog.keys):
        folders = ", ".join(str(subset.image_dir) for subset in config.subsets)
        raise EngineError(f"no pictures were found in {folders}: png, jpg, jpeg, webp and bmp files are read")
    return plan_of(settings, config, catalog, processes=processes)


def plan_of(settings: Settings, config: DatasetConfig, catalog: Catalog, *, processes: int = 1) -> Plan:
    """Return the plan for pictures that are scanned already; what the wizard calls when a setting changes."""
    import numpy as np

    part_N = np.array(config.part_of_subset, np.int64)[catalog.subsets_N]
    bucket_N = np.zeros(len(part_N), np.int64)
    resized_N2 = np.zeros((len(part_N), 2), np.int32)
    held_out_N = _held_out(settings, config, catalog, part_N)
    repeats_N = np.where(held_out_N, 0, catalog.repeats_N)
    buckets: list[Bucket] = []
    for number, part in enumerate(config.datasets):
        rows = np.flatnonzero(part_N == number)
        placed: Placements = place_many(
            catalog.sizes_N2[rows],
            part.resolutions,
            max_resolution=part.resolution,
            step=part.bucket_reso_steps,
            no_upscale=part.no_upscale,
        )
        bucket_N[rows] = placed.bucket_N + len(buckets)
        resized_N2[rows] = placed.resized_N2
        images = np.bincount(placed.bucket_N, minlength=len(placed.buckets))
        items = np.bincount(placed.bucket_N, weights=repeats_N[rows], minlength=len(placed.buckets))
        buckets += [
            Bucket(part=number, size=size, images=int(images[i]), items=int(items[i]), batch_size=part.batch_size)
            for i, size in enumerate(placed.buckets)
        ]
    rows_M, repeats_M = expand_repeats(repeats_N)
    return Plan(
        settings=settings,
        config=config,
        catalog=catalog,
        buckets=tuple(buckets),
        bucket_N=bucket_N,
        resized_N2=resized_N2,
        rows_M=rows_M,
        repeats_M=repeats_M,
        batches_per_epoch=sum(bucket.batches for bucket in buckets),
        problems=(*config.problems, *catalog.problems),
        processes=processes,
        held_out_N=held_out_N,
    )


def without(plan: Plan, paths: Collection[Path]) -> Plan:
    """Return the plan of the same run without some pictures.

    Raises:
        EngineError: There is none left.
    """
    import numpy as np

    catalog = plan.catalog
    kept = np.array([row for row, path in enumerate(catalog.paths) if Path(path) not in paths], np.int64)
    if not len(kept):
        raise EngineError(f"not one of the {len(catalog)} pictures can be read; look at them with `sdtui check`")
    return plan_of(plan.settings, plan.config, catalog.only(kept), processes=plan.processes)


def _held_out(
    settings: Settings, config: DatasetConfig, catalog: Catalog, part_N: "NDArray[np.int64]"
) -> "NDArray[np.bool_]":
    import numpy as np

    held_out_N = np.zeros(len(part_N), bool)
    for number, part in enumerate(config.datasets):
        rows = np.flatnonzero(part_N == number)
        seed = settings.training.seed if part.validation_seed is None else part.validation_seed
        held_out_N[rows] = held_out([catalog.keys[row] for row in rows], part.validation_split, seed)
    if len(held_out_N) and held_out_N.all():
        raise EngineError(
            f"validation_split holds out all {len(held_out_N)} pictures, so there is nothing to train on: lower it"
        )
    return held_out_N

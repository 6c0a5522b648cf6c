"""What bucketing makes of a data set, and what it would make of it under other settings. Torch-free; for a thread.

Dimension key: N pictures, K buckets.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.dataset.config import DatasetConfig, load_dataset_config
from engine.plan import Plan, plan_of
from engine.settings import Settings

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

MUCH = 0.1  # A cut that is worth a look.
_ASPECTS = (0.0, 0.4, 0.55, 0.7, 0.9, 1.12, 1.45, 1.85, 2.5, np.inf)
_ASPECT_NAMES = ("< 2:5", "1:2", "5:8", "4:5", "1:1", "5:4", "8:5", "2:1", "> 5:2")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BucketFacts:
    """One plan's buckets in numbers."""

    plan: Plan
    cut_N: Floats
    """Share of each picture that cropping throws away."""
    worst_N: Rows
    """Rows by what they lose, the most first."""
    pixels_cut: float
    """Share of all pixels that is thrown away."""
    num_enlarged: int
    max_cut_K: Floats
    """Share that the picture which loses most loses, for each bucket."""
    aspects: list[tuple[str, int]]
    """How many pictures there are of each shape, width to height."""
    sizes: list[tuple[str, int]]
    """How many pictures there are of each size, as the side of a square of the same area."""

    @property
    def num_short(self) -> int:
        """Buckets whose last batch is short."""
        return sum(short(bucket.items, bucket.batch_size) > 0 for bucket in self.plan.buckets)

    @property
    def num_much(self) -> int:
        """Pictures that lose more than a tenth."""
        return int((self.cut_N > MUCH).sum())

    def rows_of(self, bucket: int) -> Rows:
        """Return the rows of a bucket by what they lose, the most first."""
        rows_N: Rows = self.worst_N[self.plan.bucket_N[self.worst_N] == bucket]
        return rows_N


def short(items: int, batch_size: int) -> int:
    """Return how many pictures the last batch holds where it is not full, else 0."""
    return items % batch_size


def bucket_facts(plan: Plan) -> BucketFacts:
    """Return the buckets of a plan in numbers."""
    areas_K = np.array([bucket.size for bucket in plan.buckets], np.int64).reshape(-1, 2).prod(axis=1)
    kept_N = areas_K[plan.bucket_N]
    resized_N = plan.resized_N2.astype(np.int64).prod(axis=1)
    cut_N = np.asarray(1 - kept_N / resized_N, np.float64)
    max_cut_K = np.zeros(len(areas_K))
    np.maximum.at(max_cut_K, plan.bucket_N, cut_N)
    return BucketFacts(
        plan=plan,
        cut_N=cut_N,
        worst_N=np.argsort(-cut_N, kind="stable"),
        pixels_cut=float(1 - kept_N.sum() / resized_N.sum()),
        num_enlarged=int((plan.resized_N2 > plan.catalog.sizes_N2).any(axis=1).sum()),
        max_cut_K=max_cut_K,
        aspects=aspect_bins(plan),
        sizes=size_bins(plan),
    )


def planned_again(plan: Plan, settings: Settings) -> Plan | None:
    """Return the plan of the same pictures under other settings; None where these name other pictures.

    Raises:
        ProblemsError: The data sets can't be made so.
    """
    config = load_dataset_config(settings.flat())
    return plan_of(settings, config, plan.catalog) if _sources(config) == _sources(plan.config) else None


def _sources(config: DatasetConfig) -> list[tuple[object, ...]]:
    return [
        (subset.image_dir, subset.metadata_file, subset.recursive, subset.caption_extension, subset.num_repeats)
        for subset in config.subsets
    ]


def aspect_bins(plan: Plan) -> list[tuple[str, int]]:
    """Return how many pictures there are of each shape, width to height."""
    aspect_N = plan.catalog.sizes_N2[:, 0] / plan.catalog.sizes_N2[:, 1]
    counts, _ = np.histogram(aspect_N, bins=np.array(_ASPECTS))
    return [(name, int(count)) for name, count in zip(_ASPECT_NAMES, counts, strict=True)]


def size_bins(plan: Plan) -> list[tuple[str, int]]:
    """Return how many pictures there are of each size, as the side of a square of the same area."""
    side_N = np.sqrt(plan.catalog.sizes_N2.astype(np.int64).prod(axis=1))
    edges = [0, 256, 512, 768, 1024, 1536, 2048, np.inf]
    counts, _ = np.histogram(side_N, bins=np.array(edges))
    names = ["< 256", "256", "512", "768", "1024", "1536", "2048 +"]
    return [(name, int(count)) for name, count in zip(names, counts, strict=True)]

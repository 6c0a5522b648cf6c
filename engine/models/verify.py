"""Certifying a saved model: complete, well-shaped, of sane types, and finite to the last value."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.errors import EngineError, safe_text
from engine.models.hypernetwork_file import open_hypernetwork, sizes_text
from engine.models.inspect import HYPERNETWORK, ModelInfo, describe, trainable_family
from engine.models.keys import Family
from engine.models.lazy import LazyTensor
from engine.models.modules import architecture_shapes, differences
from engine.models.safetensors_io import is_finite
from engine.models.sd import part_configs
from engine.models.source import PART_NAMES, ModelSource, open_source

_FLOATS = {"F32", "F16", "BF16", "F64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was found; a model is sound if there are no problems. Warnings concern what it only carries along."""

    path: str
    what: str
    family: str
    layout: str
    prediction_type: str | None
    num_tensors: int
    num_bytes: int
    dtypes: dict[str, int]
    parameters: dict[str, int]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object of `verify --json`."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        """Return the report for a terminal."""
        types = ", ".join(f"{count} {name}" for name, count in self.dtypes.items())
        head = (
            f"{safe_text(self.path)}: {self.what}, {self.num_tensors} tensors ({types}), {self.num_bytes / 1e6:.1f} MB"
        )
        verdict = "sound: names, shapes and types fit, all values are finite" if self.ok else "NOT sound"
        found = [f"problem: {text}" for text in self.problems] + [f"warning: {text}" for text in self.warnings]
        return "\n".join([head, verdict, *found])


def verify(path: str | Path) -> VerifyReport:
    """Open a model anew and check names, shapes, types and every value, a piece at a time.

    Raises:
        EngineError: It can't be opened at all.
    """
    source = open_source(Path(path))
    info = describe(source)
    if info.what == HYPERNETWORK:
        return _of_hypernetwork(Path(path), info)
    return VerifyReport(
        path=str(path),
        what=info.what,
        family=info.family,
        layout=info.layout,
        prediction_type=info.prediction_type,
        num_tensors=info.num_tensors,
        num_bytes=info.num_bytes,
        dtypes=dict(info.dtypes),
        parameters=dict(info.parameters),
        problems=tuple(_problems(source, info)),
        warnings=(*info.warnings, *_warnings(source, info)),
    )


def _of_hypernetwork(path: Path, info: ModelInfo) -> VerifyReport:
    """Opening it has held every name and shape to its structure; what is left are types and values."""
    network = open_hypernetwork(path)
    tensors = network.tensors()
    kind = "layers " + ",".join(f"{size:g}" for size in network.structure.layers)
    return VerifyReport(
        path=str(path),
        what=f"a hypernetwork for widths {sizes_text(network.layers)}, {kind}, {network.step} steps",
        family="hypernetwork",
        layout="single_file",
        prediction_type=None,
        num_tensors=len(tensors),
        num_bytes=info.num_bytes,
        dtypes=dict(Counter(tensor.dtype for tensor in tensors.values())),
        parameters={"hypernetwork": sum(tensor.numel for tensor in tensors.values())},
        problems=tuple(_bad_values("hypernetwork", tensors)),
        warnings=(),
    )


def _problems(source: ModelSource, info: ModelInfo) -> Iterator[str]:
    try:
        family = trainable_family(info, None)
        yield from _misfits(source, info, family)
    except EngineError as error:
        yield str(error)
    for part in PART_NAMES:
        yield from _bad_values(part, source.parts[part])


def _bad_values(part: str, tensors: Mapping[str, LazyTensor]) -> Iterator[str]:
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS:
            yield f"{part}: {safe_text(name)} has the type {tensor.dtype}"
        if not _is_all_finite(tensor):
            yield f"{part}: {safe_text(name)} holds NaN or infinite values"


def _misfits(source: ModelSource, info: ModelInfo, family: Family) -> Iterator[str]:
    configs = part_configs(source, family, info.prediction_type or "epsilon")
    for part in PART_NAMES:
        shapes = architecture_shapes(part, configs[part])
        yield from (f"{part}: {text}" for text in differences(source.parts[part], shapes))


def _warnings(source: ModelSource, info: ModelInfo) -> Iterator[str]:
    if info.family == "sd2" and info.prediction_type is None:
        yield "nothing tells whether it predicts v or noise; other programs may guess wrong"
    bad = [name for name, tensor in source.parts["other"].items() if not _is_all_finite(tensor)]
    if bad:
        yield f"{len(bad)} tensors that training does not use hold NaN or infinite values, such as {safe_text(bad[0])}"


def _is_all_finite(tensor: LazyTensor) -> bool:
    return all(is_finite(piece) for piece in tensor.pieces())

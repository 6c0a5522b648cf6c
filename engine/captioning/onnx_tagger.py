"""Taggers that come as ONNX files: WD14 (selected_tags.csv), models with a tag_mapping.json, DeepDanbooru. Torch-free.

Dimension key: B pictures, T tags.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.captioning.base import CaptionerOptions, Described, Kind, identity_of
from engine.captioning.fetch import find_files, source_of
from engine.captioning.pictures import (
    DEEPDANBOORU_SIZE,
    WD14_SIZE,
    deepdanbooru_pixels,
    mapping_pixels,
    wd14_pixels,
)
from engine.captioning.tagging import Category, TagNames, check_thresholds, same_length
from engine.errors import EngineError, safe_text
from engine.pixels import Array
from engine.setting_types import CaptionerName

Names = tuple[tuple[str, ...], tuple[Category, ...]]

WD14_MODEL = "SmilingWolf/wd-v1-4-convnext-tagger-v2"  # sd-scripts' own choice.
DEEPDANBOORU_THRESHOLD = 0.5
_PROVIDERS = ("CUDAExecutionProvider", "ROCMExecutionProvider", "DmlExecutionProvider", "CoreMLExecutionProvider")
_CSV_CATEGORIES: Mapping[str, Category] = {"9": "rating", "0": "general", "4": "character"}
_MAPPING_CATEGORIES: Mapping[str, Category] = {"rating": "rating", "general": "general", "character": "character"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a family of ONNX taggers is laid out: its files, its input, its outputs."""

    tags_file: str
    models: tuple[str, ...]
    """Names of the model, the first that is there; "" for the only .onnx."""
    read_tags: Callable[[Path], Names]
    prepare: Callable[[Array, int], NDArray[np.float32]]
    size: int
    """Pixels of a side, where the model leaves it open."""
    is_logits: bool = False


def read_selected_tags(path: Path) -> Names:
    """Read selected_tags.csv: a row for each output with name and category (9 rating, 0 general, 4 character).

    Raises:
        EngineError: It is no such file.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise EngineError(f"{safe_text(str(path))}: can't be read ({safe_text(str(error))})") from error
    if not rows or not {"name", "category"} <= rows[0].keys():
        raise EngineError(f"{safe_text(str(path))}: expected the columns tag_id, name, category, count")
    names = tuple(str(row["name"]) for row in rows)
    return names, tuple(_CSV_CATEGORIES.get(str(row["category"]), "other") for row in rows)


def read_tag_mapping(path: Path) -> Names:
    """Read tag_mapping.json: by output number `{"tag", "category"}`, or the two tables idx_to_tag and tag_to_category.

    Raises:
        EngineError: It is no such file.
    """
    try:
        data: Any = json.loads(path.read_text("utf-8"))
        data = data.get("dataset_info", {}).get("tag_mapping", data)
        if "idx_to_tag" in data:
            kinds = data["tag_to_category"]
            data = {place: {"tag": tag, "category": kinds[tag]} for place, tag in data["idx_to_tag"].items()}
        rows = [data[str(place)] for place in range(len(data))]
        names = tuple(str(row["tag"]) for row in rows)
        return names, tuple(_MAPPING_CATEGORIES.get(str(row["category"]).lower(), "other") for row in rows)
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise EngineError(f"{safe_text(str(path))}: not a tag mapping ({safe_text(str(error))})") from error


def read_tags_txt(path: Path) -> Names:
    """Read DeepDanbooru's tags.txt: a line for each output.

    Raises:
        EngineError: It can't be read.
    """
    try:
        names = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, ValueError) as error:
        raise EngineError(f"{safe_text(str(path))}: can't be read ({safe_text(str(error))})") from error
    return names, tuple("rating" if name.startswith("rating:") else "general" for name in names)


LAYOUTS: Mapping[CaptionerName, tuple[Layout, ...]] = {
    "wd14": (
        Layout(tags_file="selected_tags.csv", models=("model.onnx", ""), read_tags=read_selected_tags,
               prepare=wd14_pixels, size=WD14_SIZE),
        Layout(tags_file="tag_mapping.json", models=("model_optimized.onnx", "model.onnx", ""),
               read_tags=read_tag_mapping, prepare=mapping_pixels, size=WD14_SIZE, is_logits=True),
    ),
    "deepdanbooru": (
        Layout(tags_file="tags.txt", models=("",), read_tags=read_tags_txt,
               prepare=deepdanbooru_pixels, size=DEEPDANBOORU_SIZE),
    ),
}  # fmt: skip


class OnnxTagger:
    """A tagger run by onnxruntime."""

    kind: Kind = "tags"

    def __init__(self, name: CaptionerName, folder: Path, options: CaptionerOptions) -> None:
        check_thresholds(options.tags)
        self.name: CaptionerName = name
        self._layout, model = _find_layout(name, folder)
        self._session = _session(model, options.num_threads)
        taken = self._session.get_inputs()[0]
        self._input, shape = taken.name, taken.shape
        self._batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 0
        side = shape[-1] if self._layout.prepare is mapping_pixels else shape[1] if len(shape) == 4 else None
        self._size = side if isinstance(side, int) and side > 0 else self._layout.size
        names, categories = self._layout.read_tags(folder / self._layout.tags_file)
        outputs = self._session.get_outputs()[0].shape[-1]
        if isinstance(outputs, int):
            same_length(names, outputs, str(folder / self._layout.tags_file))
        self.names = TagNames(names=names, categories=categories, options=options.tags)
        self._buffer: NDArray[np.float32] | None = None
        self.source = source_of(folder)
        self.identity = identity_of(folder, [model.name, self._layout.tags_file], name, options.tags)

    @property
    def provider(self) -> str:
        """Where the model runs, in onnxruntime's word."""
        return str(self._session.get_providers()[0])

    def prepare(self, pixels_HWC: Array) -> NDArray[np.float32]:
        """Return the model's input for one picture."""
        return self._layout.prepare(pixels_HWC, self._size)

    def scores(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return (B, T) scores of 0 to 1."""
        step = self._batch or len(batch)
        parts = []
        for start in range(0, len(batch), step):
            part = self._stacked(batch[start : start + step])
            parts.append(np.asarray(self._session.run(None, {self._input: part})[0], np.float32))
        scores_BT = np.concatenate(parts)[: len(batch)]
        if self._layout.is_logits:
            scores_BT = (1 / (1 + np.exp(-scores_BT))).astype(np.float32)
        return scores_BT

    def _stacked(self, pictures: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return pictures as one array, whose memory is used again: fresh pages would cost more than the copy.

        A model that takes just so many pictures gets whatever lies behind the last one, and its scores are cut off.
        """
        count = self._batch or len(pictures)
        if self._buffer is None or len(self._buffer) < count:
            self._buffer = np.zeros((count, *pictures[0].shape), np.float32)
        for place, picture in enumerate(pictures):
            self._buffer[place] = picture
        return self._buffer[:count]

    def describe(self, batch: Sequence[NDArray[np.float32]], keys: Sequence[str]) -> list[Described]:
        """Return tags and the likeliest scores of prepared pictures.

        Raises:
            EngineError: The model does not give a score for each tag, or scores that are no numbers.
        """
        scores_BT = self.scores(batch)
        same_length(self.names.names, scores_BT.shape[-1], self._layout.tags_file)
        if not np.isfinite(scores_BT).all():
            raise EngineError(f"{safe_text(keys[0])}: the tagger's scores are not finite; take another model")
        return [Described(text=self.names.text(row_T), scores=self.names.ranked(row_T)) for row_T in scores_BT]


def _find_layout(name: CaptionerName, folder: Path) -> tuple[Layout, Path]:
    for layout in LAYOUTS[name]:
        if (folder / layout.tags_file).is_file():
            return layout, _find_model(folder, layout.models)
    wanted = " or ".join(layout.tags_file for layout in LAYOUTS[name])
    raise EngineError(f"{safe_text(str(folder))}: has no {wanted}; put the model's .onnx and {wanted} into one folder")


def _find_model(folder: Path, names: Sequence[str]) -> Path:
    found = sorted(folder.glob("*.onnx"))
    for name in names:
        if name and (folder / name).is_file():
            return folder / name
        if not name and len(found) == 1:
            return found[0]
    what = f"several .onnx files, none called {names[0]}" if found else "no .onnx file"
    raise EngineError(f"{safe_text(str(folder))}: has {what}; other kinds of model are not loaded")


def _session(model: Path, num_threads: int) -> Any:  # noqa: ANN401 - onnxruntime has no types
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError("taggers need onnxruntime: pip install onnxruntime (or onnxruntime-gpu)") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    # Its threads would otherwise spin while they wait, on the cores that decode pictures.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    available = onnxruntime.get_available_providers()
    providers = [provider for provider in _PROVIDERS if provider in available]
    try:
        return onnxruntime.InferenceSession(model, options, providers=[*providers, "CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no base of their own.
        raise EngineError(
            f"{safe_text(str(model))}: not an ONNX model that can be run ({safe_text(str(error))})"
        ) from error


def make_tagger(name: CaptionerName, options: CaptionerOptions) -> OnnxTagger:
    """Return a tagger from a folder or the hub.

    Raises:
        EngineError: The model is not there or not of this kind.
    """
    source = options.model or (WD14_MODEL if name == "wd14" else "")
    if not source:
        raise EngineError(f"{name}: name the folder of its ONNX export and tags.txt with --model_dir")
    if name == "deepdanbooru":
        thresh = (
            DEEPDANBOORU_THRESHOLD if options.tags.thresh == CaptionerOptions().tags.thresh else options.tags.thresh
        )
        options = replace(options, tags=replace(options.tags, thresh=thresh))
    wanted = [(layout.tags_file, *layout.models) for layout in LAYOUTS[name]]
    return OnnxTagger(name, find_files(source, wanted, revision=options.revision), options)

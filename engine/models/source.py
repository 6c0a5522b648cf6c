"""A model on disk, opened but not read: a single file or a diffusers folder, its tensors by part. Torch-free."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from engine.errors import EngineError, safe_text
from engine.models.configs import Config, read_config, stated_configs
from engine.models.keys import (
    TEXT_PREFIX_SD1,
    TEXT_PREFIX_SD2,
    Family,
    Parts,
    from_single_file,
    normalised_text,
    normalised_vae,
    vae_from_any,
)
from engine.models.lazy import LazyTensor
from engine.models.pickles import open_pickle
from engine.models.safetensors_io import TensorFile, open_safetensors

Layout = Literal["single_file", "diffusers"]
PART_NAMES = ("unet", "text_encoder", "vae")
_STEMS = {
    "unet": ["diffusion_pytorch_model"],
    "vae": ["diffusion_pytorch_model"],
    "text_encoder": ["model", "pytorch_model"],
}
_ENDINGS = (
    "safetensors", "safetensors.index.json", "fp16.safetensors", "fp16.safetensors.index.json",
    "bin", "bin.index.json", "fp16.bin", "fp16.bin.index.json",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What a file looked like when it was opened."""

    path: Path
    inode: int
    num_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model's unread tensors by part, and what its files say about them.

    `parts` has "unet", "text_encoder", "vae" by diffusers' names and "other" by full name. `configs` holds what is
    stated: whole configs for a folder, the odd entry for a single file. `marks` are the top-level keys of a pickle.
    """

    path: Path
    layout: Layout
    parts: Parts[LazyTensor]
    configs: dict[str, Config]
    metadata: dict[str, str]
    marks: frozenset[str]
    stamps: tuple[Stamp, ...]
    text_family: Family | None = None
    """The family by the layout of a single file's text encoder."""

    @property
    def num_bytes(self) -> int:
        """The size of its files."""
        return sum(stamp.num_bytes for stamp in self.stamps)

    def is_intact(self) -> bool:
        """Tell whether the values can still be read: false once a file was written to in place.

        A file that was deleted, or replaced under its name, is still mapped as it was.
        """
        return all(_is_intact(stamp) for stamp in self.stamps)


def _is_intact(stamp: Stamp) -> bool:
    with contextlib.suppress(OSError):
        now = _stamp(stamp.path)
        return now.inode != stamp.inode or now == stamp
    return True


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return Stamp(path=path, inode=stat.st_ino, num_bytes=stat.st_size, modified_ns=stat.st_mtime_ns)


def open_source(path: Path) -> ModelSource:
    """Open a model file or folder of any supported kind.

    Raises:
        EngineError: It is missing, damaged, unsafe or no model.
    """
    if not path.exists():
        raise EngineError(f"{safe_text(str(path))}: no such model file or folder; check the path")
    return _open_folder(path) if path.is_dir() else _open_single(path)


def open_file(path: Path) -> TensorFile:
    """Open a file of tensors by what it is, whatever its name ends in.

    Raises:
        EngineError: It is missing, damaged, unsafe or holds no tensors.
    """
    shown = safe_text(str(path))
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise EngineError(
            f"{shown}: can't be read: {error.strerror or error}; check the path and its rights"
        ) from error
    if not head:
        raise EngineError(f"{shown}: is empty (0 bytes); download or copy it again")
    if head.startswith(b"version https://git-lfs"):
        raise EngineError(f"{shown}: is a Git LFS pointer, not the model; run `git lfs pull` where it came from")
    if head[8:9] == b"{":  # First: the length before it may begin with any byte, a pickle's first among them.
        return open_safetensors(path)
    if head.startswith((b"PK", b"\x80")):
        return open_pickle(path)
    raise EngineError(f"{shown}: is neither .safetensors nor a checkpoint that torch saved; download or copy it again")


def _open_single(path: Path) -> ModelSource:
    file = open_file(path)
    return ModelSource(
        path=path,
        layout="single_file",
        parts=from_single_file(file.tensors),
        configs=stated_configs(file.metadata, path),
        metadata=file.metadata,
        marks=file.marks,
        stamps=(_stamp(path),),
        text_family=_text_family(file.tensors),
    )


def _text_family(names: Iterable[str]) -> Family | None:
    for name in names:
        if name.startswith(TEXT_PREFIX_SD1):
            return "sd1"
        if name.startswith(TEXT_PREFIX_SD2):
            return "sd2"
    return None


def _open_folder(root: Path) -> ModelSource:
    if not (root / "model_index.json").exists() and not (root / "unet").is_dir():
        raise EngineError(
            f"{safe_text(str(root))}: is no diffusers model: neither model_index.json nor a unet folder is in it;"
            " name the folder that holds them, or a single model file"
        )
    files = {part: _part_files(root / part, part) for part in PART_NAMES}
    parts: Parts[LazyTensor] = {part: _gathered(files[part]) for part in PART_NAMES}
    parts["text_encoder"] = normalised_text(parts["text_encoder"])
    parts["vae"] = normalised_vae(parts["vae"])
    return ModelSource(
        path=root,
        layout="diffusers",
        parts={**parts, "other": {}},
        configs=dict(_folder_configs(root)),
        metadata={},
        marks=frozenset(),
        stamps=tuple(_stamp(file.path) for part in PART_NAMES for file in files[part]),
    )


def _folder_configs(root: Path) -> Iterator[tuple[str, Config]]:
    for part, name in [*((part, "config.json") for part in PART_NAMES), ("scheduler", "scheduler_config.json")]:
        path = root / part / name
        if path.exists():
            yield part, read_config(path)
    index = root / "model_index.json"
    if index.exists():
        yield "pipeline", read_config(index)


def _part_files(folder: Path, part: str) -> list[TensorFile]:
    """Open the weights in a part's folder: safetensors before pickles, full precision before fp16, shards as listed."""
    for ending in _ENDINGS:
        for stem in _STEMS[part]:
            path = folder / f"{stem}.{ending}"
            if path.exists():
                return [open_file(shard) for shard in _shards(path)]
    return []


def _shards(path: Path) -> list[Path]:
    if path.suffix != ".json":
        return [path]
    names = read_config(path).get("weight_map")
    values = {str(name) for name in names.values()} if isinstance(names, dict) else {""}
    if not all(name and Path(name).name == name for name in values):
        raise EngineError(
            f"{safe_text(str(path))}: lists files outside its folder; get the model again from its source"
        )
    return [path.parent / name for name in sorted(values)]


def _gathered(files: list[TensorFile]) -> dict[str, LazyTensor]:
    return {name: tensor for file in files for name, tensor in file.tensors.items()}


def with_vae(source: ModelSource, path: Path) -> ModelSource:
    """Return the model with the VAE of another file or folder: a whole model, or a VAE alone.

    Raises:
        EngineError: There is no VAE in it.
    """
    tensors, config, stamps = _open_vae(path)
    if not tensors:
        raise EngineError(f"{safe_text(str(path))}: holds no VAE; name a VAE or a whole model for --vae")
    configs = {**source.configs, "vae": config}
    return replace(source, parts={**source.parts, "vae": tensors}, configs=configs, stamps=(*source.stamps, *stamps))


def _open_vae(path: Path) -> tuple[dict[str, LazyTensor], Config, list[Stamp]]:
    if not path.is_dir():
        file = open_file(path)
        return vae_from_any(file.tensors), stated_configs(file.metadata, path).get("vae", {}), [_stamp(path)]
    folder = path if (path / "config.json").exists() else path / "vae"
    files = _part_files(folder, "vae")
    config = read_config(folder / "config.json") if files else {}
    return normalised_vae(_gathered(files)), config, [_stamp(file.path) for file in files]

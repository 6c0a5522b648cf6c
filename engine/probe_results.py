"""What probes have found, kept by content: the same model and settings need not be probed twice. Torch-free."""

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from engine.errors import EngineError
from engine.models.atomic import atomic_file
from engine.settings import Settings

if TYPE_CHECKING:
    from engine.models.source import ModelSource

ProbeName = Literal["prediction", "vae", "step"]
PROBES: tuple[ProbeName, ...] = get_args(ProbeName)
FILE = "probes.json"
KEPT = 500
_BLOCK = 65_536
_BLOCKS = 64
# What each probe's answer depends on, besides the model's content.
_DEPENDS: Mapping[ProbeName, tuple[str, ...]] = {
    "prediction": (),
    "vae": (),
    "step": (
        "mixed_precision", "optimizer_type", "optimizer_args", "gradient_checkpointing", "gradient_accumulation_steps",
        "train_text_encoder", "train_hypernetwork", "hypernetwork_layer_structure", "hypernetwork_weights", "use_ema",
        "xformers", "mem_eff_attn", "full_fp16", "full_bf16", "fused_backward_pass",
        "train_batch_size", "resolution", "dataset_config", "max_token_length", "learning_rate", "cache_latents",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What a probe found: a verdict, that verdict in a sentence, and the numbers it rests on.

    Verdicts: "epsilon", "v_prediction" or "undecided"; "safe", "close" or "overflows"; "works", "out-of-memory" or
    "not-finite".
    """

    name: ProbeName
    verdict: str
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def content_key(source: "ModelSource", name: ProbeName, settings: Settings, device: str = "") -> str:
    """Return what the answer of a probe depends on, hashed: the model's files and the settings that matter.

    Of each file the length and 64 blocks are read, 4 MB of a model of 4 GB: training changes every tensor.
    """
    digest = hashlib.blake2b(digest_size=16)
    for stamp in source.stamps:
        digest.update(f"{stamp.num_bytes}\n".encode())
        with stamp.path.open("rb") as file:
            for number in range(_BLOCKS):
                file.seek(stamp.num_bytes * number // _BLOCKS)
                digest.update(file.read(_BLOCK))
    values = settings.flat()
    depends = {setting: str(values[setting]) for setting in _DEPENDS[name]}
    digest.update(json.dumps([name, device if name == "step" else "", depends]).encode())
    return digest.hexdigest()


def known_results(cache_dir: Path, source: "ModelSource | None", settings: Settings, device: str) -> list[ProbeResult]:
    """Return what earlier probes of this model found, under these settings where they matter."""
    records = _read(cache_dir)
    if source is None or not records:
        return []
    found = []
    for name in PROBES:
        with contextlib.suppress(OSError, TypeError, KeyError):  # A file that went; a record of another version.
            record = records[content_key(source, name, settings, device)]
            found.append(ProbeResult(**{key: record[key] for key in ("name", "verdict", "message", "evidence")}))
    return found


def remember_results(cache_dir: Path, results: Mapping[str, ProbeResult]) -> None:
    """Keep results under their content keys; a cache that can't be written is left."""
    fresh = {key: {**result.as_json(), "time": time.time()} for key, result in results.items()}
    records = {**_read(cache_dir), **fresh}
    kept = dict(list(records.items())[-KEPT:])
    with contextlib.suppress(EngineError), atomic_file(cache_dir / FILE) as file:
        file.write(json.dumps(kept, indent=1).encode("utf-8"))


def _read(cache_dir: Path) -> dict[str, Any]:
    try:
        records = json.loads((cache_dir / FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return records if isinstance(records, dict) else {}


def asked(names: Sequence[str]) -> tuple[ProbeName, ...]:
    """Return the probes that were named, all where none was."""
    return tuple(name for name in PROBES if not names or name in names)

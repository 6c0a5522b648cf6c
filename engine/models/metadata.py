"""The modelspec metadata of a saved model, as other programs show it. Pure and torch-free.

Stability AI's model metadata standard 1.0.1; keys and values as sd-scripts writes them.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.models.inspect import PredictionType
from engine.models.keys import Family

_IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a saved model says of itself.

    `words` are free texts by their bare name: title, author, description, license, tags, usage_hint, thumbnail,
    merged_from, trigger_phrase, preprocessor, is_negative_embedding; empty ones are left out.
    `resolution` is (width, height) in pixels; left out it is the family's own. `timestamps` are Unix seconds.
    """

    family: Family
    prediction_type: PredictionType
    timestamp: float
    implementation_version: str
    output_name: str = ""
    resolution: tuple[int, int] | None = None
    clip_skip: int | None = None
    min_timestep: int | None = None
    max_timestep: int | None = None
    words: Mapping[str, str | None] = field(default_factory=dict)
    is_hypernetwork: bool = False


def modelspec(spec: ModelSpec) -> dict[str, str]:
    """Return the `modelspec.*` metadata; the date is local time."""
    is_v = spec.prediction_type == "v_prediction"
    title = spec.words.get("title") or spec.output_name or f"Checkpoint@{spec.timestamp}"
    found = {
        "architecture": _architecture(spec.family, is_v=is_v) + ("/hypernetwork" if spec.is_hypernetwork else ""),
        "implementation": _IMPLEMENTATION,
        "title": title,
        "resolution": _resolution(spec, is_v=is_v),
        "sai_model_spec": "1.0.1",
        "date": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(int(spec.timestamp))),
        "prediction_type": "v" if is_v else "epsilon",
        "implementation_version": spec.implementation_version,
        **{name: text for name, text in spec.words.items() if text and name != "title"},
    }
    if spec.min_timestep is not None or spec.max_timestep is not None:
        last = 1000 if spec.max_timestep is None else spec.max_timestep
        found["timestep_range"] = f"{spec.min_timestep or 0},{last}"
    if spec.clip_skip is not None:
        found["encoder_layer"] = str(spec.clip_skip)
    return {f"modelspec.{name}": text for name, text in found.items()}


def _architecture(family: Family, *, is_v: bool) -> str:
    if family == "sd1":
        return "stable-diffusion-v1"
    return "stable-diffusion-v2-768-v" if is_v else "stable-diffusion-v2-512"


def _resolution(spec: ModelSpec, *, is_v: bool) -> str:
    own = 768 if spec.family == "sd2" and is_v else 512
    width, height = spec.resolution or (own, own)
    return f"{width}x{height}"

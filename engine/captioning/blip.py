"""Captions by BLIP, through transformers.

Dimension key: B pictures, L tokens, V vocabulary.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.captioning.base import CaptionerOptions, Described, Kind, identity_of
from engine.captioning.fetch import find_files, source_of
from engine.captioning.pictures import blip_pixels
from engine.errors import EngineError, safe_text
from engine.librarylog import quieten
from engine.pixels import Array
from engine.rng import seed_for
from engine.setting_types import CaptionerName

BLIP_MODEL = "Salesforce/blip-image-captioning-large"  # What sd-scripts' weights became.
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_BESIDES = (
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Blip:
    """BLIP with nucleus sampling (each picture's draws keyed by its name) or beam search."""

    name: CaptionerName = "blip"
    kind: Kind = "caption"

    def __init__(self, folder: Path, options: CaptionerOptions) -> None:
        from transformers import AutoTokenizer, BlipForConditionalGeneration
        from transformers.utils.logging import disable_progress_bar

        quieten()
        disable_progress_bar()
        _check(folder, options)
        self._options = options
        try:
            model: Any = BlipForConditionalGeneration.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, dtype=_DTYPES[options.mixed_precision]
            )
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            message = f"not a BLIP model that can be loaded ({safe_text(str(error))})"
            raise EngineError(f"{safe_text(str(folder))}: {message}") from error
        self._model = model.to(_device()).eval()
        self._pixels = _read_preprocessor(folder / "preprocessor_config.json")
        self.source = source_of(folder)
        self.identity = identity_of(folder, [_CONFIG, _WEIGHTS], options)

    def prepare(self, pixels_HWC: Array) -> NDArray[np.float32]:
        """Return (RGB, height, width) float32."""
        return blip_pixels(pixels_HWC, *self._pixels)

    def describe(self, batch: Sequence[NDArray[np.float32]], keys: Sequence[str]) -> list[Described]:
        """Return the captions of prepared pictures."""
        options, model = self._options, self._model
        weight = next(model.parameters())
        pixels_BCHW = torch.from_numpy(np.stack(batch)).to(weight.device, weight.dtype)
        ways: dict[str, Any] = {"num_beams": max(1, options.num_beams)}
        if not options.beam_search:
            ways = {"num_beams": 1, "logits_processor": [KeyedNucleus(options.top_p, options.seed, keys)]}
        with torch.no_grad():
            tokens_BL = model.generate(
                pixel_values=pixels_BCHW,
                do_sample=False,
                min_length=options.min_length,
                max_length=options.max_length,
                **ways,
            )
        # The first token says that a caption begins.
        texts = self._tokenizer.batch_decode(tokens_BL[:, 1:], skip_special_tokens=True)
        return [Described(text=" ".join(text.split())) for text in texts]


class KeyedNucleus:
    """Draws from the likeliest tokens that make up `top_p` (Holtzman et al. 2020, arXiv:1904.09751).

    This is the Gumbel trick: the token with the largest sum of log-probability and Gumbel noise is a draw from the
    distribution. The noise is a function of seed, picture and place, so a caption depends neither on the batch nor on
    what was captioned before.
    """

    def __init__(self, top_p: float, seed: int, keys: Sequence[str]) -> None:
        self._top_p = top_p
        self._seed = seed
        self._keys = keys

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return (B, V) scores whose largest is the token drawn."""
        probabilities_BV = scores.float().softmax(-1)
        sorted_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True, stable=True)
        # The first token that passes the share is still in.
        outside_BV = (sorted_BV.cumsum(-1) - sorted_BV) >= self._top_p
        outside_BV[:, 0] = False
        dropped_BV = torch.zeros_like(outside_BV).scatter(-1, order_BV, outside_BV)
        noise_BV = torch.stack([self._noise(key, input_ids.shape[-1], scores.shape[-1]) for key in self._keys])
        drawn_BV = probabilities_BV.log() + noise_BV.to(scores.device)
        return drawn_BV.masked_fill(dropped_BV, -torch.inf)

    def _noise(self, key: str, place: int, size: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_for("caption", self._seed, key, place))
        exponential = torch.empty(size).exponential_(generator=generator)
        return -exponential.log()


def _check(folder: Path, options: CaptionerOptions) -> None:
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise EngineError(f"{safe_text(str(folder))}: has no {name}; only safetensors are loaded")
    if not 0 < options.top_p <= 1:
        raise EngineError(f"--top_p {options.top_p}: expected a number above 0, up to 1")
    if not 0 <= options.min_length <= options.max_length:
        raise EngineError(
            f"--min_length {options.min_length}: larger than --max_length {options.max_length}, or negative"
        )


def _device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _read_preprocessor(path: Path) -> tuple[tuple[int, int], tuple[float, ...], tuple[float, ...]]:
    """Return (width, height), mean and deviation; CLIP's at 384 pixels where the file says nothing."""
    try:
        data: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        size = data.get("size", {"width": 384, "height": 384})
        size = {"width": size, "height": size} if isinstance(size, int) else size
        mean, std = tuple(data.get("image_mean", _CLIP_MEAN)), tuple(data.get("image_std", _CLIP_STD))
        return (int(size["width"]), int(size["height"])), mean, std
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise EngineError(f"{safe_text(str(path))}: can't be read ({safe_text(str(error))})") from error


def make_blip(options: CaptionerOptions) -> Blip:
    """Return BLIP from a folder or the hub.

    Raises:
        EngineError: The model is not there or not of this kind.
    """
    wanted = [(_CONFIG, _WEIGHTS)]
    source = options.model or BLIP_MODEL
    return Blip(find_files(source, wanted, optional=_BESIDES, revision=options.revision), options)

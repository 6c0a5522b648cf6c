"""The captioners by name; adding one touches this table and the Literal in engine/setting_types.py. Torch-free."""

from collections.abc import Callable, Mapping
from functools import partial

from engine.captioning.base import Captioner, CaptionerOptions
from engine.captioning.onnx_tagger import make_tagger
from engine.setting_types import CaptionerName


def _blip(options: CaptionerOptions) -> Captioner:
    from engine.captioning.blip import make_blip

    return make_blip(options)


CAPTIONERS: Mapping[CaptionerName, Callable[[CaptionerOptions], Captioner]] = {
    "blip": _blip,
    "wd14": partial(make_tagger, "wd14"),
    "deepdanbooru": partial(make_tagger, "deepdanbooru"),
}

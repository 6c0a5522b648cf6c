"""The memory forecast in the wizard: a few words that move with every change, and the cheapest way to fit."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError
from engine.hardware import Card, graphics_cards
from engine.memory.fit import Way, has_bf16, ways_to_fit
from engine.memory.forecast import Forecast
from engine.memory.of_run import calibrated, request_of_run, with_own_unet
from engine.memory.verdict import GIB, verdict
from engine.run import cache_dir
from engine.settings import Settings

if TYPE_CHECKING:
    from engine.models.source import ModelSource
    from engine.plan import Plan

_MARKS = {"green": "", "amber": " tight", "red": " TOO MUCH"}


@lru_cache(maxsize=1)
def card() -> Card | None:
    """Return this machine's first graphics card, asked once: what is free counts from when the wizard was opened."""
    return next(iter(graphics_cards()), None)


def memory_words(settings: Settings, plan: "Plan | None") -> str:
    """Return what a run needs of graphics memory, and of the card where there is one; nothing where it is not known."""
    found = card()
    memory = _weigh(settings, plan, found) if found or settings.model.pretrained_model_name_or_path else None
    if memory is None:
        return ""
    if found is None:
        return f"{memory.total_bytes / GIB:.1f}G on a card"
    judged = verdict(memory, found.free_bytes)
    return f"{memory.total_bytes / GIB:.1f}/{found.free_bytes / GIB:.0f}G{_MARKS[judged.color]}"


def cheapest_way(settings: Settings, plan: "Plan | None") -> Way | None:
    """Return the cheapest change that makes the run fit the card; None where it fits, or nothing helps."""
    found = card()
    if found is None or _weigh(settings, plan, found) is None:
        return None

    def weigh(changed: Settings) -> Forecast:
        is_planned = (changed.training.train_batch_size, changed.dataset.resolution) == (
            settings.training.train_batch_size,
            settings.dataset.resolution,
        )
        memory = _weigh(changed, plan if is_planned else None, found)
        if memory is None:
            raise EngineError("this UNet's memory is not known: sdtui check finds it out")
        return memory

    try:
        return next(iter(ways_to_fit(settings, weigh, found.free_bytes, can_bf16=has_bf16(found))), None)
    except EngineError:
        return None


def _weigh(settings: Settings, plan: "Plan | None", found: Card | None) -> Forecast | None:
    source, info = _model(settings.model.pretrained_model_name_or_path, settings.model.vae)
    request = request_of_run(settings, plan=plan, info=info, card=found)
    folder = Path(settings.memory.cache_dir) if settings.memory.cache_dir else cache_dir()
    try:
        request = with_own_unet(request, source, cache_dir=folder, may_trace=False)
    except (EngineError, KeyError):  # Not traced yet, which takes too long here.
        return None
    return calibrated(request, cache_dir=folder, card=found)


@lru_cache(maxsize=4)
def _model(name: str, vae: str | None) -> "tuple[ModelSource | None, Any]":
    from engine.preflight import look_at_model

    try:
        return look_at_model(name, vae) if name else (None, None)
    except EngineError:
        return None, None


def values_of(way: Way) -> Mapping[str, object]:
    """Return a way's changes as the wizard takes them."""
    return {name: ",".join(map(str, value)) if isinstance(value, tuple) else value for name, value in way.values}

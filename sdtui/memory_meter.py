"""The memory forecast in the wizard: a few words that move with every change, and the ways to fit."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, Problem, safe_text
from engine.hardware import Card, graphics_cards
from engine.memory.fit import Way, has_bf16, ways_to_fit
from engine.memory.forecast import Forecast
from engine.memory.of_run import calibrated, family_of_run, fixed_by_file, request_of_run, unet_config, with_own_unet
from engine.memory.verdict import GIB, verdict
from engine.run import cache_dir
from engine.settings import Settings

if TYPE_CHECKING:
    from engine.models.inspect import ModelInfo
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


def memory_problem(settings: Settings, plan: "Plan | None") -> Problem | None:
    """Return the finding that a run does not fit the card for certain; None where it does, or that is not known.

    A warning, since a forecast is no measurement: whoever knows better can start the run.
    """
    found = card()
    memory = _weigh(settings, plan, found) if found else None
    if found is None or memory is None:
        return None
    judged = verdict(memory, found.free_bytes)
    if judged.color == "green":
        return None
    return Problem(
        code="memory",
        severity="warning",
        where="gradient_checkpointing",
        message=f"training {judged} on {safe_text(found.name)}",
        fix="m in Options lists the ways to fit",
        reason=f"the peak is in the {memory.peak_phase} phase",
        setting="gradient_checkpointing",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How a run fits the card, in a sentence, and the ways to make it fit, the cheapest first."""

    text: str
    ways: tuple[Way, ...] = ()


def fit_of(settings: Settings, plan: "Plan | None") -> Fit:
    """Return how a run fits this machine's card; takes up to a second, so it belongs into a thread."""
    found = card()
    if found is None:
        return Fit(text="no graphics card here to fit; sdtui check --gpu_memory_gib N names one")

    def weigh(changed: Settings) -> Forecast:
        memory = _weigh(changed, plan, found)
        if memory is None:
            raise EngineError("this UNet's memory is not known here; sdtui check finds it out")
        return memory

    try:
        judged = verdict(weigh(settings), found.free_bytes)
        ways = ways_to_fit(settings, weigh, found.free_bytes, can_bf16=has_bf16(found), fixed=fixed_by_file(plan))
    except EngineError as error:
        return Fit(text=str(error))
    rest = "" if ways or judged.color == "green" else "; no change of settings helps"
    return Fit(text=f"training {judged} on {safe_text(found.name)}{rest}", ways=ways)


def _weigh(settings: Settings, plan: "Plan | None", found: Card | None) -> Forecast | None:
    config, info = _model(settings.model.pretrained_model_name_or_path, settings.model.vae)
    request = request_of_run(settings, plan=plan, info=info, card=found)
    folder = Path(settings.memory.cache_dir) if settings.memory.cache_dir else cache_dir()
    try:
        request = with_own_unet(request, config, cache_dir=folder, may_trace=False)
    except (EngineError, KeyError):  # Not traced yet, which takes too long here.
        return None
    return calibrated(request, cache_dir=folder, card=found)


@lru_cache(maxsize=4)
def _model(name: str, vae: str | None) -> "tuple[Mapping[str, Any] | None, ModelInfo | None]":
    """Return the config of a model's UNet, and what its file is; nothing where it can't be read."""
    from engine.preflight import look_at_model

    try:
        source, info = look_at_model(name, vae) if name else (None, None)
        return unet_config(source, family_of_run(Settings(), info)), info
    except EngineError:
        return None, None


def values_of(way: Way) -> Mapping[str, object]:
    """Return a way's changes as the wizard takes them."""
    return {name: ",".join(map(str, value)) if isinstance(value, tuple) else value for name, value in way.values}

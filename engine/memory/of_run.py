"""The memory forecast of a run: its model, its largest bucket, its samples, its card. Torch-free."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, Problem, safe_text
from engine.hardware import Card
from engine.memory.calibration import load_calibration
from engine.memory.fit import has_bf16, ways_to_fit
from engine.memory.forecast import Forecast, forecast
from engine.memory.own_table import known_table, table_for
from engine.memory.request import FAMILY_NAMES, FamilyName, Request, Size, request_for
from engine.memory.verdict import verdict
from engine.settings import Settings

if TYPE_CHECKING:
    from engine.models.inspect import ModelInfo
    from engine.models.source import ModelSource
    from engine.plan import Plan
    from engine.preflight import Files
    from engine.prompts import SamplePrompt

_PLANNED = ("train_batch_size", "resolution")


def family_of_run(settings: Settings, info: "ModelInfo | None") -> FamilyName:
    """Return the family that a file is of, else the one that the settings say; SD 1.x where neither tells."""
    for name in FAMILY_NAMES:
        if info is not None and info.family == name:
            return name
    return "sd2" if settings.model.v2 else "sd1"


def request_of_run(
    settings: Settings,
    *,
    plan: "Plan | None" = None,
    info: "ModelInfo | None" = None,
    prompts: "Sequence[SamplePrompt]" = (),
    card: Card | None = None,
) -> Request:
    """Return what a run's forecast depends on, the UNet being the family's."""
    batches: list[tuple[Size, int]] = []
    if plan is not None:
        batches = [(bucket.size, min(bucket.batch_size, bucket.items)) for bucket in plan.buckets if bucket.items]
    return request_for(
        settings,
        family_of_run(settings, info),
        batches=batches,
        sample_sizes=[(prompt.width, prompt.height) for prompt in prompts],
        capability=card.capability if card else (0, 0),
    )


def with_own_unet(
    request: Request, source: "ModelSource | None", *, cache_dir: Path, may_trace: bool = True
) -> Request:
    """Return a request with the table of the model's own UNet, where that is not the family's.

    Raises:
        EngineError: A UNet that is not known can't be traced.
        KeyError: It would have to be traced, and must not be.
    """
    config = _unet_config(request, source)
    if config is None:
        return request
    find = table_for if may_trace else known_table
    return replace(request, unet=find(config, request.family, request.case, cache_dir=cache_dir))


def _unet_config(request: Request, source: "ModelSource | None") -> Mapping[str, Any] | None:
    from engine.models.configs import model_config

    if source is None or request.family == "sdxl" or not source.parts["unet"]:
        return None
    return model_config("unet", source.parts["unet"], request.family, source.configs.get("unet", {}))


def calibrated(request: Request, *, cache_dir: Path, card: Card | None) -> Forecast:
    """Return the forecast, corrected by what runs on this machine's card have measured."""
    return forecast(request, load_calibration(cache_dir, calibration_key(request, card)) if card else None)


def calibration_key(request: Request, card: Card | None) -> str:
    """Return what a calibration holds for: the card, the UNet, precision, checkpointing and attention."""
    return (
        f"{card.name if card else 'unknown'} | {request.unet.hash if request.unet else request.family} | {request.case}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The forecast of a run, None where it can't be made, and what is to be said about it."""

    memory: Forecast | None
    problems: tuple[Problem, ...]


def memory_outlook(
    settings: Settings,
    *,
    plan: "Plan | None",
    files: "Files",
    prompts: "Sequence[SamplePrompt]",
    card: Card | None,
    cache_dir: Path,
) -> Outlook:
    """Return the forecast of a run whose files and pictures were looked at; a UNet that is not known is traced."""
    info = files.info
    if info is not None and info.family == "other":
        return Outlook(memory=None, problems=())

    before = settings.flat()

    def weigh(changed: Settings) -> Forecast:
        # Another batch or resolution makes other buckets; those are only known once a plan is made of them.
        after = changed.flat()
        is_planned = all(before[name] == after[name] for name in _PLANNED)
        request = request_of_run(changed, plan=plan if is_planned else None, info=info, prompts=prompts, card=card)
        request = with_own_unet(request, files.source, cache_dir=cache_dir)
        return calibrated(request, cache_dir=cache_dir, card=card)

    try:
        memory = weigh(settings)
    except EngineError as error:
        said = Problem(code="memory-unknown", severity="info", where="", message=str(error))
        return Outlook(memory=None, problems=(said,))
    free = card.free_bytes if card else 0
    return Outlook(memory=memory, problems=_judged(settings, memory, weigh, card) if card and free else ())


def _judged(
    settings: Settings, memory: Forecast, weigh: Callable[[Settings], Forecast], card: Card
) -> tuple[Problem, ...]:
    judged = verdict(memory, card.free_bytes)
    if judged.color == "green":
        return ()
    ways = ways_to_fit(settings, weigh, card.free_bytes, can_bf16=has_bf16(card))
    remedy = " or ".join(way.as_set() for way in ways[:3])
    return (
        Problem(
            code="memory",
            severity="error" if judged.color == "red" else "warning",
            where="",
            message=f"training {judged} on {safe_text(card.name)}",
            fix=remedy or "no change of settings helps: take a larger card",
            reason=f"the peak is in the {memory.peak_phase} phase; see docs/memory.md",
            values=ways[0].values if ways else (),
        ),
    )

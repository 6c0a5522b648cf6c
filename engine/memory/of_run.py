"""The memory forecast of a run: its model, its largest bucket, its samples, its card. Torch-free."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.dataset.keys import PART_SETTINGS
from engine.errors import EngineError, Problem, safe_text
from engine.hardware import Card
from engine.memory.calibration import load_calibration
from engine.memory.fit import has_bf16, ways_to_fit
from engine.memory.forecast import Forecast, forecast
from engine.memory.own_table import known_table, table_for
from engine.memory.request import FAMILY_NAMES, FamilyName, Request, Size, request_for
from engine.memory.verdict import verdict
from engine.settings import Settings

_NO_WAY = "no change of settings helps: take a larger card, or smaller batches or resolution in the data-set file"

if TYPE_CHECKING:
    from engine.models.inspect import ModelInfo
    from engine.models.source import ModelSource
    from engine.plan import Plan
    from engine.preflight import Files
    from engine.prompts import SamplePrompt


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
    """Return what a run's forecast depends on, the UNet being the family's; the plan may be of other settings."""
    return request_for(
        settings,
        family_of_run(settings, info),
        batches=_batches(plan, settings) if plan else (),
        sample_sizes=[(prompt.width, prompt.height) for prompt in prompts],
        capability=card.capability if card else (0, 0),
    )


def _batches(plan: "Plan", settings: Settings) -> list[tuple[Size, int]]:
    """Return each bucket's size and batch, as they would be with the batch size and resolution of settings."""
    planned, wanted = plan.settings.dataset.resolution, settings.dataset.resolution
    batches = []
    for bucket in plan.buckets:
        given = plan.config.datasets[bucket.part].given
        size, batch = bucket.size, bucket.batch_size
        if "batch_size" not in given:
            batch = settings.training.train_batch_size
        if "resolution" not in given and planned and wanted and planned != wanted:
            share = math.sqrt(math.prod(wanted) / math.prod(planned))
            size = (round(size[0] * share), round(size[1] * share))
        if bucket.items:
            batches.append((size, min(batch, bucket.items)))
    return batches


def fixed_by_file(plan: "Plan | None") -> frozenset[str]:
    """Return the settings that do nothing, since the data-set file gives its own values."""
    parts = plan.config.datasets if plan else ()
    return frozenset(PART_SETTINGS[key] for part in parts for key in part.given)


def unet_config(source: "ModelSource | None", family: FamilyName) -> Mapping[str, Any] | None:
    """Return the config of a model's UNet; None where the family's own has to do."""
    from engine.models.configs import model_config

    if source is None or family == "sdxl" or not source.parts["unet"]:
        return None
    return model_config("unet", source.parts["unet"], family, source.configs.get("unet", {}))


def with_own_unet(
    request: Request, config: Mapping[str, Any] | None, *, cache_dir: Path, may_trace: bool = True
) -> Request:
    """Return a request with the table of the model's own UNet, where its config is not the family's.

    Raises:
        EngineError: A UNet that is not known can't be traced.
        KeyError: It would have to be traced, and must not be.
    """
    find = table_for if may_trace else known_table
    return replace(request, unet=find(config, request.family, request.case, cache_dir=cache_dir))


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

    config = unet_config(files.source, family_of_run(settings, info))

    def weigh(changed: Settings) -> Forecast:
        request = request_of_run(changed, plan=plan, info=info, prompts=prompts, card=card)
        request = with_own_unet(request, config, cache_dir=cache_dir)
        return calibrated(request, cache_dir=cache_dir, card=card)

    try:
        memory = weigh(settings)
    except EngineError as error:
        said = Problem(code="memory-unknown", severity="info", where="", message=str(error))
        return Outlook(memory=None, problems=(said,))
    free = card.free_bytes if card else 0
    judged = verdict(memory, free) if card and free else None
    if card is None or judged is None or judged.color == "green":
        return Outlook(memory=memory, problems=())
    ways = ways_to_fit(settings, weigh, free, can_bf16=has_bf16(card), fixed=fixed_by_file(plan))
    problem = Problem(
        code="memory",
        severity="error" if judged.color == "red" else "warning",
        where="",
        message=f"training {judged} on {safe_text(card.name)}",
        fix="one of these, the cheapest first" if ways else _NO_WAY,
        reason=f"the peak is in the {memory.peak_phase} phase; see docs/memory.md",
        values=ways[0].values if ways else (),
        ways=tuple((f"{way.verdict}; {way.loss}", way.values) for way in ways),
    )
    return Outlook(memory=memory, problems=(problem,))

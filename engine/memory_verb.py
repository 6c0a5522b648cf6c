"""The verb `memory`: a graphics-memory forecast from the classic flags, without a data set. Torch-free."""

import argparse
import json
import sys
from collections.abc import Callable

from engine import flags
from engine.display import size
from engine.hardware import card_to_compare, graphics_cards
from engine.memory.fit import Way, has_bf16, ways_to_fit
from engine.memory.forecast import Forecast
from engine.memory.of_run import calibrated, with_own_unet
from engine.memory.request import FAMILY_NAMES, request_for
from engine.memory.verdict import Verdict, verdict
from engine.run import cache_dir
from engine.settings import Settings

Add = Callable[[str, str, Callable[[argparse.Namespace], int]], argparse.ArgumentParser]
_DONE = 0


def register(add: Add) -> None:
    """Add the verb to the command line."""
    add_flags(add("memory", "Forecast the graphics memory of a training.", _memory))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the verb's own flags, and one for each setting."""
    parser.add_argument("--family", choices=FAMILY_NAMES, required=True, help="The model's family.")
    parser.add_argument("--gpu_memory_gib", type=float, metavar="12", help="Compare with a card of this size.")
    parser.add_argument("--gpu_arch", metavar="8.6", help="Compute capability of that card.")
    parser.add_argument("--json", action="store_true", help="Print one JSON document on stdout.")
    flags.add_setting_flags(parser)


def _memory(parsed: argparse.Namespace) -> int:
    parser = argparse.ArgumentParser(prog="python -m engine memory", allow_abbrev=False)
    add_flags(parser)
    settings = flags.settings_from_flags(parser, parsed.words).settings
    named = card_to_compare(parsed.gpu_arch, parsed.gpu_memory_gib)
    card = named or next(iter(graphics_cards()), None)
    family = parsed.family

    def weigh(changed: Settings) -> Forecast:
        request = request_for(changed, family, capability=card.capability if card else (0, 0))
        request = with_own_unet(request, None, cache_dir=cache_dir())
        return calibrated(request, cache_dir=cache_dir(), card=None if named else card)

    found = weigh(settings)
    free = card.free_bytes if card else 0
    judged = verdict(found, free) if free else None
    ways = ways_to_fit(settings, weigh, free, can_bf16=has_bf16(card)) if judged else ()
    if parsed.json:
        json.dump(_document(found, judged, ways), sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        _print(found, judged, ways)
    return _DONE


def _document(found: Forecast, judged: Verdict | None, ways: tuple[Way, ...]) -> dict[str, object]:
    return {
        **found.as_json(),
        "verdict": judged.color if judged else None,
        "free_bytes": judged.free_bytes if judged else None,
        "ways_to_fit": [
            {"set": dict(way.values), "cost": way.cost, "loss": way.loss, "verdict": way.verdict.color} for way in ways
        ],
    }


def _print(found: Forecast, judged: Verdict | None, ways: tuple[Way, ...]) -> None:
    out = sys.stderr.write
    out(f"{size(found.total_bytes)} in all, at its peak in the {found.peak_phase} phase\n")
    for part, num_bytes in found.by_part.items():
        if num_bytes:
            out(f"  {part:12} {size(num_bytes):>10}\n")
    out(f"  {'gaps':12} {size(found.slack_bytes):>10}   left by the allocator, workspaces of libraries\n")
    out(f"  {'context':12} {size(found.context_bytes):>10}   of CUDA and its kernels\n")
    if judged:
        out(f"{judged.color}: {judged}\n")
    for way in ways:
        out(f"  {way.as_set()}   {way.verdict.color}; {way.loss}\n")

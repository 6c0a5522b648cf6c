"""Writes the memory table, or a part of it for one UNet: `python -m engine.memory_trace --help`."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from engine.memory.table import SHIPPED
from engine.memory_trace.step import case_of
from engine.memory_trace.table import CASES, HYPERNETWORK_CASES, TEXT_ENCODERS, stamp, traced_family, traced_unet
from engine.models.configs import model_config
from engine.models.inspect import family_of
from engine.models.keys import Family
from engine.models.source import open_source


def main() -> int:
    """Write what is asked for; a UNet's part goes to stdout."""
    parser = argparse.ArgumentParser(prog="python -m engine.memory_trace", description=__doc__)
    parser.add_argument("--family", action="append", choices=[*TEXT_ENCODERS], help="only these families of the table")
    parser.add_argument(
        "--model", type=Path, help="add only the UNet of this model, which is none of the families' own"
    )
    parser.add_argument("--config", help="a UNet's config.json, - for stdin: print its part of a table")
    parser.add_argument(
        "--case",
        action="append",
        default=[],
        metavar="PRECISION,CHECKPOINTING,ATTENTION",
        help="only these cases, such as mixed,checkpointed,fused",
    )
    parser.add_argument("--out", type=Path, default=SHIPPED, help="the table to write")
    parsed = parser.parse_args()
    cases = tuple(map(case_of, parsed.case)) or (*CASES, *HYPERNETWORK_CASES)
    if parsed.config:
        text = sys.stdin.read() if parsed.config == "-" else Path(parsed.config).read_text("utf-8")
        config = json.loads(text)
        json.dump(traced_unet(config, cases), sys.stdout)
        return 0
    table = json.loads(parsed.out.read_text("utf-8")) if parsed.out.exists() else {"families": {}}
    if parsed.model:
        found = traced_unet(_unet_of(parsed.model), cases, partial(_say, parsed.model.name))
        unets = table.setdefault("unets", {})
        unets[found["hash"]] = _merged(unets.get(found["hash"]), found)
        _write(table, parsed.out)
        return 0
    for family in parsed.family or TEXT_ENCODERS:
        trainable = [case for case in cases if family != "sdxl" or not case.has_hypernetwork]
        found = traced_family(family, tuple(trainable), partial(_say, family))
        table["families"][family] = _merged(table["families"].get(family), found)
        _write(table | stamp(), parsed.out)
    return 0


def _merged(known: dict[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    """Return what was found, with the cases that are known of the same UNet and were not traced anew."""
    if known is None or known["hash"] != found["hash"]:
        return found
    return {**found, **{name: {**known[name], **found[name]} for name in ("planes", "sampling")}}


def _unet_of(model: Path) -> dict[str, Any]:
    source = open_source(model)
    family: Family = "sd2" if family_of(source) == "sd2" else "sd1"
    return model_config("unet", source.parts["unet"], family, source.configs.get("unet", {}))


def _write(table: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(table, separators=(",", ":")) + "\n", encoding="utf-8")


def _say(family: str, case: str) -> None:
    sys.stderr.write(f"{family} {case}\n")


if __name__ == "__main__":
    sys.exit(main())

"""Writes the memory table, or the part of it for one UNet: `python -m engine.memory_trace --help`."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from engine.memory.table import SHIPPED
from engine.memory_trace.step import case_of
from engine.memory_trace.table import TEXT_ENCODERS, stamp, traced_family, traced_unet


def main() -> int:
    """Write what is asked for; a UNet's part goes to stdout."""
    parser = argparse.ArgumentParser(prog="python -m engine.memory_trace", description=__doc__)
    parser.add_argument("--family", action="append", choices=[*TEXT_ENCODERS], help="only these families of the table")
    parser.add_argument("--config", help="a UNet's config.json, - for stdin: print its part of a table")
    parser.add_argument("--case", action="append", default=[], metavar="PRECISION,CHECKPOINTING,ATTENTION")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="the table to write")
    parsed = parser.parse_args()
    if parsed.config:
        text = sys.stdin.read() if parsed.config == "-" else Path(parsed.config).read_text("utf-8")
        config = json.loads(text)
        json.dump(traced_unet(config, tuple(map(case_of, parsed.case))), sys.stdout)
        return 0
    table = json.loads(parsed.out.read_text("utf-8")) if parsed.out.exists() else {"families": {}}
    for family in parsed.family or TEXT_ENCODERS:
        table["families"][family] = traced_family(family, partial(_say, family))
        table |= stamp()
        parsed.out.write_text(json.dumps(table, separators=(",", ":")) + "\n", encoding="utf-8")
    return 0


def _say(family: str, case: str) -> None:
    sys.stderr.write(f"{family} {case}\n")


if __name__ == "__main__":
    sys.exit(main())

"""The table of a UNet that is none of the shipped ones: traced once in another process, then kept. Torch-free."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import EngineError, safe_text
from engine.memory.request import FamilyName
from engine.memory.table import UnetTable, config_hash, family_table, other_unet, unet_table
from engine.models.atomic import atomic_file
from engine.resources import family_config

FOLDER = "memory"
_SECONDS = 300


def table_for(config: Mapping[str, Any] | None, family: FamilyName, case: str, *, cache_dir: Path) -> UnetTable | None:
    """Return the table of a UNet's config, the family's if None, for one case; None where the family's has it.

    Traces a UNet that is not known, which takes some ten seconds; what it told is kept in the cache folder.

    Raises:
        EngineError: It can't be traced.
    """
    shipped = _shipped(config, family)
    if shipped is not None and case in shipped.cases:
        return None if shipped is family_table(family).unet else shipped
    config = config or family_config(family, "unet")
    name = config_hash(config)
    path = cache_dir / FOLDER / f"{name}.json"
    known = _read(path)
    if known is not None and case in known["planes"]:
        return unet_table(known)
    found = traced(config, case)
    if known is not None:
        found = {**found, **{key: {**known[key], **found[key]} for key in ("planes", "sampling")}}
    _keep(path, found)
    return unet_table(found)


def _shipped(config: Mapping[str, Any] | None, family: FamilyName) -> UnetTable | None:
    own = family_table(family).unet
    name = own.hash if config is None else config_hash(config)
    return own if name == own.hash else other_unet(name)


def known_table(
    config: Mapping[str, Any] | None, family: FamilyName, case: str, *, cache_dir: Path
) -> UnetTable | None:
    """Return the table of a UNet's config where there is one at hand.

    Raises:
        KeyError: It would have to be traced.
    """
    shipped = _shipped(config, family)
    if shipped is not None and case in shipped.cases:
        return None if shipped is family_table(family).unet else shipped
    name = config_hash(config or family_config(family, "unet"))
    known = _read(cache_dir / FOLDER / f"{name}.json")
    if known is None or case not in known["planes"]:
        raise KeyError(name)
    return unet_table(known)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        unet_table(found)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # Not there, or damaged: it is found out again.
    return found


def _keep(path: Path, found: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(json.dumps(found).encode())
    except OSError:
        return  # Then the next forecast traces again.


def traced(config: Mapping[str, Any], case: str) -> dict[str, Any]:
    """Return what the tracer finds out; in this process if torch is loaded here already, else in one of its own.

    Raises:
        EngineError: diffusers makes no UNet of the config, or its operations are not of the expected kind.
    """
    words = case.replace(" ", ",")
    if "torch" in sys.modules:
        return _traced_here(config, words)
    command = [sys.executable, "-P", "-m", "engine.memory_trace", "--config", "-", "--case", words]
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, on a config that is passed as data
            command, input=json.dumps(config), capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"the UNet's memory can't be traced ({safe_text(str(error))})") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(f"the UNet's memory can't be traced ({safe_text(last)})")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _traced_here(config: Mapping[str, Any], words: str) -> dict[str, Any]:
    from engine.memory_trace.step import case_of
    from engine.memory_trace.table import traced_unet

    try:
        return traced_unet(config, (case_of(words),))
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise EngineError(f"the UNet's memory can't be traced ({safe_text(str(error))})") from error

"""What the doctor finds: terminal, machine, graphics card, disk, packages; facts with advice where there is some."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.display import size
from engine.errors import Severity, safe_text
from engine.run import cache_dir
from sdtui.recent import data_dir, shown_path
from sdtui.terminal import Terminal

GIB = 1024**3
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "bitsandbytes", "xformers", "safetensors", "textual")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fact and what to do about it."""

    topic: str
    fact: str
    severity: Severity = "info"
    advice: str = ""


def findings(terminal: Terminal) -> list[Finding]:
    """Return every finding; asks the driver and the disk, so it belongs into a thread."""
    parts: tuple[Callable[[], Iterator[Finding]], ...] = (
        lambda: _terminal(terminal), _machine, _graphics_cards, _disk, _packages,
    )  # fmt: skip
    return [finding for part in parts for finding in part()]


def report(found: list[Finding]) -> str:
    """Return the findings as text to paste into a question."""
    return "\n".join(f"{item.topic}: {item.fact}{f' ({item.advice})' if item.advice else ''}" for item in found) + "\n"


def _terminal(terminal: Terminal) -> Iterator[Finding]:
    yield Finding(topic="Terminal", fact=safe_text(terminal.name or "unknown"))
    few = terminal.colors in ("16", "none")
    yield Finding(
        topic="Colours",
        fact=terminal.colors,
        severity="warning" if few else "info",
        advice="set COLORTERM=truecolor if the terminal can show it" if few or terminal.colors == "256" else "",
    )
    yield Finding(
        topic="Symbols",
        fact="ASCII" if terminal.use_ascii else "Unicode",
        advice="" if terminal.is_utf8 else "the locale is not UTF-8: set LANG=C.UTF-8 for captions in other scripts",
    )
    yield Finding(
        topic="Pictures",
        fact=terminal.graphics or "half blocks",
        advice=""
        if terminal.graphics or terminal.is_browser
        else "g asks the terminal whether it can show real pictures",
    )
    inside = terminal.multiplexer or "none"
    advice = ""
    if terminal.multiplexer == "tmux":
        advice = "for copying: tmux set -g set-clipboard on; for pictures: set -g allow-passthrough on"
    elif terminal.is_ssh:
        advice = "not needed: a lost connection leaves the training running; sdtui attach shows it again"
    yield Finding(topic="Multiplexer", fact=inside, advice=advice)
    yield _connection(terminal)


def _connection(terminal: Terminal) -> Finding:
    if terminal.is_browser:
        advice = "a closed tab leaves the training running; open the address again and attach"
        return Finding(topic="Connection", fact="browser (sdtui serve)", advice=advice)
    fact = "SSH" if terminal.is_ssh else "local"
    return Finding(topic="Connection", fact=fact, advice="sdtui serve shows all this in a browser")


def _machine() -> Iterator[Finding]:
    import psutil

    from engine.hardware import available_cores

    cores = available_cores()
    yield Finding(topic="System", fact=f"{platform.system()} {platform.release()}, Python {platform.python_version()}")
    yield Finding(
        topic="Cores",
        fact=str(cores),
        severity="warning" if cores < 4 else "info",
        advice="few cores: cache_latents keeps picture loading out of the training" if cores < 4 else "",
    )
    memory = psutil.virtual_memory()
    low = memory.available < 8 * GIB
    yield Finding(
        topic="Memory",
        fact=f"{size(memory.available)} free of {size(memory.total)}",
        severity="warning" if low else "info",
        advice="loading a full SD model in fp32 takes about 5 GiB" if low else "",
    )


def _graphics_cards() -> Iterator[Finding]:
    from engine.hardware import graphics_cards

    cards = graphics_cards()
    if not cards:
        yield _no_card("the driver names none")
    for index, card in enumerate(cards):
        advice = "mixed_precision=bf16 is the best choice here" if card.has_bf16 else "this card has no bf16: use fp16"
        fact = f"{safe_text(card.name)}, {size(card.free_bytes)} free of {size(card.total_bytes)}"
        yield Finding(topic=f"GPU {index}", fact=fact, advice=advice)


def _no_card(reason: str) -> Finding:
    if sys.platform == "darwin":
        return Finding(topic="GPU", fact="Apple (mps)", advice="mixed_precision=no is the safe choice")
    advice = "training runs on the processor: fine for the demo, a hundred times slower for a real model"
    return Finding(topic="GPU", fact=f"none found ({safe_text(reason)})", severity="warning", advice=advice)


def _disk() -> Iterator[Finding]:
    for topic, folder in (("Disk here", Path.cwd()), ("Disk of caches", cache_dir())):
        existing = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
        free = shutil.disk_usage(existing).free
        low = free < 20 * GIB
        yield Finding(
            topic=topic,
            fact=f"{size(free)} free in {shown_path(folder)}",
            severity="warning" if low else "info",
            advice="a full SD 1.x model takes 2 to 4 GiB each time it is saved" if low else "",
        )
    yield Finding(topic="Drafts", fact=shown_path(data_dir()))


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            optional = name == "xformers"
            advice = "not needed: torch's own attention is as fast" if optional else f"pip install {name}"
            yield Finding(topic=name, fact="not installed", severity="info" if optional else "error", advice=advice)
            continue
        yield Finding(topic=name, fact=version)
    if os.environ.get("HF_HUB_OFFLINE"):
        yield Finding(topic="Hub", fact="offline (HF_HUB_OFFLINE)", advice="hub ids work only when downloaded before")

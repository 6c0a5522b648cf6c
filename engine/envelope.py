"""What a run's exact numbers depend on besides its settings and data: libraries, device, threads.

Two runs agree bit for bit inside one envelope only: other kernels, or another number of threads, add in another order.
It names no host and no user.
"""

import platform
from collections.abc import Mapping
from importlib.metadata import version

import torch

_WORDS = {"world": "processes", "cpu": "processor features", "gpu": "graphics card"}


def envelope(device: torch.device, *, world: int) -> dict[str, str]:
    """Return the facts by name."""
    facts = {
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "transformers": version("transformers"),
        "machine": platform.machine(),
        "device": device.type,
        "threads": str(torch.get_num_threads()),
        "world": str(world),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    if device.type == "cuda":
        facts |= {
            "gpu": torch.cuda.get_device_name(device),
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        }
    return facts


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return in words what differs, such as "torch was 2.13.0 and is 2.14.0"."""
    return [
        f"{_WORDS.get(name, name)} was {before.get(name, 'none')} and is {now.get(name, 'none')}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]

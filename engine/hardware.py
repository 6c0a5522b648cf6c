"""What the machine is and has. Torch-free at import; torch is asked only about a device it already uses."""

import sys
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch


def peak_memory_bytes(device: "torch.device") -> int:
    """Return the most memory used so far: the allocator's on CUDA, elsewhere this process's resident memory."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Return this process's highest resident memory; where the system keeps no peak, the present one."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_cores() -> int:
    """Return the cores this process may use."""
    try:
        return len(psutil.Process().cpu_affinity())
    except AttributeError:  # macOS has no affinity.
        return psutil.cpu_count() or 1

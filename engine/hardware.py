"""What the machine is and has. Torch-free at import; torch is asked only about a device it already uses."""

import os
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psutil

from engine.errors import EngineError, safe_text

if TYPE_CHECKING:
    import torch

_SHORT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A graphics card as its driver describes it; `capability` is CUDA's compute capability, such as (8, 6)."""

    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int]

    @property
    def has_bf16(self) -> bool:
        """Whether it computes in bf16, which NVIDIA's cards do from Ampere (8.0) on."""
        return self.capability >= (8, 0)


def graphics_cards() -> tuple[Card, ...]:
    """Return NVIDIA's cards as the driver lists them, none where there is no driver; a matter of milliseconds."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except (OSError, ValueError, pynvml.NVMLError):
        return ()
    try:
        return tuple(_card(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:  # A card that fell off its bus: as good as none.
        return ()
    finally:
        pynvml.nvmlShutdown()


def named_card(capability: str) -> Card:
    """Return a card of which only the compute capability is known, such as "8.6", "86" or "sm_86".

    Raises:
        EngineError: It is none.
    """
    digits = capability.lower().removeprefix("sm_").removeprefix("compute_").replace(".", "")
    if not digits.isdecimal() or len(digits) < 2:
        raise EngineError(f"--gpu_arch {safe_text(capability)}: give the compute capability, such as 8.6 or sm_86")
    number = (int(digits[:-1]), int(digits[-1]))
    return Card(name=f"compute {number[0]}.{number[1]}", total_bytes=0, free_bytes=0, capability=number)


def card_to_compare(capability: str | None, memory_gib: float | None) -> Card | None:
    """Return the card that a user names by `--gpu_arch` and `--gpu_memory_gib`, all of its memory free; None for none.

    Raises:
        EngineError: One of them is out of range.
    """
    if capability is None and memory_gib is None:
        return None
    card = named_card(capability) if capability else Card(name="", total_bytes=0, free_bytes=0, capability=(0, 0))
    if memory_gib is None:
        return card
    if not 0 < memory_gib < 10_000:
        raise EngineError(f"--gpu_memory_gib {memory_gib}: give the card's memory in GiB, such as 12")
    num_bytes = round(memory_gib * (1 << 30))
    name = f"{card.name} {memory_gib:g} GiB".strip()
    return replace(card, name=name, total_bytes=num_bytes, free_bytes=num_bytes)


def _card(pynvml: Any, index: int) -> Card:  # noqa: ANN401 - a module
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    name = pynvml.nvmlDeviceGetName(handle)
    return Card(
        name=name.decode(errors="replace") if isinstance(name, bytes) else name,
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
    )


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


def share_cores() -> None:
    """Let torch's threads spin only shortly where they wait for each other; to be called before torch is imported.

    By default they spin long. On a machine that does anything else, a screen among it, each of the thousand waits of a
    step then lasts until the scheduler takes the spinning thread off: steps of 0.5 s were seen to take 20 s. Not
    spinning at all doubles the time of small steps on a quiet machine.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def available_cores() -> int:
    """Return the cores this process may use."""
    try:
        return len(psutil.Process().cpu_affinity())
    except AttributeError:  # macOS has no affinity.
        return psutil.cpu_count() or 1


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory is short, in the words of CUDA, of Apple's mps or of the processor."""
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORT_OF_MEMORY)

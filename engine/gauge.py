"""Compares a run on a graphics card with its forecast, once, and keeps the corrections for the next forecast."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.events import Event, Step
from engine.hardware import graphics_cards
from engine.memory.calibration import Calibration, Calibrator, Device, Expected, save_calibration
from engine.memory.forecast import Forecast, Part, forecast
from engine.memory.of_run import calibration_key, request_of_run, unet_config, with_own_unet
from engine.memory.request import Size
from engine.models.inspect import describe

if TYPE_CHECKING:
    from engine.parts import Parts
    from engine.telling import Teller

_STILL: tuple[Part, ...] = ("weights", "gradients", "optimizer", "frozen")


class CudaDevice:
    """A card as torch and its driver count it; see `engine.memory.calibration.Device`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def reset_peak(self) -> None:
        """Begin to look for the peak anew."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak_allocated(self) -> int:
        """Return the most that tensors took since then."""
        return torch.cuda.max_memory_allocated(self._device)

    def peak_reserved(self) -> int:
        """Return the most that the allocator held since then."""
        return torch.cuda.max_memory_reserved(self._device)

    def reserved(self) -> int:
        """Return what the allocator holds at present."""
        return torch.cuda.memory_reserved(self._device)

    def used_by_process(self) -> int:
        """Return what the driver counts as used, which is this process's where it has the card for itself."""
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free


class MemoryGauge:
    """A listener that measures the second or a later step of the largest bucket, once in a run."""

    def __init__(
        self,
        device: Device,
        expected: Expected,
        *,
        largest: Size,
        images: int = 1,
        save: Callable[[str, Calibration], None],
    ) -> None:
        self._calibrator = Calibrator(device, expected, save)
        self._largest = largest
        self._images = images
        """Of a step of full batches: a short one holds less than was forecast."""
        self.advice = ""
        """What a figure far from the forecast means; "" until then."""

    def emit(self, event: Event) -> None:
        """Look at a step, and get ready for the next."""
        if not isinstance(event, Step) or self._calibrator.is_done:
            return
        is_full = event.images >= self._images
        found = self._calibrator.after(is_largest=is_full and event.bucket == self._largest)
        if found is not None:
            self.advice = found.advice
        self._calibrator.before()

    def close(self) -> None:
        """Nothing is held open."""


def gauge_for(parts: "Parts", *, cache_dir: Path, tell: "Teller") -> MemoryGauge | None:
    """Return a gauge for a run on a card whose UNet the table knows; None elsewhere."""
    if parts.accelerator.device.type != "cuda":
        return None
    card = next(iter(graphics_cards()), None)
    plan, source = parts.plan, parts.model.source
    request = request_of_run(parts.settings, plan=plan, info=describe(source), prompts=parts.prompts, card=card)
    try:
        request = with_own_unet(request, unet_config(source, request.family), cache_dir=cache_dir, may_trace=False)
    except KeyError:  # A UNet that no table knows: there is nothing to compare with.
        return None
    request = replace(request, sample_size=None)  # No sample is drawn within the step that is measured.
    images = request.batch * parts.settings.training.gradient_accumulation_steps
    expected = expected_of(forecast(request), calibration_key(request, card))

    def save(key: str, found: Calibration) -> None:
        try:
            save_calibration(cache_dir, key, found)
        except OSError as error:
            tell.warn("calibration", f"the measured memory can't be kept ({error.strerror or error})")
        if found.advice:
            tell.warn("attention", found.advice)

    return MemoryGauge(CudaDevice(parts.accelerator.device), expected, largest=request.size, images=images, save=save)


def expected_of(memory: Forecast, key: str) -> Expected:
    """Return the forecast's share that the batch does not change, and the rest."""
    still = sum(memory.by_part[part] for part in _STILL)
    return Expected(key=key, still=still, moving=memory.allocated_bytes - still, context=memory.context_bytes)

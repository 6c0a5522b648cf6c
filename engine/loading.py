"""Windows loaded ahead of the training: one thread reads, decodes and tokenises while the last window is trained.

Dimension key: B images, C latent channels, h x w latent size, H x W pixels.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from engine.denoiser import Conditioning
from engine.plan import Batch

AHEAD = 2  # Windows held ready; more would only cost memory, since the thread is far faster than a step.


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedBatch:
    """A batch as tensors on the CPU: latents where they are cached, else pixels and what their encoding is keyed by."""

    batch: Batch
    conditioning: Conditioning
    latents_BChw: Tensor | None = None
    pixels_BHWC: Tensor | None = None
    vae_seeds: tuple[int, ...] = ()
    masks_B1hw: Tensor | None = None
    weights_B: Tensor | None = None
    """What each picture counts: 0 where it can't be read and is left out; None where all count 1."""
    refusals: tuple[str, ...] = ()
    """Why pictures are left out, each told once in a run."""
    is_spare: bool = False
    """Trained with weight zero: every process takes part in a step, also where it has no batch of its own in it."""

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self.batch.rows)

    @property
    def left_out(self) -> int:
        """The number of pictures that do not count."""
        return 0 if self.weights_B is None else self.images - int(self.weights_B.sum())


Window = tuple[LoadedBatch, ...]


class WindowLoader:
    """Iterates over the windows of steps `first_step` to `last_step`; use as a context manager, so its thread ends."""

    def __init__(self, load: Callable[[int], Window], first_step: int, last_step: int) -> None:
        self._load = load
        self._steps = range(first_step, last_step)
        self._ready: queue.Queue[Window | BaseException] = queue.Queue(maxsize=AHEAD)
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="loader", daemon=True)

    def __enter__(self) -> Self:
        """Start loading."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop loading and wait for the thread."""
        self._is_closed.set()
        while self._thread.is_alive():
            self._drain()
            self._thread.join(timeout=0.05)

    def __iter__(self) -> Iterator[Window]:
        """Yield the windows in order."""
        for _ in self._steps:
            yield next(self)

    def __next__(self) -> Window:
        """Return the next window, waiting for it if need be.

        Raises:
            EngineError: A picture of it can't be read.
        """
        window = self._ready.get()
        if isinstance(window, BaseException):
            raise window
        return window

    def _work(self) -> None:
        try:
            for step in self._steps:
                if self._is_closed.is_set():
                    return
                self._put(self._load(step))
        except BaseException as error:  # noqa: BLE001 - handed to the training thread, which raises it
            self._put(error)

    def _put(self, item: Window | BaseException) -> None:
        while not self._is_closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def _drain(self) -> None:
        try:
            while True:
                self._ready.get_nowait()
        except queue.Empty:
            pass

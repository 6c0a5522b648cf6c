"""Steps as TensorBoard scalars, under the names that sd-scripts uses."""

import time
from pathlib import Path
from typing import Any

from engine.events import Event, Started, Step
from engine.settings import LoggingSettings


class TensorBoardLog:
    """Writes loss, its mean over an epoch and the learning rate; made at the first step, so that no empty log stays."""

    def __init__(self, settings: LoggingSettings) -> None:
        assert settings.logging_dir is not None
        stamp = time.strftime("%Y%m%d%H%M%S")
        self._folder = Path(settings.logging_dir) / f"{settings.log_prefix}{stamp}" / settings.log_tracker_name
        self._writer: Any = None
        self._losses: list[float] = []
        self._steps_per_epoch = 0

    def emit(self, event: Event) -> None:
        """Log one event; only steps leave a trace."""
        if isinstance(event, Started):
            self._steps_per_epoch = event.steps_per_epoch
        if not isinstance(event, Step):
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        self._losses.append(event.loss)
        self._writer.add_scalar("loss", event.loss, event.step)
        self._writer.add_scalar("lr/unet", event.learning_rate, event.step)
        if event.adapted_rate is not None:
            self._writer.add_scalar("lr/d*lr", event.adapted_rate, event.step)
        self._writer.add_scalar("grad_norm", event.grad_norm, event.step)
        if len(self._losses) == self._steps_per_epoch:
            self._writer.add_scalar("loss/epoch", sum(self._losses) / len(self._losses), event.epoch)
            self._losses.clear()

    def close(self) -> None:
        """Write what is still held back."""
        if self._writer is not None:
            self._writer.close()

"""Steps as TensorBoard scalars, under the names that sd-scripts uses. Torch-free.

The records are written here rather than by torch's SummaryWriter: that one names the computer in every file's name,
and writes in a thread whose errors come up steps later.
"""

import logging
import time
from pathlib import Path
from typing import IO, Any

from engine.events import Event, Started, Step, Validated
from engine.settings import LoggingSettings
from engine.space import NotWrittenError, writing

_log = logging.getLogger(__name__)
FLUSH_SECONDS = 10.0  # TensorBoard looks for news every thirty.


class TensorBoardLog:
    """Writes loss, its mean over an epoch and the learning rate; made at the first step, so that no empty log stays."""

    def __init__(self, settings: LoggingSettings) -> None:
        assert settings.logging_dir is not None
        stamp = time.strftime("%Y%m%d%H%M%S")
        folder = Path(settings.logging_dir) / f"{settings.log_prefix}{stamp}" / settings.log_tracker_name
        self._path = folder / f"events.out.tfevents.{int(time.time())}.sdtui"
        self._file: IO[bytes] | None = None
        self._writer: Any = None
        self._flushed = 0.0
        self._losses: list[float] = []
        self._steps_per_epoch = 0

    def emit(self, event: Event) -> None:
        """Log one event; only steps and validations leave a trace.

        Raises:
            NotWrittenError: The disk refuses it.
        """
        if isinstance(event, Started):
            self._steps_per_epoch = event.steps_per_epoch
        if isinstance(event, Validated):
            measured = {"loss/validation": event.loss}
            measured |= {f"loss/validation/{first}-{end - 1}": loss for first, end, loss in event.by_timestep}
            with writing(self._path):
                self._write(event.step, event.time, measured)
        if not isinstance(event, Step):
            return
        scalars = {"loss": event.loss, "lr/unet": event.learning_rate, "grad_norm": event.grad_norm}
        if event.adapted_rate is not None:
            scalars["lr/d*lr"] = event.adapted_rate
        self._losses.append(event.loss)
        with writing(self._path):
            self._write(event.step, event.time, scalars)
            if len(self._losses) == self._steps_per_epoch:
                self._write(event.epoch, event.time, {"loss/epoch": sum(self._losses) / len(self._losses)})
                self._losses.clear()
            self._flush()

    def close(self) -> None:
        """Write what is still held back."""
        if self._file is None:
            return
        try:
            with writing(self._path):
                self._file.close()
        except NotWrittenError as error:
            _log.warning("%s", error)

    def _write(self, step: int, seconds: float, scalars: dict[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        if self._file is None:
            self._open()
        self._writer.write(Record(wall_time=seconds, step=step, summary=Summary(value=values)).SerializeToString())

    def _open(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("wb")
        self._writer = RecordWriter(self._file)
        self._writer.write(Record(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def _flush(self) -> None:
        assert self._file is not None
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

"""A run in Weights & Biases: the scalars of TensorBoard, under the same names. Torch-free."""

import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.errors import EngineError, safe_text
from engine.events import Event, Sampled, Started, Step, Validated
from engine.settings import Settings


class WandbLog:
    """Sends steps, validations and samples; the first failure is told once, and then nothing more is sent."""

    def __init__(self, settings: Settings, folder: Path, warn: Callable[[str, str], None]) -> None:
        self._settings = settings
        self._folder = folder
        self._warn = warn
        self._run: Any = None
        self._is_broken = False
        self._options = tracker_options(settings)

    def emit(self, event: Event) -> None:
        """Log one event."""
        if self._is_broken:
            return
        try:
            if isinstance(event, Started):
                self._begin()
            elif self._run is not None and (scalars := self._scalars(event)):
                self._run.log(scalars, step=event.step)
        except Exception as error:  # noqa: BLE001 - whatever the client throws must not end a training
            self._is_broken = True
            self._warn("wandb", f"Weights & Biases can't be used ({safe_text(str(error))}); the run goes on without it")

    def close(self) -> None:
        """Send what is left."""
        if self._run is not None:
            self._run.finish()
            self._run = None

    def _begin(self) -> None:
        import wandb

        chosen = self._settings.logging
        if chosen.wandb_api_key:  # By the environment rather than by login(), which would write it into a file.
            os.environ["WANDB_API_KEY"] = chosen.wandb_api_key
        from engine.tracking import public_settings

        options = {
            "project": chosen.log_tracker_name,
            "name": chosen.wandb_run_name,
            "dir": chosen.logging_dir or str(self._folder),
            "config": public_settings(self._settings) if chosen.log_config else None,
            **self._options,
        }
        if chosen.logging_dir:
            Path(chosen.logging_dir).mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(**options)

    def _scalars(self, event: Event) -> dict[str, Any]:
        if isinstance(event, Step):
            scalars = {"loss": event.loss, "lr/unet": event.learning_rate, "grad_norm": event.grad_norm}
            return scalars if event.adapted_rate is None else {**scalars, "lr/d*lr": event.adapted_rate}
        if isinstance(event, Validated):
            bands = {f"loss/validation/{first}-{end - 1}": loss for first, end, loss in event.by_timestep}
            return {"loss/validation": event.loss, **bands}
        if isinstance(event, Sampled):
            import wandb

            picture = wandb.Image(str(self._folder / event.path), caption=event.prompt)
            return {f"sample_{event.index}": picture}
        return {}


def tracker_options(settings: Settings) -> dict[str, Any]:
    """Return the [wandb] table of log_tracker_config: arguments of wandb.init.

    Raises:
        EngineError: The file can't be read, or holds something else.
    """
    name = settings.logging.log_tracker_config
    if name is None:
        return {}
    shown = f"log_tracker_config = {safe_text(name)}"
    try:
        data = tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"{shown} can't be read as TOML: {safe_text(str(error))}") from error
    table = data.get("wandb", {})
    if not isinstance(table, dict) or set(data) - {"wandb", "tensorboard"}:
        raise EngineError(f"{shown}: expected a table [wandb] with arguments of wandb.init")
    return table

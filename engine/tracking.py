"""Who else hears of a run: TensorBoard, Weights & Biases and a model hub, as the settings ask. Torch-free."""

from collections.abc import Callable

from engine.hub_upload import HubUpload
from engine.run import RunFolder
from engine.settings import Settings
from engine.telling import Listener
from engine.tensorboard import TensorBoardLog
from engine.wandb_log import WandbLog


def trackers(settings: Settings, folder: RunFolder, warn: Callable[[str, str], None]) -> list[Listener]:
    """Return the listeners that write elsewhere; `warn` takes a code and a sentence, since none may end a training."""
    chosen = settings.logging
    found: list[Listener] = []
    if chosen.logging_dir and chosen.log_with != "wandb":
        found.append(TensorBoardLog(chosen))
    if chosen.log_with in ("wandb", "all"):
        found.append(WandbLog(settings, folder.path, warn))
    if settings.saving.huggingface_repo_id:
        found.append(HubUpload(settings.saving, folder.path, warn))
    return found


def public_settings(settings: Settings) -> dict[str, object]:
    """Return the settings that may be shown to others: those that have a value, without secrets and paths."""
    from engine.settings_io import is_secret, path_kind

    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in settings.flat().items()
        if value not in (None, "", ()) and not is_secret(name) and path_kind(name) is None
    }

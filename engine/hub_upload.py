"""Saved models and states sent to a hub, off unless a repository is named; no failure ends a run. Torch-free."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from engine.errors import safe_text
from engine.events import Event, Saved, Started
from engine.settings import SavingSettings


class HubUpload:
    """Makes the repository when the run starts and sends every model, and states if asked, after it was saved."""

    def __init__(self, hub: SavingSettings, folder: Path, warn: Callable[[str, str], None]) -> None:
        self._hub = hub
        self._folder = folder
        self._warn = warn
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hub")
        self._waiting: list[Future[str]] = []

    def emit(self, event: Event) -> None:
        """Send what an event is about, and tell what failed of earlier uploads."""
        if isinstance(event, Started):
            self._waiting.append(self._pool.submit(self._attempt, "the repository", self._make_repository))
        elif isinstance(event, Saved):
            if event.mode and not self._hub.save_state_to_huggingface:
                return
            self._waiting.append(self._pool.submit(self._attempt, event.path, lambda: self._send(event.path)))
        else:
            self._tell(only_done=True)
            return
        self._tell(only_done=self._hub.async_upload)

    def close(self) -> None:
        """Wait for the last upload."""
        self._tell(only_done=False)
        self._pool.shutdown()

    def _tell(self, *, only_done: bool) -> None:
        done = [future for future in self._waiting if future.done() or not only_done]
        self._waiting = [future for future in self._waiting if future not in done]
        for future in done:
            if failure := future.result():
                self._warn("hub", failure)

    def _attempt(self, what: str, action: Callable[[], object]) -> str:
        """Return why an upload failed, "" if it did not."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever the client throws must not end a training
            cause = safe_text(" ".join(str(error).split()))
            return f"{what} was not sent to {safe_text(self._repository)} ({cause}); it is in the run folder"
        return ""

    @property
    def _repository(self) -> str:
        assert self._hub.huggingface_repo_id
        return self._hub.huggingface_repo_id

    def _api(self) -> Any:  # noqa: ANN401 - the package is imported late
        from huggingface_hub import HfApi

        return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=self._hub.huggingface_token)

    def _make_repository(self) -> None:
        self._api().create_repo(
            repo_id=self._repository,
            repo_type=self._hub.huggingface_repo_type,
            private=self._hub.huggingface_repo_visibility != "public",
            exist_ok=True,
        )

    def _send(self, name: str) -> None:
        path = self._folder / name
        target = "/".join(part for part in (self._hub.huggingface_path_in_repo, name) if part)
        where = {
            "repo_id": self._repository,
            "repo_type": self._hub.huggingface_repo_type,
            "path_in_repo": target,
            "commit_message": f"Add {path.name}",
        }
        if path.is_dir():
            self._api().upload_folder(folder_path=str(path), **where)
        else:
            self._api().upload_file(path_or_fileobj=str(path), **where)

"""Faults on purpose: disks that refuse, listeners that do something at a step."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

import pytest

from engine.events import Event, Step

REFUSALS = {
    name: getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO") if hasattr(errno, name)
}


class At:
    """A listener that does something after given steps."""

    def __init__(self, actions: dict[int, Callable[[], object]]) -> None:
        self.actions = actions

    def emit(self, event: Event) -> None:
        if isinstance(event, Step) and event.step in self.actions:
            self.actions[event.step]()

    def close(self) -> None:
        pass


class Disk:
    """Makes every file that is to appear whole (models, samples) be refused, at the moment it is brought to disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.code = 0
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._sync)

    def refuse(self, code: int = errno.ENOSPC) -> None:
        self.code = code

    def accept(self) -> None:
        self.code = 0

    def _sync(self, descriptor: int) -> None:
        if self.code:
            raise OSError(self.code, os.strerror(self.code))
        self._fsync(descriptor)


@contextlib.contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes: the kernel then says EFBIG, as for a quota it says EDQUOT."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

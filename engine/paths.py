"""Paths as people write them. Torch-free."""

import os
from pathlib import Path

from engine.errors import EngineError, safe_text

_NAME_BYTES, _PATH_BYTES = 255, 4000  # What Linux takes; others take less, and say so themselves.


def written_path(text: str) -> Path:
    """Return the path that somebody wrote, ~ expanded; it need not exist.

    Raises:
        EngineError: No file can have that name.
    """
    shown = safe_text(text)
    try:
        path = Path(text).expanduser()
        lengths = [len(os.fsencode(part)) for part in (str(path), *path.parts)]
    except RuntimeError as error:
        raise EngineError(f"{shown}: there is no such user; write the whole path") from error
    except ValueError as error:  # Half a character.
        raise EngineError(f"{shown}: holds a character that no file name can hold") from error
    if "\0" in text:
        raise EngineError(f"{shown}: holds a character that no file name can hold")
    if lengths[0] > _PATH_BYTES or max(lengths[1:], default=0) > _NAME_BYTES:
        raise EngineError(f"{shown}: is longer than a file name can be")
    return path

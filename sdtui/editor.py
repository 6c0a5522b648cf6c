"""Hands a text to the user's editor while the screen stands aside."""

import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from textual.app import SuspendNotSupported

from engine.errors import EngineError, safe_text

if TYPE_CHECKING:
    from sdtui.app import SdtuiApp


def edit_text(app: "SdtuiApp", text: str, *, name: str) -> str | None:
    """Return the text as the editor left it, or None where the editor failed.

    Raises:
        EngineError: No editor can be run here.
    """
    command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    with tempfile.TemporaryDirectory(prefix="sdtui-") as folder:
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8")
        try:
            with app.suspend():
                terminal = app.tty.fileno() if app.tty is not None else None
                done = subprocess.run([*command, str(path)], stdout=terminal, stderr=terminal, check=False)  # noqa: S603
        except SuspendNotSupported as error:
            raise EngineError("this terminal can't be handed to an editor") from error
        except OSError as error:
            shown = safe_text(command[0])
            raise EngineError(f"{shown} can't be run ({error.strerror or error}); set EDITOR") from error
        return path.read_text(encoding="utf-8") if done.returncode == 0 else None

"""What the program remembers for a user: recent runs and models, and the folder of drafts."""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from engine.errors import safe_text

Kind = Literal["run", "model"]
LIMIT = 200  # Entries kept of each kind.


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """Something used before: a run folder, or a model's file, folder or hub id."""

    kind: Kind
    name: str
    time: float


def data_dir() -> Path:
    """Return the user's data folder of this program: SDTUI_DATA_DIR, else where the platform keeps such things."""
    chosen = os.environ.get("SDTUI_DATA_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "sdtui"


def drafts_dir() -> Path:
    """Return the folder of drafts."""
    return data_dir() / "drafts"


def newest_draft() -> Path | None:
    """Return the draft that was changed last, if there is one."""
    try:
        drafts = [(path.stat().st_mtime_ns, path) for path in drafts_dir().glob("[!.]*.toml")]
    except OSError:
        return None
    return max(drafts, default=(0, None))[1]


def recent(kind: Kind) -> list[Recent]:
    """Return what was used before, the newest first; an unreadable memory is an empty one."""
    return [entry for entry in _read() if entry.kind == kind]


def remember(kind: Kind, name: str | Path) -> None:
    """Put something at the head of the memory."""
    entry = Recent(kind=kind, name=str(name), time=time.time())
    _write([entry, *(old for old in _read() if (old.kind, old.name) != (kind, entry.name))])


def forget(kind: Kind, name: str | Path) -> None:
    """Take something out of the memory."""
    _write([old for old in _read() if (old.kind, old.name) != (kind, str(name))])


def write_private(path: Path, text: str) -> None:
    """Write a file that only the user may read, so that a reader never sees half of it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor, so that the mode holds
        file.write(text)
    temporary.replace(path)


def _path() -> Path:
    return data_dir() / "recent.json"


def _read() -> list[Recent]:
    try:
        rows = json.loads(_path().read_bytes())
        return [
            Recent(kind=row["kind"], name=str(row["name"]), time=float(row["time"]))
            for row in rows
            if row["kind"] in ("run", "model")
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _write(entries: list[Recent]) -> None:
    kept = [entry for kind in ("run", "model") for entry in [old for old in entries if old.kind == kind][:LIMIT]]
    kept.sort(key=lambda entry: entry.time, reverse=True)
    write_private(_path(), json.dumps([asdict(entry) for entry in kept], indent=1))


def shown_path(path: str | Path) -> str:
    """Return a path for the screen: the home folder as ~, control characters visible."""
    text = str(path)
    home = str(Path.home())
    if text == home or text.startswith(home + os.sep):
        text = "~" + text[len(home) :]
    return safe_text(text, limit=1000)


def preference(name: str) -> str:
    """Return a remembered choice, such as the theme, or nothing."""
    value = _preferences().get(name, "")
    return value if isinstance(value, str) else ""


def set_preference(name: str, value: str) -> None:
    """Remember a choice."""
    write_private(data_dir() / "preferences.json", json.dumps({**_preferences(), name: value}, indent=1))


def _preferences() -> dict[str, object]:
    try:
        found = json.loads((data_dir() / "preferences.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

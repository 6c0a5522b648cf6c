"""Draws README's pictures: drives the starter project by keys in tmux, from Home to a finished training.

    python docs/images/make.py                  # at 80x24 and at 120x40, each with a training of 500 steps
    python docs/images/make.py --size 80x24

What tmux holds after each page is written as SVG. Nothing is faked: the program, the terminal and the training are
real, and the drive fails where a page does not show what it should. Needs tmux.
"""

import argparse
import io
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
# What to press, what then must stand on the screen, and the picture's name.
PAGES = (
    ("", "New run", "home"),
    ("d", "5 REVIEW", ""),
    ("1", "1 MODEL", "model"),
    ("2", "2 DATA", "data"),
    ("3", "3 BUCKETS", "buckets"),
    ("4", "4 OPTIONS", "options"),
    ("5", "ready", "review"),
    ("s", "Events", ""),
)


class Tmux:
    """A tmux server of its own with one window, in which a command runs."""

    def __init__(self, size: str, command: str, folder: Path) -> None:
        self._name = f"sdtui-{os.getpid()}-{size}"
        columns, rows = size.split("x")
        environment = {
            "HOME": str(folder), "SDTUI_DATA_DIR": str(folder / "data"), "SDTUI_CACHE_DIR": str(folder / "cache"),
            "COLORTERM": "truecolor", "LANG": "C.UTF-8",
        }  # fmt: skip
        set_all = [part for name, value in environment.items() for part in ("-e", f"{name}={value}")]
        config = folder / "tmux.conf"
        config.write_text("set -g default-terminal tmux-256color\nset -g status off\n")
        self._call("-f", str(config), "-u", "new-session", "-d", "-x", columns, "-y", rows, *set_all,
                   "-c", str(folder), command)  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["tmux", "-L", self._name, "kill-server"], check=False, capture_output=True)

    def _call(self, *arguments: str) -> str:
        done = subprocess.run(["tmux", "-L", self._name, *arguments], check=True, capture_output=True, text=True)
        return done.stdout

    def press(self, key: str) -> None:
        """Press a key, by tmux's name for it."""
        self._call("send-keys", key)

    def text(self, *, with_colours: bool = False) -> str:
        """Return what the window shows."""
        return self._call("capture-pane", "-p", "-N", *(["-e"] if with_colours else []))

    def wait_for(self, wanted: str, seconds: float = 60.0) -> None:
        """Wait until a text stands on the screen."""
        self.until(lambda: wanted in self.text(), f"{wanted!r} does not stand on the screen", seconds)

    def until(self, is_there: Callable[[], bool], otherwise: str, seconds: float) -> None:
        """Wait for something, and fail with what the window shows."""
        end = time.monotonic() + seconds
        while not is_there():
            if time.monotonic() > end:
                raise SystemExit(f"{otherwise}:\n{self.text()}")
            time.sleep(0.2)

    def keep(self, name: str, width: int) -> None:
        """Write what the window shows as a picture."""
        time.sleep(1.5)
        console = Console(width=width, record=True, file=io.StringIO(), color_system="truecolor", force_terminal=True)
        console.print(Text.from_ansi(self.text(with_colours=True).rstrip("\n")), no_wrap=True, crop=True)
        svg = console.export_svg(title="sdtui", unique_id=name)
        (HERE / f"{name}.svg").write_text(svg, encoding="utf-8")


def drive(size: str) -> None:
    """Go from Home through the wizard to the end of a training, and back to Home."""
    width = int(size.partition("x")[0])
    command = shlex.join([sys.executable, "-P", "-m", "sdtui"])
    with (
        tempfile.TemporaryDirectory() as folder,
        Tmux(size, f"env PYTHONPATH={shlex.quote(str(REPOSITORY))} {command}", Path(folder)) as tmux,
    ):
        for key, wanted, name in PAGES:
            if key:
                tmux.press(key)
            tmux.wait_for(wanted)
            if name:
                tmux.keep(f"{name}-{size}", width)
        began = time.monotonic()
        run = next(iter(Path(folder).glob("sdtui-demo/*/events.jsonl")), None) or _events(tmux, Path(folder))
        tmux.until(lambda: run.read_bytes().count(b'{"kind":"step"') >= 300, "no 300 steps", 1200)
        tmux.keep(f"training-{size}", width)
        tmux.wait_for("FINISHED", 1200)
        tmux.keep(f"finished-{size}", width)
        print(f"{size}: from the start key to the finished training {time.monotonic() - began:.0f} s")
        tmux.press("q")
        tmux.press("q")
        tmux.wait_for("Recent runs: 1")
        tmux.wait_for("finished")
        tmux.press("u")
        tmux.wait_for("1 selected")
        tmux.keep(f"runs-{size}", width)


def _events(tmux: Tmux, folder: Path) -> Path:
    found: list[Path] = []
    tmux.until(lambda: bool(found.extend(folder.rglob("events.jsonl")) or found), "no training has begun", 120)
    return found[0]


def main() -> None:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--size", action="append", help="columns x rows [80x24 and 120x40]")
    for size in parser.parse_args().size or ("80x24", "120x40"):
        drive(size)


if __name__ == "__main__":
    main()

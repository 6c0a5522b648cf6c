"""Helper processes for the first scan of a large folder: each reads headers and captions of one portion after another.

On a warm page cache the interpreter lock is the limit, not the disk, so that only processes are faster. They talk JSON
lines over pipes and need nothing of the parent's terminal. A cold disk or a network is waited for by more of them: in
threads, each answer of the disk would wait for the interpreter lock again. Torch-free.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.dataset.examine import Portion, columns_to_json, examine, portion_from

_ROOT = str(Path(__file__).parents[2])
_MANY_WAITS = 0.25  # For one picture, which with its caption is two files.
# Without the site module, which takes as long to start as all the rest; it gets our own path.
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from engine.dataset.examine import serve; serve()"


def num_helpers() -> int:
    """Return how many helpers to start; on busy cores they cost a seventh, on idle ones they save a quarter."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8) if sys.executable and cores > 1 else 0


class Helper:
    """A process that examines portions; when it fails, its work is done here instead."""

    def __init__(self) -> None:
        self.waits = False
        """Whether it waited for the disk rather than for the processor, as far as the last portion told."""
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and program
                [sys.executable, "-P", "-S", "-c", _PROGRAM, _ROOT, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="ascii",
            )
        except OSError:  # Out of processes or memory: the scan goes on without.
            return

    def examine(self, folder: str, names: Sequence[str], caption_names: Sequence[str]) -> tuple[Portion, str]:
        """Return a portion that nothing is known about yet, and the same as JSON."""
        if self._process is not None and self._process.stdin and self._process.stdout:
            try:
                names_text, captions_text = json.dumps(names), json.dumps(caption_names)
                self._process.stdin.write(f"[{json.dumps(folder)},{names_text},{captions_text}]\n")
                self._process.stdin.flush()
                waits, text = self._process.stdout.readline().rstrip().split(" ", 1)
                self.waits = int(waits) > _MANY_WAITS * len(names)
                portion = portion_from([*json.loads(text), names, caption_names])
                return portion, f"{text[:-1]},{names_text},{captions_text}]"
            except (OSError, ValueError):
                self.close()
        portion = examine(folder, names, caption_names, {})
        return portion, columns_to_json(portion)

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

"""The verb `resume`: goes on with a run folder from its newest intact state. Torch-free at import."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from engine.resume import resume_run

Add = Callable[[str, str, Callable[[argparse.Namespace], int]], argparse.ArgumentParser]


def register(add: Add) -> None:
    """Add the verb to the command line."""
    sub = add("resume", "Go on with a run from its newest intact state.", _resume)
    sub.add_argument(
        "folder", type=Path, metavar="DIR", help="The run's folder, or one that holds several: they are listed."
    )
    sub.add_argument("--from", dest="state", default="", metavar="STATE", help="A state: name, step, path; or start.")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="Change a setting.")
    sub.add_argument("--restart", action="store_true", help="Where no state is intact, start again at step 0.")
    sub.add_argument("--changed_data", action="store_true", help="Go on although pictures or captions have changed.")
    sub.add_argument("--background", action="store_true", help="Return at once; the run goes on by itself.")
    sub.add_argument("--announce", action="store_true", help=argparse.SUPPRESS)


def _resume(parsed: argparse.Namespace) -> int:
    if parsed.background:
        from engine.background import start_verb_in_background

        words = ["resume", str(parsed.folder), *(["--from", parsed.state] if parsed.state else [])]
        words += [word for override in parsed.set for word in ("--set", override)]
        words += [f"--{name}" for name in ("restart", "changed_data") if getattr(parsed, name)]
        pid = start_verb_in_background(words)
        sys.stderr.write(f"training goes on as process {pid}: {parsed.folder}\n")
        return 0
    from engine.background import Announcer
    from engine.headless import train_headless

    loaded, resume = resume_run(
        parsed.folder,
        chosen=parsed.state,
        overrides=parsed.set,
        restarts=parsed.restart,
        accepts_changed_data=parsed.changed_data,
    )
    for note in resume.notes:
        sys.stderr.write(f"{note.severity}: {note}\n")
    where = f"step {resume.step}" if resume.source is not None else "the start"
    sys.stderr.write(f"going on from {where}\n")
    listeners = [Announcer(loaded)] if parsed.announce else []
    return train_headless(loaded, listeners, keeps_log=True, resume=resume)

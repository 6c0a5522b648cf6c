"""`data cache`: the caches of a run.toml, filled before its training. Torch-free until it works."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from engine.display import make_display
from engine.errors import EngineError, ProblemsError, safe_text
from engine.events import Warned
from engine.settings_io import LoadedSettings, load_run
from engine.telling import Teller

Add = Callable[[str, str, Callable[[argparse.Namespace], int]], argparse.ArgumentParser]

DONE, INTERRUPTED = 0, 130


def register(add: Add) -> None:
    """Add `data cache`, and sd-scripts' name of it, which leads there."""
    sub = add("cache", "Encode pictures and captions of a run.toml ahead of its training.", _cache)
    sub.add_argument("run", type=Path, metavar="RUN.toml")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="Change a setting.")
    sub.add_argument("--npz", action="store_true", help="Write sd-scripts' .npz beside the pictures too.")
    sub.add_argument("--json", action="store_true", help="Print one JSON document on stdout.")
    classic = add("prepare_buckets_latents", "sd-scripts' tool of this name; leads to `data cache`.", _refuse)
    classic.add_argument("words", nargs=argparse.REMAINDER)


def _refuse(_parsed: argparse.Namespace) -> int:
    raise EngineError(
        "prepare_buckets_latents: buckets are planned from pictures and settings, so write in_json, train_data_dir,"
        " resolution and the model into a run.toml, then `data cache RUN.toml` (--npz for files beside the pictures)"
    )


def _cache(parsed: argparse.Namespace) -> int:
    loaded = load_run(parsed.run, parsed.set)
    was_set = loaded.settings.memory.cache_latents_to_disk
    display = make_display(loaded.settings.logging)
    tell = Teller([display])
    try:
        if not was_set:
            message = (
                "run.toml does not set cache_latents_to_disk, without which training won't use what is cached here"
            )
            tell(Warned(code="cache-unused", message=message))
        document = _fill(loaded, tell, writes_npz=parsed.npz)
    except KeyboardInterrupt:
        tell(Warned(code="interrupted", message="what is encoded stays; the same command goes on from there"))
        return INTERRUPTED
    finally:
        display.close()
    if parsed.json:
        json.dump(document, sys.stdout, indent=1)
        sys.stdout.write("\n")
    return DONE


def _fill(loaded: LoadedSettings, tell: Teller, *, writes_npz: bool) -> dict[str, object]:
    from engine.headless import cache_dir_for
    from engine.plan import make_plan
    from engine.rules import find_problems

    settings = loaded.settings.replace(cache_latents_to_disk=True)
    problems = find_problems(settings, loaded.places)
    folder = cache_dir_for(loaded)
    plan = make_plan(settings, cache_dir=folder, progress=tell.progress("scan"))
    problems = (*problems, *plan.problems)
    if any(problem.severity == "error" for problem in problems):
        raise ProblemsError(problems)
    from engine.caching import cache_ahead
    from engine.librarylog import quieten

    quieten()
    filled = cache_ahead(settings, plan, cache_dir=folder, tell=tell, writes_npz=writes_npz)
    texts = "captions change from step to step" if filled.texts is None else f"{filled.texts} captions"
    sys.stderr.write(f"{filled.latents} latents, {texts}, in {safe_text(str(folder))}\n")
    if writes_npz:
        kept = filled.npz_kept
        sys.stderr.write(f"{filled.npz_written} .npz files written, {len(kept)} were there and stay\n")
    return {
        "latents": filled.latents,
        "texts": filled.texts,
        "npz_written": filled.npz_written,
        "npz_kept": list(filled.npz_kept),
        "folder": str(folder),
    }

"""The verbs that start nothing: `check`, `plan` and `probe`. Torch-free at import."""

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from engine.cli import DONE, WRONG
from engine.errors import EngineError, Problem, ProblemsError, Values, safe_text
from engine.hardware import card_to_compare
from engine.settings_io import LoadedSettings, load_run

Add = Callable[[str, str, Callable[[argparse.Namespace], int]], argparse.ArgumentParser]


def register(add: Add) -> None:
    """Add the verbs to the command line."""
    for name, text, verb in (
        ("check", "Name every problem of a run.toml.", _check),
        ("plan", "Say what training a run.toml would do.", _plan),
    ):
        sub = add(name, text, verb)
        _add_run(sub)
        sub.add_argument("--gpu_arch", metavar="8.6", help="Compare with a card of this compute capability.")
        sub.add_argument("--gpu_memory_gib", type=float, metavar="12", help="Compare with a card of this size.")
    probe = add("probe", "Measure on the model itself what its files do not tell; minutes without a card.", _probe)
    _add_run(probe)
    probe.add_argument("names", nargs="*", metavar="PROBE", help="prediction, vae or step; all of them if left out.")
    probe.add_argument("--again", action="store_true", help="Measure anew what is known from before.")


def _add_run(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", type=Path, metavar="RUN.toml")
    sub.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="Change a setting; KEY= is its default."
    )
    sub.add_argument("--json", action="store_true", help="Print one JSON document on stdout.")


def _check(parsed: argparse.Namespace) -> int:
    problems: tuple[Problem, ...]
    try:
        loaded = load_run(parsed.run, parsed.set)
        problems = _inspect(loaded, parsed).problems
    except ProblemsError as error:
        problems = error.problems
    except EngineError as error:
        problems = (Problem(code="unreadable", severity="error", where=str(parsed.run), message=str(error)),)
    errors = sum(problem.severity == "error" for problem in problems)
    if parsed.json:
        _dump([problem.as_json() for problem in problems], indent=1)
    else:
        print_problems(problems)
        _say(f"{_count(errors, 'error')}, {_count(len(problems) - errors, 'remark')}")
    return WRONG if errors else DONE


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _plan(parsed: argparse.Namespace) -> int:
    from engine.report import plan_report, print_plan

    loaded = load_run(parsed.run, parsed.set)
    found = _inspect(loaded, parsed)
    if found.plan is None:
        raise ProblemsError(found.problems)
    document = plan_report(found)
    if parsed.json:
        _dump(document)
    else:
        print_plan(document)
        print_problems(found.problems)
    return WRONG if found.has_errors else DONE


def _probe(parsed: argparse.Namespace) -> int:
    from engine.headless import cache_dir_for
    from engine.probe_results import PROBES
    from engine.probing import probe_run

    unknown = [name for name in parsed.names if name not in PROBES]
    if unknown:
        raise EngineError(f"{safe_text(unknown[0])} is no probe: give {', '.join(PROBES)}, or none for all")
    loaded = load_run(parsed.run, parsed.set)
    results = []
    for result in probe_run(loaded, parsed.names, cache_dir=cache_dir_for(loaded), anew=parsed.again):
        results.append(result)
        _say(f"{result.name}: {result.message}")
    if parsed.json:
        _dump([result.as_json() for result in results], indent=1)
    return DONE


def _inspect(loaded: LoadedSettings, parsed: argparse.Namespace) -> Any:  # noqa: ANN401 - imported late
    from engine.headless import cache_dir_for
    from engine.inspection import inspect_run

    card = card_to_compare(parsed.gpu_arch, parsed.gpu_memory_gib)
    return inspect_run(loaded, cache_dir=cache_dir_for(loaded), card=card)


def _dump(document: object, indent: int | None = None) -> None:
    json.dump(document, sys.stdout, indent=indent)
    sys.stdout.write("\n")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def print_problems(problems: Iterable[Problem]) -> None:
    """Print findings to stderr, each with its remedy, the flags that apply it, and the reason."""
    width = min(100, shutil.get_terminal_size().columns) - 1
    for problem in problems:
        for line in problem_lines(problem, width):
            _say(line)


def problem_lines(problem: Problem, width: int) -> Iterator[str]:
    """Yield one finding, wrapped."""
    place = f"{problem.where}: " if problem.where else ""
    yield from _wrapped(f"{problem.severity}: {place}{problem.message} [{problem.code}]", "", "  ", width)
    if problem.fix:
        yield from _wrapped(problem.fix, "  fix: ", "       ", width)
    if problem.values and not problem.ways:
        yield f"       {flags_of(problem.values)}"
    for words, values in problem.ways:
        yield f"       {flags_of(values)}"
        yield from _wrapped(words, "         ", "         ", width)
    if problem.reason:
        yield from _wrapped(problem.reason, "  why: ", "       ", width)


def _wrapped(text: str, first: str, rest: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def flags_of(values: Values) -> str:
    """Return a change of settings as flags to paste behind the command; an empty value is the default."""
    return " ".join(f"--set {_quoted(f'{name}={_shown(value)}')}" for name, value in values)


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return json.dumps(list(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)

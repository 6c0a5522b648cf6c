"""The headless command line: `python -m engine VERB ...`, and the same verbs under `sdtui`."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from engine import flags
from engine.captioning import cli as data_cli
from engine.control import STOP_CODES
from engine.errors import EngineError, Problem, ProblemsError, Severity, safe_text
from engine.settings_io import LoadedSettings, load_run

DONE, FAILED, WRONG = 0, 1, 2

# Verbs that need the screens: refused by name.
LATER = {
    "attach": "the training screen belongs to sdtui: `sdtui attach DIR`, or follow events.jsonl in the run folder",
    "serve": "the app in a browser belongs to sdtui: `sdtui serve`",
}


def main(arguments: Sequence[str] | None = None, program: str = "python -m engine") -> int:
    """Run one verb and return the exit code; a person sees one sentence, never a traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words, program)
    except ProblemsError as error:
        report(error.problems, only="error")  # Warnings matter once it runs.
        return WRONG
    except EngineError as error:
        return _complain(str(error))
    except KeyboardInterrupt as interrupt:
        code = STOP_CODES.get(str(interrupt), 130)
        return _complain("interrupted; nothing was started", code=code)
    except BrokenPipeError:
        return FAILED
    except Exception as error:  # The outermost boundary: a bug must end as a sentence too.
        if os.environ.get("SDTUI_DEBUG"):
            raise
        shown = safe_text(f"{type(error).__name__}: {error}")
        return _complain(f"internal error, {shown} (SDTUI_DEBUG=1 shows where)", code=FAILED)


def _dispatch(words: list[str], program: str) -> int:
    if words and words[0] in LATER:
        return _complain(f"{program} {words[0]}: {LATER[words[0]]}")
    parser = build_parser(program)
    parsed, rest = parser.parse_known_args(words)
    verb: Callable[[argparse.Namespace], int] | None = getattr(parsed, "verb", None)
    if verb is None:
        parser.print_help(sys.stderr)
        return WRONG
    parsed.words = words[1:]
    if rest and verb is not _fine_tune:
        return _complain(f"{program} {words[0]}: {safe_text(rest[0])} is not understood; see --help")
    return verb(parsed)


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    from engine import check_verbs, memory_verb, resume_verb

    parser = argparse.ArgumentParser(prog=program, description="Fine-tune all of Stable Diffusion.", allow_abbrev=False)
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, text: str, verb: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(verb=verb)
        return sub

    train = add("train", "Train a run.toml without a screen.", _train)
    train.add_argument("run", type=Path, metavar="RUN.toml")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="Change a setting.")
    train.add_argument("--background", action="store_true", help="Return at once; the run goes on by itself.")
    train.add_argument("--announce", action="store_true", help=argparse.SUPPRESS)
    check_verbs.register(add)
    memory_verb.register(add)
    fine_tune = add("fine_tune", "Train from the classic flags of sd-scripts' fine_tune.py.", _fine_tune)
    flags.add_setting_flags(fine_tune)
    convert = add("convert", "Convert between a single file and a diffusers folder, and compare.", _convert)
    convert.add_argument("source")
    convert.add_argument("target", type=Path)
    convert.add_argument("--save_precision", choices=["float", "fp16", "bf16"])
    convert.add_argument("--v_parameterization", choices=["true", "false"], help="Say what the file does not tell.")
    verify = add("verify", "Re-open a saved model and certify it.", _verify)
    verify.add_argument("model", type=Path)
    verify.add_argument("--json", action="store_true", help="Print one JSON document on stdout.")
    data_cli.register(add)
    resume_verb.register(add)
    schema = add("schema", "Write docs/settings.md and the JSON Schemas.", _schema)
    schema.add_argument("--folder", type=Path, default=Path("docs"))
    return parser


def report(problems: Sequence[Problem], *, only: Severity | None = None) -> None:
    """Print findings to stderr, the gravest first, or those of one severity only."""
    for severity in (only,) if only else ("error", "warning", "info"):
        for problem in problems:
            if problem.severity == severity:
                _say(f"{severity}: {problem}")


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # Nobody reads it any more; that must not end a training.
        sys.stderr.write(f"{line}\n")


def _complain(message: str, *, code: int = WRONG) -> int:
    _say(message)
    return code


def _train(parsed: argparse.Namespace) -> int:
    loaded = load_run(parsed.run, parsed.set)
    if parsed.background:
        from engine.background import start_in_background

        pid = start_in_background(parsed.run, parsed.set)
        return _complain(f"training goes on as process {pid}: {loaded.settings.saving.output_dir}", code=DONE)
    if parsed.announce:
        from engine.background import train_announced

        return train_announced(loaded)
    return run_training(loaded)


def _fine_tune(parsed: argparse.Namespace) -> int:
    parser = argparse.ArgumentParser(prog="python -m engine fine_tune", allow_abbrev=False)
    flags.add_setting_flags(parser)
    target = flags.config_to_write(parser, parsed.words)
    loaded = flags.settings_from_flags(parser, parsed.words, reads_config=target is None)
    if target is None:
        return run_training(loaded, is_classic=True)
    flags.write_config(loaded.settings, target)
    return _complain(f"wrote {safe_text(str(target))}; nothing is trained", code=DONE)


def run_training(loaded: LoadedSettings, *, is_classic: bool = False) -> int:
    """Train and return the exit code; the heavy imports happen only here."""
    from engine.headless import train_headless

    if is_classic:
        loaded = say_classic_defaults(loaded)
    report(loaded.warnings)
    return train_headless(loaded)


def say_classic_defaults(loaded: LoadedSettings) -> LoadedSettings:
    """Read `--v2` without `--v_parameterization` as sd-scripts does, as a model that predicts noise, and say so."""
    model = loaded.settings.model
    if not model.v2 or model.v_parameterization is not None:
        return loaded
    message = "--v2 without --v_parameterization is read as a model that predicts noise (SD 2.x base)"
    note = Problem(code="classic-default", severity="info", where="--v2", message=message)
    settings = loaded.settings.replace(v_parameterization=False)
    return replace(loaded, settings=settings, warnings=(*loaded.warnings, note))


def _convert(parsed: argparse.Namespace) -> int:
    from engine.models.convert import convert

    is_v = None if parsed.v_parameterization is None else parsed.v_parameterization == "true"
    result = convert(parsed.source, parsed.target, save_precision=parsed.save_precision, v_parameterization=is_v)
    _say(str(result))
    return DONE


def _verify(parsed: argparse.Namespace) -> int:
    from engine.models.verify import verify

    result = verify(parsed.model)
    if parsed.json:
        json.dump(result.as_json(), sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        _say(str(result))
    return DONE if result.ok else WRONG


def _schema(parsed: argparse.Namespace) -> int:
    from engine.schema import write_documents

    for path in write_documents(parsed.folder):
        _say(f"wrote {path}")
    return DONE

"""The console script: the wizard when bare, else one verb; heavy imports wait until a verb needs them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

WRONG = 2
SCREENS = """\
screens:
  (none)      Open the wizard, on Home.
  RUN.toml    Open the wizard on a file.
  demo        Write the starter project and open the wizard on it.
  attach DIR  Watch a run that is running or finished.
  serve       Show the wizard in a browser, on this machine only."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or (len(words) == 1 and words[0].endswith(".toml")):
        return open_wizard(Path(words[0]) if words else None)
    if words[0] == "demo":
        from sdtui.demo import demo

        return demo(words[1:])
    if words[0] == "attach":
        return _attach(words[1:])
    if words[0] == "serve":
        from sdtui.browser.serve import serve

        return serve(words[1:])
    if words[0] in ("-h", "--help"):
        return _help()
    from engine.cli import main as headless

    return headless(words, program="sdtui")


def _help() -> int:
    from engine.cli import build_parser

    parser = build_parser("sdtui")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = SCREENS
    parser.print_help()
    return 0


def has_terminal() -> bool:
    """Tell whether a person sits at both ends of this process."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def open_wizard(path: Path | None = None, *, attach: Path | None = None) -> int:
    """Open the app on Home, on a run.toml, or on a run; return the exit code."""
    if not has_terminal():
        sys.stderr.write("sdtui needs a terminal for its screens; without one use `sdtui train RUN.toml`\n")
        return WRONG
    from sdtui.app import SdtuiApp
    from sdtui.guard import run_app

    return run_app(SdtuiApp(open_path=path, attach=attach))


def _attach(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="sdtui attach", description="Watch a run that is running or finished, from any terminal."
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="the run's folder")
    parser.add_argument("--plain", action="store_true", help="print lines instead of a screen")
    parsed = parser.parse_args(list(words))
    from engine.errors import safe_text
    from engine.run import RunFolder

    folder = RunFolder(parsed.dir)
    if not folder.holds_run():
        sys.stderr.write(f"{safe_text(str(parsed.dir))} holds no run: name the folder that has events.jsonl in it\n")
        return WRONG
    if not parsed.plain and has_terminal():
        return open_wizard(attach=parsed.dir)
    from sdtui.attach import attach_plain

    return attach_plain(folder)


if __name__ == "__main__":
    sys.exit(main())

"""The console script: the wizard when bare, else one verb; heavy imports wait until a verb needs them."""

import sys
from collections.abc import Sequence

WRONG = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["demo"]:
        from sdtui.demo import demo

        return demo(words[1:])
    if not words:
        sys.stderr.write(
            "sdtui will open a wizard here, from a folder of pictures to a fine-tuned model; until it lands, "
            "try `sdtui demo`, or `sdtui --help` for the headless commands\n"
        )
        return WRONG
    from engine.cli import main as headless

    return headless(words, program="sdtui")


if __name__ == "__main__":
    sys.exit(main())

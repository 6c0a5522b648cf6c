"""`python -m engine`: every headless verb, without Textual, so that it runs under `accelerate launch`."""

import sys

from engine.cli import main

if __name__ == "__main__":
    sys.exit(main())

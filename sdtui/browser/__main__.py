"""The app of one browser tab: `sdtui serve` starts it with pipes in place of a terminal."""

import sys

from sdtui.app import SdtuiApp
from sdtui.guard import run_app
from sdtui.terminal import browser_terminal

if __name__ == "__main__":
    sys.exit(run_app(SdtuiApp(terminal=browser_terminal())))

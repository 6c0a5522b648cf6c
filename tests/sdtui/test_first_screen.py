"""The first screen comes before anything heavy: proved in a fresh process on a real terminal."""

from tests.sdtui.pty_support import PtyProcess

# Writes down which heavy modules are there when Home has been drawn, before the wizard is imported behind it.
SCRIPT = """
import sys
from pathlib import Path
from sdtui.app import SdtuiApp
from sdtui.guard import run_app

class Watched(SdtuiApp):
    CSS_PATH = Path(sys.modules["sdtui.app"].__file__).with_name("app.tcss")
    def _after_first_paint(self):
        heavy = ("torch", "numpy", "PIL", "pydantic", "tomlkit", "psutil", "diffusers", "transformers", "pygments")
        Path("heavy.txt").write_text(" ".join(name for name in heavy if name in sys.modules))
        self.exit("quit")

sys.exit(run_app(Watched()))
"""


def test_nothing_heavy_is_imported_before_the_first_screen(tmp_path):
    process = PtyProcess(SCRIPT, cwd=tmp_path)
    try:
        process.read_until(b"Recent", seconds=20)
        assert process.wait() == 0
    finally:
        process.close()

    assert (tmp_path / "heavy.txt").read_text() == ""


WARM = """
    def _after_first_paint(self):
        self._warm_up()
        self.set_interval(0.1, self._look)
    def _look(self):
        if "engine.headless" in sys.modules:
            names = ("sdtui.screens.wizard", "sdtui.screens.options", "pydantic", "torch")
            Path("heavy.txt").write_text(" ".join(name for name in names if name in sys.modules))
            self.exit("quit")

sys.exit(run_app(Watched()))
"""


def test_the_wizard_is_warm_soon_after(tmp_path):
    """Its first key does not wait for imports, and torch is still not among them."""
    process = PtyProcess(SCRIPT[: SCRIPT.index("    def _after")] + WARM, cwd=tmp_path)
    try:
        process.read_until(b"Recent", seconds=20)
        assert process.wait(40) == 0
    finally:
        process.close()

    assert (tmp_path / "heavy.txt").read_text() == "sdtui.screens.wizard sdtui.screens.options pydantic"

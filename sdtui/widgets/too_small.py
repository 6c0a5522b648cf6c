"""What stands on a screen that is too small for anything else."""

from textual.widgets import Static

MIN_WIDTH, MIN_HEIGHT = 60, 16


class TooSmall(Static):
    """Says how large the terminal must be; hidden by the style sheet wherever it is large enough."""

    def __init__(self) -> None:
        super().__init__(markup=False)

    def on_resize(self) -> None:
        """Say the present size."""
        width, height = self.app.size
        self.update(f"sdtui needs {MIN_WIDTH}x{MIN_HEIGHT} cells, this is {width}x{height}. Training is not affected.")

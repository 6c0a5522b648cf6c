"""What is asked when the screen is closed while a training runs in this process."""

from pathlib import Path

from sdtui.recent import shown_path
from sdtui.screens.choice import Choice, ChoiceDialog


def leave_dialog(folder: Path) -> ChoiceDialog:
    """Return the dialog; it answers detach, stop or None."""
    choices = (
        Choice(
            value="detach",
            title="Detach: close the screen, go on training",
            text=f"Plain lines go on here; the window may be closed. Back: sdtui attach {shown_path(folder)}",
        ),
        Choice(value="stop", title="Stop after this step and save", text="The model is saved, then the program ends."),
        Choice(value="cancel", title="Cancel", text="Stay here."),
    )
    return ChoiceDialog("A training is running", f"{shown_path(folder)} is being trained in this process.", choices)

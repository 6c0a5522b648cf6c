"""Every key of the app in one table: bindings, footer, help screen, palette and docs/keys.md all come from it.

A screen, page or widget takes its keys with `BINDINGS = bindings("options")` and defines the actions they name.
Letters act only while no input has the focus: an input takes them first, and Esc leaves it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from textual.binding import Binding


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key in one scope: what it does, in the footer's word and in a sentence."""

    scope: str
    key: str
    action: str
    label: str
    help: str
    is_shown: bool = True
    """Stands in the footer; every key stands in the help screen, the palette and docs/keys.md."""
    has_priority: bool = False

    @property
    def shown_key(self) -> str:
        """The key as people write it: ? for question_mark, ^s for ctrl+s."""
        return ", ".join(key_name(part) for part in self.key.split(","))


SCOPES = {
    "app": "Everywhere",
    "home": "Home",
    "wizard": "Wizard, every page",
    "model": "Wizard: Model",
    "data": "Wizard: Data",
    "buckets": "Wizard: Buckets",
    "options": "Wizard: Options",
    "review": "Wizard: Review",
    "train": "Training",
    "sample": "Training: a sample, large",
    "runs": "Runs",
    "doctor": "Doctor",
    "picture": "Picture viewer",
    "captioning": "Captions",
    "dialog": "Dialogs",
    "fit": "Ways to fit the card",
    "shape": "Wizard: Buckets, settings",
    "setting": "Wizard: Model, settings",
    "list": "Lists",
}

_NAMES = {
    "question_mark": "?", "slash": "/", "left_square_bracket": "[", "right_square_bracket": "]", "space": "spc",
    "plus": "+", "minus": "-", "comma": ",", "full_stop": ".", "up": "\u2191", "down": "\u2193", "left": "\u2190",
    "right": "\u2192", "pageup": "PgUp", "pagedown": "PgDn", "enter": "enter", "escape": "esc", "f1": "F1",
    "home": "Home", "end": "End",
}  # fmt: skip


def key_name(key: str) -> str:
    """Return one key as people write it."""
    if key.startswith("ctrl+"):
        return f"^{key.removeprefix('ctrl+')}"
    if key.startswith("shift+"):
        return f"S-{key.removeprefix('shift+')}"
    return _NAMES.get(key, key)


def _keys(scope: str, rows: Iterable[tuple[str, str, str, str]], *, hidden: bool = False) -> tuple[Key, ...]:
    return tuple(
        Key(scope=scope, key=key, action=action, label=label, help=text, is_shown=not hidden)
        for key, action, label, text in rows
    )


KEYS: tuple[Key, ...] = (
    Key(scope="app", key="ctrl+q", action="leave", label="Close", help="Close the screen; a training goes on.",
        is_shown=False, has_priority=True),
    Key(scope="app", key="ctrl+c", action="copy_or_hint", label="Copy", help="Copy what is marked, or say how to quit.",
        is_shown=False),
    *_keys("app", [
        ("ctrl+p", "command_palette", "Palette", "Find any action, setting or theme by typing."),
        ("question_mark,f1", "help", "Help", "Show the keys that work here."),
    ]),
    *_keys("app", [("ctrl+t", "next_theme", "Theme", "Take the next colour theme.")], hidden=True),
    *_keys("home", [
        ("n", "new", "New", "Start a new run with the wizard."),
        ("o", "open", "Open", "Open a run.toml in the wizard."),
        ("r", "resume", "Resume", "Continue a stopped run from its newest state."),
        ("a", "attach", "Attach", "Show the training screen of a running or finished run."),
        ("u", "runs", "Runs", "Compare, rename and delete runs."),
        ("d", "demo", "Demo", "Open the wizard on the starter project."),
        ("D", "doctor", "Doctor", "Check terminal, graphics card, disk and packages."),
        ("slash", "filter", "Filter", "Show only the runs whose name or state holds a text."),
        ("q", "app.leave", "Quit", "Leave the program; a training goes on."),
    ]),
    *_keys("home", [
        ("w", "draft", "Draft", "Go on in the wizard with the draft that was left last."),
        ("s", "sort", "Sort", "Sort the runs by time, name, loss or state."),
        ("c", "clone", "Clone", "Open the wizard with a copy of the selected run's settings."),
        ("y", "copy", "Copy", "Copy the command that trains the selected run without a screen."),
        ("x", "forget", "Forget", "Take the selected run off this list; its files stay."),
    ], hidden=True),
    *_keys("wizard", [
        ("right_square_bracket", "next", "Next", "Go to the next step."),
        ("left_square_bracket", "previous", "Back", "Go to the step before."),
        ("z", "undo", "Undo", "Undo the last change."),
        ("Z", "redo", "Redo", "Redo what was undone."),
    ]),
    *_keys("wizard", [
        *((str(number), f"step({number})", f"Step {number}", f"Go to step {number}.") for number in range(1, 6)),
        ("f", "fix", "Fix", "Fix the selected problem, or the first one that can be fixed."),
        ("F", "fix_all", "Fix all", "Fix every problem that can be fixed safely."),
        ("ctrl+s", "save", "Save", "Write the run.toml."),
        ("E", "editor", "$EDITOR", "Edit the TOML in your editor; comments are kept."),
        ("g", "start", "Start", "Go to Review, and from there start the training."),
        ("escape,q", "close", "Home", "Go back to Home; the draft is kept."),
    ], hidden=True),
    *_keys("model", [
        ("p", "path", "Path", "Type a file, a diffusers folder or a hub id; Tab completes, Enter takes it."),
        ("slash", "search", "Search", "Search known models by a few letters."),
        ("e", "epsilon", "eps/v", "Say what the model predicts, where its file does not tell."),
    ]),
    *_keys("model", [
        ("m", "probe", "Measure", "Measure on your pictures whether the model predicts noise or v, and set it."),
        ("d", "fetch", "Fetch", "Fetch a hub model now rather than at the start of the run."),
        ("f", "fix", "Fix", "Fix the selected setting's or listed problem, else the first one that can be fixed."),
        ("r", "reset", "Reset", "Take the selected setting back to its default."),
    ], hidden=True),
    *_keys("data", [
        ("a", "add", "Add", "Add a folder, a metadata file or a dataset.toml."),
        ("slash", "filter", "Filter", "Show only pictures whose name or caption holds a text."),
        ("v", "view", "View", "Show the picture, its crop and its caption as the model will see them."),
        ("t", "side", "Tags", "Show token lengths, the most frequent tags, or the folders."),
        ("e", "edit", "Edit", "Edit repeats and options of a folder."),
        ("c", "cancel_scan", "Rescan", "Stop the scan, or scan again."),
        ("C", "captions", "Captions", "Caption or tag the folder's pictures, edit and undo."),
    ]),
    *_keys("data", [
        ("f", "fix", "Fix", "Fix the selected finding, where a setting does it."),
        ("x", "remove", "Remove", "Take the selected folder out of the data set; its files stay."),
    ], hidden=True),
    *_keys("buckets", [
        ("enter", "view", "Pictures", "On a bucket: list its pictures, those that lose most first; there: show one."),
        ("e", "edit", "Edit", "Type a value for the selected setting."),
        ("u", "toggle_upscale", "Upscale", "Allow or forbid enlarging small pictures."),
        ("b", "toggle_buckets", "Buckets", "Turn aspect-ratio buckets on or off."),
        ("plus", "more", "Batch+", "Take one picture more in a batch."),
        ("minus", "fewer", "Batch-", "Take one picture fewer in a batch."),
        ("s", "shapes", "Shapes", "Show how many pictures there are of each shape and size."),
    ]),
    *_keys("shape", [
        ("left,h", "step(-1)", "Less", "Take the value before."),
        ("right,l", "step(1)", "More", "Take the value after."),
    ], hidden=True),
    *_keys("options", [
        ("slash", "search", "Search", "Search all settings by name and help."),
        ("f", "fix", "Fix", "Fix the selected setting's or listed problem, else the first one that can be fixed."),
        ("r", "reset", "Reset", "Take the selected setting back to its default."),
        ("m", "fit_memory", "Fit", "List the ways to make the run fit the graphics card, the cheapest first."),
        ("P", "presets", "Presets", "Apply a set of values: 12 GB, 16 GB, 24 GB, quality, quick test."),
    ]),
    *_keys("options", [
        ("e", "edit", "Edit", "Edit the selected setting."),
        ("space", "switch", "Switch", "Turn a switch, or take the next choice."),
        ("R", "reset_group", "Reset group", "Take every setting of the group back to its default."),
        ("c", "changed_only", "Changed", "Show only the settings that differ from their default."),
        ("y", "copy", "Copy", "Copy the setting as TOML."),
    ], hidden=True),
    *_keys("review", [
        ("s", "start_here", "Start", "Save and train here; the screen may be closed at any time."),
        ("b", "start_background", "Background", "Save and train in a process of its own."),
        ("w", "save", "Save", "Write the run.toml and start nothing."),
        ("y", "copy", "Copy command", "Copy the command that trains this without a screen."),
        ("d", "diff", "Diff", "Show what saving changes in the file, or the whole text."),
    ]),
    *_keys("train", [
        ("space", "pause", "Pause", "Pause the training after the step, or go on."),
        ("S", "save", "Save", "Save a model now."),
        ("P", "sample", "Sample", "Draw a sample now: a prompt you type, or all of the run's."),
        ("X", "stop", "Stop", "Stop after the step or the epoch, with or without saving."),
        ("d", "detach", "Detach", "Close the screen; the training goes on."),
        ("l", "log", "Log", "Show the log."),
        ("t", "metric", "Metric", "Plot loss, learning rate, gradient norm or speed."),
        ("e", "smoothing", "Smooth", "Change the smoothing."),
    ]),
    *_keys("train", [
        ("L", "log_scale", "Log y", "Switch the plot between linear and logarithmic."),
        ("b", "band", "Band", "Show one band of timesteps, or all."),
        ("B", "bucket", "Bucket", "Show one bucket, or all."),
        ("c", "cursor", "Cursor", "Read values off the plot; arrows move."),
        ("plus", "zoom_in", "Zoom in", "Zoom into the plot."),
        ("minus", "zoom_out", "Zoom out", "Zoom out of the plot."),
        ("0", "fit", "Fit", "Show the whole run."),
        ("left", "pan(-1)", "Pan left", "Move the plot to earlier steps."),
        ("right", "pan(1)", "Pan right", "Move the plot to later steps."),
        ("slash", "filter", "Filter", "Show only events that hold a text."),
        ("comma", "gallery(-1)", "Older", "Show the samples of an earlier step."),
        ("full_stop", "gallery(1)", "Newer", "Show the samples of a later step."),
        ("enter,v", "view", "View", "Show the selected sample large."),
        ("E", "cadence", "Cadence", "Change how often samples are drawn."),
        ("escape,q", "close", "Back", "Close the screen; the training goes on."),
    ], hidden=True),
    *_keys("sample", [
        ("left", "prompt(-1)", "Prompt before", "Show the sample of the prompt before."),
        ("right", "prompt(1)", "Prompt after", "Show the sample of the next prompt."),
        ("down,comma", "step(-1)", "Earlier", "Show the same prompt at an earlier step."),
        ("up,full_stop", "step(1)", "Later", "Show the same prompt at a later step."),
    ]),
    *_keys("runs", [
        ("space", "select", "Select", "Take the run into the comparison, or out."),
        ("enter", "open", "Open", "Show the run's training screen."),
        ("r", "resume", "Resume", "Continue a stopped run."),
        ("c", "clone", "Rerun", "Open the wizard with the run's settings."),
        ("n", "rename", "Rename", "Rename the run's folder."),
        ("X", "delete", "Delete", "Delete the run's folder after asking."),
        ("slash", "filter", "Filter", "Show only runs that hold a text."),
        ("z", "undo", "Undo", "Take the last deletion or renaming back."),
    ]),
    *_keys("runs", [
        ("L", "log_scale", "Log y", "Switch the plot between linear and logarithmic."),
        ("e", "smoothing", "Smooth", "Change the smoothing."),
        ("comma", "sample_step(-1)", "Older", "Compare samples of an earlier step."),
        ("full_stop", "sample_step(1)", "Newer", "Compare samples of a later step."),
        ("left", "prompt(-1)", "Prompt before", "Compare the samples of the prompt before."),
        ("right", "prompt(1)", "Prompt after", "Compare the samples of the next prompt."),
        ("s", "sort", "Sort", "Sort by time, name, loss or state."),
        ("y", "copy", "Copy", "Copy the command that trains the run again."),
        ("escape,q", "close", "Home", "Go back to Home."),
    ], hidden=True),
    *_keys("doctor", [
        ("r", "again", "Again", "Check again."),
        ("y", "copy", "Copy", "Copy the report."),
        ("g", "ask", "Ask", "Ask the terminal whether it can show real pictures."),
        ("b", "bell", "Notify", "Send a test notification to the terminal."),
        ("escape,q", "close", "Home", "Go back to Home."),
    ]),
    *_keys("captioning", [
        ("p", "preview", "Preview", "Try the captioner on the marked pictures, or a few; nothing is written."),
        ("r", "run", "Run", "Caption the marked pictures, or all that are listed."),
        ("c", "stop", "Stop", "Stop the captioner after its batch; r goes on from there."),
        ("e", "edit", "Edit", "Edit the picture's text."),
        ("s", "search", "Replace", "Search and replace in the marked pictures' texts, or all."),
        ("z", "undo", "Undo", "Take back the newest change of the folder, byte for byte."),
        ("t", "captioner", "Captioner", "Take the next captioner: BLIP, WD14, DeepDanbooru."),
        ("m", "model", "Model", "Name the captioner's folder or hub id."),
        ("v", "options", "Options", "Thresholds, beams, lengths, and a metadata file to write into."),
        ("o", "mode", "Mode", "Replace, append to, prepend to or skip texts that are there."),
    ]),
    *_keys("captioning", [
        ("space", "mark", "Mark", "Mark the picture, or take the mark away."),
        ("slash", "filter", "Filter", "Show only pictures whose name or text holds a text."),
        ("escape,q", "close", "Back", "Go back to the Data page."),
    ], hidden=True),
    *_keys("picture", [
        ("left", "previous", "Before", "Show the picture before."),
        ("right", "next", "After", "Show the next picture."),
        ("space", "draw_again", "Draw", "Draw caption and crop anew, as another epoch would."),
        ("escape,q", "close", "Back", "Close the picture."),
    ]),
    *_keys("setting", [
        ("enter", "select", "Edit", "Edit the selected setting; Space turns a switch."),
    ]),
    *_keys("setting", [
        ("space", "turn", "Switch", "Turn a switch, or take the next choice."),
    ], hidden=True),
    *_keys("list", [
        ("up,k", "move(-1)", "Up", "Go one row up."),
        ("down,j", "move(1)", "Down", "Go one row down."),
        ("pageup", "move_page(-1)", "Page up", "Go one page up."),
        ("pagedown", "move_page(1)", "Page down", "Go one page down."),
        ("home", "move_to(0)", "First", "Go to the first row."),
        ("end", "move_to(-1)", "Last", "Go to the last row."),
        ("enter", "select", "Select", "Take the row."),
    ], hidden=True),
    *_keys("fit", [
        (str(number), f"take({number - 1})", f"Way {number}", f"Make the changes of way {number}.")
        for number in range(1, 7)
    ], hidden=True),
    *_keys("dialog", [("escape,q", "close", "Close", "Close without doing anything.")]),
)  # fmt: skip


def keys_of(scope: str) -> tuple[Key, ...]:
    """Return the keys of a scope in the order of the table."""
    return tuple(key for key in KEYS if key.scope == scope)


def bindings(scope: str) -> list[Binding]:
    """Return the keys of a scope as Textual bindings, each with the id that a keymap may change."""
    return [
        Binding(
            key.key, key.action, key.label, show=key.is_shown, priority=key.has_priority, tooltip=key.help,
            key_display=key.shown_key.split(", ")[0], id=f"{scope}.{key.action}",
        )
        for key in keys_of(scope)
    ]  # fmt: skip


def keys_markdown() -> str:
    """Return docs/keys.md."""
    lines = ["# Keys", "", "Generated by `python -m sdtui.keys`; do not edit.", ""]
    lines += ["`^s` is Ctrl+S. Letters act only while no input has the focus; Esc leaves an input."]
    lines += [
        "Arrows, hjkl, PgUp, PgDn, Home, End, Tab and Shift+Tab move. The mouse works everywhere and is never needed."
    ]
    for scope, title in SCOPES.items():
        lines += ["", f"## {title}", "", "| key | does |", "|---|---|"]
        lines += [f"| {_code(key)} | {key.help} |" for key in keys_of(scope)]
    return "\n".join(lines) + "\n"


def _code(key: Key) -> str:
    return " ".join(f"`{part}`" for part in key.shown_key.split(", "))


if __name__ == "__main__":
    from pathlib import Path

    target = Path("docs/keys.md")
    target.parent.mkdir(exist_ok=True)
    target.write_text(keys_markdown(), encoding="utf-8")

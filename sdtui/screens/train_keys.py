"""Keys of the training and runs screens beyond the table in sdtui/keys.py."""

from textual.binding import Binding, BindingType

from sdtui.keys import Key

EXTRA_KEYS = (
    Key(scope="train", key="comma", action="gallery(-1)", label="Older", help="Show the samples of an earlier step.",
        is_shown=False),
    Key(scope="train", key="full_stop", action="gallery(1)", label="Newer", help="Show the samples of a later step.",
        is_shown=False),
    Key(scope="train", key="v", action="view", label="View", help="Show a sample large.", is_shown=False),
    Key(scope="train", key="c", action="cursor", label="Cursor", help="Read values off the plot.", is_shown=False),
    Key(scope="runs", key="z", action="undo", label="Undo", help="Take the last deletion or renaming back."),
    Key(scope="runs", key="L", action="log_scale", label="Log y", help="Switch the plot's scale.", is_shown=False),
    Key(scope="runs", key="e", action="smoothing", label="Smooth", help="Change the smoothing.", is_shown=False),
    Key(scope="runs", key="comma", action="sample_step(-1)", label="Older", help="Compare samples of an earlier step.",
        is_shown=False),
    Key(scope="runs", key="full_stop", action="sample_step(1)", label="Newer",
        help="Compare samples of a later step.", is_shown=False),
    Key(scope="runs", key="left", action="prompt(-1)", label="Prompt", help="Compare the prompt before.",
        is_shown=False),
    Key(scope="runs", key="right", action="prompt(1)", label="Prompt", help="Compare the next prompt.",
        is_shown=False),
)  # fmt: skip


def extra_bindings(scope: str) -> list[BindingType]:
    """Return the keys of a scope as Textual bindings."""
    return [
        Binding(key.key, key.action, key.label, show=key.is_shown, tooltip=key.help, key_display=key.shown_key)
        for key in EXTRA_KEYS
        if key.scope == scope
    ]

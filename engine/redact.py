"""Keys and tokens kept out of logs, whoever prints them. Torch-free."""

import os
import re

SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "WANDB_API_KEY")
_SHOWN = "[secret left out]"
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
# Forty hexadecimal digits may be a commit too: they are a key only after a word that says so.
_KEY = re.compile(
    r"(?i)((?:wandb|api[_-]?key|token|login|bearer)\W{1,3}(?:\w+\W{1,3}){0,3})\b(?:local-)?[0-9a-f]{40}\b"
)
_HEADER = re.compile(r"(?i)(authorization\W{1,4}(?:bearer|basic)\s+)[\w.+/=-]{8,}")


def redact(text: str) -> str:
    """Return text without Hugging Face tokens, wandb keys, authorization headers and the values of their variables."""
    for name in SECRET_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= 8:
            text = text.replace(value, _SHOWN)
    text = _TOKEN.sub(_SHOWN, text)
    text = _KEY.sub(rf"\1{_SHOWN}", text)
    return _HEADER.sub(rf"\1{_SHOWN}", text)

"""What a single model file does not hold: the configs of the families, and the CLIP tokenizer. Torch-free.

The files under sd1/, sd2/ and sdxl/ state the published architectures in diffusers' own format; clip_tokenizer/ is
OpenAI's vocabulary (MIT), shared by all families.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
TOKENIZER = FOLDER / "clip_tokenizer"
_FILES = {
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "text_encoder_2": "text_encoder_2/config.json",
    "scheduler": "scheduler/scheduler_config.json",
    "pipeline": "model_index.json",
}


def family_config(family: str, part: str) -> dict[str, Any]:
    """Return the published config of a family's "unet", "vae", "text_encoder", "scheduler" or "pipeline"."""
    config: dict[str, Any] = json.loads((FOLDER / family / _FILES[part]).read_text("utf-8"))
    return config

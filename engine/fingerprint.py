"""What a cache is keyed by: the identity of the model part that made its contents."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn


def fingerprint(module: "nn.Module", *parts: object) -> str:
    """Return a SHA-256 (hex) over a module's weights, its configuration and whatever else changes what it gives.

    Weights of another precision are other weights: they give other results. Reads every byte once, about a second
    for a gigabyte, so ask once a run.
    """
    digest = hashlib.sha256(json.dumps([_config_of(module), [str(part) for part in parts]], sort_keys=True).encode())
    # transformers 5.6 dropped the prefix; the weights are the same.
    named = {name.removeprefix("text_model."): tensor for name, tensor in module.state_dict().items()}
    for name, tensor in sorted(named.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _config_of(module: "nn.Module") -> dict[str, str]:
    """Return the configuration without what says where it came from: paths and library versions."""
    config: Any = getattr(module, "config", None) or {}
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {key: str(value) for key, value in values.items() if not (key.startswith("_") or "version" in key)}

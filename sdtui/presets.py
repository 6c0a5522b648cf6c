"""Sets of values to start from, each with the reason for it; plain data over setting names."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Values for one purpose; None takes a setting back to its default."""

    name: str
    title: str
    explanation: str
    values: Mapping[str, object]


_COMMON: Mapping[str, object] = {
    "resolution": "512,512",
    "enable_bucket": True,
    "shuffle_caption": True,
    "mixed_precision": "fp16",
    "cache_latents": True,
    "learning_rate": "5e-6",
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 100,
    "min_snr_gamma": 5,
    "save_precision": "fp16",
}

PRESETS = (
    Preset(
        name="12gb",
        title="12 GB",
        explanation=(
            "Weights and gradients of SD 1.x in fp32 take 6.9 GB; 8-bit Adam adds 1.7 GB where Adam adds 6.9 GB, and "
            "checkpointing keeps activations small. Latents are encoded once, so the VAE takes no memory. fp16 "
            "works on every card; set bf16 from the RTX 30 series on."
        ),
        values={
            **_COMMON,
            "optimizer_type": "AdamW8bit",
            "gradient_checkpointing": True,
            "train_batch_size": 1,
            "gradient_accumulation_steps": 4,
        },
    ),
    Preset(
        name="16gb",
        title="16 GB",
        explanation="As for 12 GB, with bf16, four pictures in a batch and no accumulation: steadier and faster.",
        values={
            **_COMMON,
            "mixed_precision": "bf16",
            "optimizer_type": "AdamW8bit",
            "gradient_checkpointing": True,
            "train_batch_size": 4,
            "gradient_accumulation_steps": 1,
        },
    ),
    Preset(
        name="24gb",
        title="24 GB",
        explanation="Exact AdamW (fp32 weights and states: 10.3 GB), bf16 activations with checkpointing, batch 4.",
        values={
            **_COMMON,
            "mixed_precision": "bf16",
            "optimizer_type": "AdamW",
            "gradient_checkpointing": True,
            "train_batch_size": 4,
            "gradient_accumulation_steps": 1,
        },
    ),
    Preset(
        name="quality",
        title="Quality",
        explanation=(
            "Slow and careful: low rate with a cosine end, effective batch 16, an average of the weights for samples "
            "and saved models, 5 % of captions dropped for guidance, and 225 tokens. Add it on top of a memory preset."
        ),
        values={
            "learning_rate": "2e-6",
            "lr_scheduler": "cosine",
            "lr_warmup_steps": 0.05,
            "gradient_accumulation_steps": 4,
            "use_ema": True,
            "ema_decay": 0.999,
            "caption_dropout_rate": 0.05,
            "max_token_length": 225,
            "min_snr_gamma": 5,
            "save_n_epoch_ratio": 4,
        },
    ),
    Preset(
        name="quick",
        title="Quick test",
        explanation="A hundred steps at 512 pixels to see that everything works: model, pictures, captions, disk.",
        values={
            "resolution": "512,512",
            "max_train_steps": 100,
            "max_train_epochs": None,
            "lr_scheduler": "constant",
            "lr_warmup_steps": None,
            "use_ema": None,
            "ema_decay": None,
            "save_every_n_epochs": None,
            "save_n_epoch_ratio": None,
        },
    ),
)

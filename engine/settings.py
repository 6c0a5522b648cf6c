"""The one settings model: TOML, flags, forms, documentation and the JSON Schema all derive from it. Torch-free.

Every key carries the name of the established sd-scripts flag where there is one; names are unique across sections,
so a flat command line and a sectioned file say the same thing.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from engine.docstrings import describe_fields
from engine.setting_types import (
    ActivationName,
    AdafactorCurve,
    Color,
    CompilerName,
    CurveName,
    DottedName,
    HuberSchedule,
    Interpolation,
    Layers,
    LossName,
    MixedPrecision,
    OptimizerName,
    Range,
    Section,
    Size,
    StepsOrShare,
    Strings,
    Widths,
    path_hint,
    spelled,
    unit_hint,
)
from engine.settings_output import LoggingSettings, SamplingSettings, SavingSettings

__all__ = [
    "SECTIONS", "SECTION_OF", "DatasetSettings", "LoggingSettings", "LossSettings", "MemorySettings",
    "ModelSettings", "OptimizerSettings", "SamplingSettings", "SavingSettings", "Section", "Settings",
    "TrainingSettings",
]  # fmt: skip


class ModelSettings(Section):
    """The model to start from and how its text encoder is used."""

    pretrained_model_name_or_path: str = Field("", json_schema_extra=path_hint("model"))
    """Model to start from: a .safetensors or .ckpt file, a diffusers folder, or a hub id."""
    v2: bool | None = None
    """The model is SD 2.x; left out, this is read from the file, and a wrong statement is refused."""
    v_parameterization: bool | None = None
    """The model predicts v (SD 2.x 768) rather than noise; must be said where the file does not tell."""
    vae: str | None = Field(None, json_schema_extra=path_hint("model"))
    """Another VAE to use: a file, a folder or a hub id."""
    clip_skip: int | None = Field(None, ge=1, le=12)
    """Take the n-th last layer of the text encoder (1 = last, 2 = penultimate); SD 2.x already uses the penultimate."""
    max_token_length: Literal[75, 150, 225] | None = None
    """Tokens a caption may have before the rest is cut; left out: 75."""
    weighted_captions: bool = False
    """Read (word:1.3) and [word] in captions as weights, as A1111 does."""


class DatasetSettings(Section):
    """The pictures, their captions, buckets and augmentation; dataset.toml may say the same for each folder."""

    dataset_config: str | None = Field(None, json_schema_extra=path_hint("file"))
    """A dataset.toml in sd-scripts' format; its keys win over the ones here."""
    train_data_dir: str | None = Field(None, json_schema_extra=path_hint("folder"))
    """Folder of pictures with .caption or .txt files beside them, or the root of in_json's keys."""
    in_json: str | None = Field(None, json_schema_extra=path_hint("file"))
    """Metadata file (JSON or JSONL) with captions and tags."""
    dataset_repeats: int = Field(1, ge=1, le=100_000)
    """How often each picture is shown in one epoch."""
    resolution: Size | None = None
    """Target size in pixels, one number or width,height; left out: 512,512."""
    enable_bucket: bool = False
    """Sort pictures into buckets of similar aspect ratio instead of cropping all to one shape."""
    min_bucket_reso: int = Field(256, ge=8, le=16_384, json_schema_extra=unit_hint("px"))
    """Shortest side of a bucket."""
    max_bucket_reso: int = Field(1024, ge=8, le=16_384, json_schema_extra=unit_hint("px"))
    """Longest side of a bucket."""
    bucket_reso_steps: int = Field(64, ge=8, le=1024, json_schema_extra=unit_hint("px"))
    """Bucket sides are multiples of this; SD 1.x and 2.x need multiples of 64."""
    bucket_no_upscale: bool = False
    """Never enlarge a picture: small ones get buckets of their own size."""
    resize_interpolation: Interpolation | None = None
    """Resize filter; left out: area when shrinking, Lanczos when enlarging."""
    caption_extension: str = ".caption"
    """Extension of the caption files; .txt is read where there is none."""
    shuffle_caption: bool = False
    """Shuffle the parts of each caption, anew in each epoch."""
    caption_separator: str = Field(",", min_length=1, max_length=16)
    """What separates the parts of a caption."""
    keep_tokens: int = Field(0, ge=0, le=1000)
    """Number of leading caption parts that stay in place when shuffling or dropping."""
    keep_tokens_separator: str = Field("", max_length=16)
    """Text that ends the fixed part of a caption, such as |||."""
    secondary_separator: str | None = Field(None, max_length=16)
    """Separator that keeps parts together while shuffling and becomes the caption separator afterwards."""
    enable_wildcard: bool = False
    """Draw one line of multi-line captions and one of {a|b|c}."""
    caption_prefix: str | None = None
    """Text put before every caption."""
    caption_suffix: str | None = None
    """Text put after every caption."""
    caption_dropout_rate: float = Field(0.0, ge=0, le=1)
    """Share of captions replaced by an empty one, which teaches unguided generation; 0.05 to 0.1 is usual."""
    caption_dropout_every_n_epochs: int = Field(0, ge=0)
    """Train every n-th epoch without captions; 0 = never."""
    caption_tag_dropout_rate: float = Field(0.0, ge=0, le=1)
    """Share of the movable caption parts that is left out."""
    token_warmup_min: int = Field(1, ge=0)
    """Movable caption parts at the first step when token_warmup_step is set."""
    token_warmup_step: float = Field(0, ge=0)
    """Steps (or, below 1, share of all steps) until captions are shown in full; 0 = off."""
    flip_aug: bool = False
    """Mirror pictures at random; not for subjects with a left and a right."""
    color_aug: bool = False
    """Change hue or gamma slightly at random; excludes cached latents."""
    random_crop: bool = False
    """Crop at a random place instead of the middle; excludes cached latents."""
    face_crop_aug_range: Range | None = None
    """Crop around a face given in the file name (_cx_cy_w_h), this many times its size; such as 2.0,4.0."""
    alpha_mask: bool = False
    """Weigh the loss by each picture's alpha channel: what is transparent is not learned."""
    conditioning_data_dir: str | None = Field(None, json_schema_extra=path_hint("folder"))
    """Folder of masks for masked_loss: pictures of the same name and size, whose red channel is the weight."""
    validation_split: float = Field(0.0, ge=0, lt=1)
    """Share of the pictures that is held out of training to measure the loss on; 0.05 to 0.1."""
    validation_seed: int | None = Field(None, ge=0, le=2**63 - 1)
    """Decides which pictures are held out and the noise they are measured with; left out: seed."""
    background_color: Color = (255, 255, 255)
    """Colour laid under transparent pictures, red,green,blue."""
    max_image_pixels: int = Field(64_000_000, ge=1_000_000, json_schema_extra=unit_hint("px"))
    """Pictures with more pixels than this are refused unread."""
    skip_bad_images: bool = False
    """Go on without pictures and captions that can't be read instead of stopping; each is named."""


class TrainingSettings(Section):
    """How long, in what portions, and what is trained."""

    max_train_steps: int = Field(1600, ge=1, le=1_000_000_000)
    """Number of optimizer steps."""
    max_train_epochs: int | None = Field(None, ge=1)
    """Number of epochs; wins over max_train_steps."""
    train_batch_size: int = Field(1, ge=1, le=4096)
    """Pictures in one forward pass."""
    gradient_accumulation_steps: int = Field(1, ge=1, le=4096)
    """Batches in one optimizer step; their loss is divided by the number of pictures."""
    train_text_encoder: bool = False
    """Train the text encoder too; useful for few pictures and new words, costs memory."""
    train_hypernetwork: bool = False
    """Train a hypernetwork, small networks on the keys and values of attention; the model stays as it is."""
    seed: int = Field(42, ge=0, le=2**63 - 1)
    """Decides order, noise, augmentation and captions; the same seed gives the same run."""
    ddp_timeout: int | None = Field(None, ge=1, json_schema_extra=unit_hint("min"))
    """With several processes: how long one waits for the others' gradients; left out: 30."""
    ddp_gradient_as_bucket_view: bool = False
    """With several processes: keep gradients in the buffers that are exchanged, one copy less."""
    ddp_static_graph: bool = False
    """With several processes: promise that every step uses the same parameters, which is a little faster."""
    validate_every_n_steps: int | None = Field(None, ge=1)
    """Measure the loss on the pictures held out after every n steps."""
    validate_every_n_epochs: int | None = Field(None, ge=1)
    """Measure it after every n epochs; with neither setting, after each."""
    max_validation_steps: int | None = Field(None, ge=1)
    """Measure it on at most so many batches; left out: on all pictures held out."""
    nan_rollbacks: int = Field(0, ge=0, le=10)
    """How often a run goes back to its last state with half the rate when a loss is not finite; 0 = it stops."""
    use_ema: bool = False
    """Keep a running average of the trained weights; samples and saved models use it."""
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    """Decay of the running average; 0.999 for runs of a few thousand steps."""
    hypernetwork_weights: str | None = Field(None, json_schema_extra=path_hint("file"))
    """Hypernetwork to go on training, .pt (A1111, NovelAI) or .safetensors; left out: a new one."""
    hypernetwork_sizes: Widths | None = None
    """Widths of attention that get networks, such as 320,640,768,1280; left out: all that the model has."""
    hypernetwork_layer_structure: Layers = (1.0, 2.0, 1.0)
    """Sizes of a new hypernetwork's layers, in widths: 1,2,1 has one inner layer of twice the width."""
    hypernetwork_activation: ActivationName = "linear"
    """What follows each layer of a new hypernetwork but the last; A1111's names."""
    hypernetwork_layer_norm: bool = False
    """Normalise the output of each layer of a new hypernetwork."""
    hypernetwork_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of a new hypernetwork's inner values left out at each step of training; 0.3 is A1111's."""


class OptimizerSettings(Section):
    """The optimizer and its learning rate."""

    optimizer_type: Annotated[OptimizerName | DottedName, spelled(*OptimizerName.__args__)] = "AdamW"
    """AdamW is exact, AdamW8bit needs a quarter of its memory, AdaFactor and Prodigy find a rate; or package.Class."""
    optimizer_args: Strings = ()
    """Further arguments of the optimizer, each as name=value, such as weight_decay=0.01."""
    learning_rate: float = Field(2e-6, gt=0, le=10)
    """Step size for the UNet; 1e-6 to 5e-6 is usual for a whole SD model."""
    learning_rate_te: float | None = Field(None, ge=0, le=10)
    """Step size for the text encoder when it is trained; left out: the same."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are scaled down to this norm; 0 = off."""
    lr_scheduler: Annotated[CurveName | AdafactorCurve, spelled(*CurveName.__args__)] = "constant"
    """How the learning rate changes over the run."""
    lr_warmup_steps: StepsOrShare = Field(0, ge=0)
    """Steps over which the rate rises from 0; a share of all steps as 0.05 or 5%."""
    lr_decay_steps: StepsOrShare = Field(0, ge=0)
    """Steps over which warmup_stable_decay falls at the end; a share of all steps as 0.2 or 20%."""
    lr_scheduler_num_cycles: int = Field(1, ge=1)
    """Restarts of cosine_with_restarts, half waves of cosine_with_min_lr and warmup_stable_decay."""
    lr_scheduler_power: float = Field(1.0, gt=0)
    """Exponent of polynomial."""
    lr_scheduler_timescale: int | None = Field(None, ge=1)
    """Steps until inverse_sqrt has fallen to 0.7 of its rate; left out: the warmup, or 10000."""
    lr_scheduler_min_lr_ratio: float | None = Field(None, ge=0, le=1)
    """Share of the rate at which cosine_with_min_lr and warmup_stable_decay end; 0.1 is usual."""
    lr_scheduler_type: str | None = Field(None, pattern=r"^[A-Za-z_][\w.]*$")
    """A class of torch.optim.lr_scheduler, or package.Class, instead of lr_scheduler."""
    lr_scheduler_args: Strings = ()
    """Arguments of lr_scheduler_type, each as name=value; of piecewise_constant step_rules='1:1000,0.1:2000,0.01'."""


class LossSettings(Section):
    """Noise, timesteps and the loss."""

    noise_offset: float | None = Field(None, ge=0, le=1)
    """Adds the same noise to a whole picture, which teaches darks and lights; 0.05 to 0.1."""
    noise_offset_random_strength: bool = False
    """Draw the strength between 0 and noise_offset."""
    adaptive_noise_scale: float | None = Field(None, ge=-10, le=10)
    """Adds this times the latents' mean to noise_offset."""
    multires_noise_iterations: int | None = Field(None, ge=0, le=32)
    """Number of coarser noise layers added; 6 to 10."""
    multires_noise_discount: float = Field(0.3, gt=0, le=1)
    """How quickly coarser layers fade; 0.1 to 0.8."""
    ip_noise_gamma: float | None = Field(None, ge=0, le=1)
    """Input perturbation: extra noise that the target does not contain; 0.1."""
    ip_noise_gamma_random_strength: bool = False
    """Draw the strength between 0 and ip_noise_gamma."""
    zero_terminal_snr: bool = False
    """Rescale the noise schedule so that the last step is pure noise; for v-prediction models."""
    min_timestep: int | None = Field(None, ge=0, le=999)
    """Lowest timestep that is trained; left out: 0."""
    max_timestep: int | None = Field(None, ge=1, le=1000)
    """Timesteps stay below this; left out: 1000."""
    loss_type: LossName = "l2"
    """Distance between prediction and target."""
    masked_loss: bool = False
    """Weigh the loss by the masks in conditioning_data_dir; black parts are not learned."""
    huber_schedule: HuberSchedule = "snr"
    """How huber_c depends on the timestep."""
    huber_c: float = Field(0.1, gt=0, le=10)
    """Where huber and smooth_l1 turn from square to straight."""
    huber_scale: float = Field(1.0, gt=0)
    """Multiplies the threshold of the constant and exponential schedules."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """Limits the weight of easy timesteps (Min-SNR); 5 is usual."""
    scale_v_pred_loss_like_noise_pred: bool = False
    """Weigh the loss of a v-prediction model as if it predicted noise."""
    v_pred_like_loss: float | None = Field(None, gt=0)
    """Add this much of a v-prediction-like loss to a noise-predicting model."""
    debiased_estimation_loss: bool = False
    """Weigh timesteps by 1/sqrt(SNR)."""


class MemorySettings(Section):
    """Precision, attention and caches: what decides memory and speed."""

    mixed_precision: MixedPrecision = "no"
    """Compute in fp16 or bf16 while weights stay in fp32; bf16 needs no loss scaling."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third slower."""
    full_fp16: bool = False
    """Keep the trained weights themselves in fp16, gradients too; needs mixed_precision=fp16 and a graphics card."""
    full_bf16: bool = False
    """Keep the trained weights themselves in bf16, updates rounded at random; needs mixed_precision=bf16."""
    fused_backward_pass: bool = False
    """Update each tensor as soon as its gradient is there; gradients are never held, and clipped one by one."""
    torch_compile: bool = False
    """Compile the UNet for each shape it meets: minutes at first, faster steps afterwards."""
    dynamo_backend: CompilerName = "inductor"
    """What compiles: inductor generates code, cudagraphs replays, aot_eager and eager check only that it works."""
    sdpa: bool = False
    """Torch's fused attention; it is used anyway unless another kind is chosen."""
    xformers: bool = False
    """Attention by xformers."""
    mem_eff_attn: bool = False
    """Attention in slices: least memory, slowest."""
    cache_latents: bool = False
    """Encode every picture once before training; faster and needs no VAE during training."""
    cache_latents_to_disk: bool = False
    """Keep the latents on disk for later runs; implies cache_latents."""
    cache_dir: str | None = Field(None, json_schema_extra=path_hint("folder"))
    """Where latents and the scan index are kept; left out: the user's cache folder."""
    vae_batch_size: int = Field(1, ge=1, le=256)
    """Pictures encoded at once."""
    no_half_vae: bool = False
    """Run the VAE in fp32 under mixed precision."""
    max_data_loader_n_workers: int = Field(8, ge=0, le=64)
    """Threads that load pictures, at most one for each core."""


class Settings(Section):
    """All settings of a run, one attribute for each TOML section."""

    model: ModelSettings = Field(default_factory=ModelSettings)
    dataset: DatasetSettings = Field(default_factory=DatasetSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    loss: LossSettings = Field(default_factory=LossSettings)
    memory: MemorySettings = Field(default_factory=MemorySettings)
    saving: SavingSettings = Field(default_factory=SavingSettings)
    sampling: SamplingSettings = Field(default_factory=SamplingSettings)
    logging: LoggingSettings = Field(default_factory=LoggingSettings)

    def flat(self) -> dict[str, Any]:
        """Return every setting by its name, as Python values."""
        return {name: getattr(getattr(self, section), name) for name, section in SECTION_OF.items()}

    def replace(self, **values: Any) -> Self:
        """Return settings with the named ones changed and checked."""
        changed: dict[str, Any] = {}
        for name, value in values.items():
            changed.setdefault(SECTION_OF[name], {})[name] = value
        sections = {
            section: {**getattr(self, section).model_dump(mode="python"), **part} for section, part in changed.items()
        }
        rest = {section: getattr(self, section) for section in type(self).model_fields if section not in sections}
        return type(self).model_validate({**rest, **sections}, strict=False)


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
for _name in ("settings.py", "settings_output.py"):
    describe_fields(SECTIONS.values(), Path(__file__).with_name(_name))
SECTION_OF: dict[str, str] = {name: section for section, cls in SECTIONS.items() for name in cls.model_fields}

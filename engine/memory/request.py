"""What a memory forecast depends on, taken from the settings of a run. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from engine.arguments import parse_arguments
from engine.errors import EngineError
from engine.hypernetworks import structure_of
from engine.memory.planes import Attention, case_name
from engine.memory.table import UnetTable
from engine.models.hypernetwork_file import Structure, open_hypernetwork
from engine.setting_types import split_strength
from engine.settings import Settings

FamilyName = Literal["sd1", "sd2", "sdxl"]
FAMILY_NAMES: tuple[FamilyName, ...] = ("sd1", "sd2", "sdxl")
Size = tuple[int, int]
DEFAULT_SIZES: Mapping[FamilyName, Size] = {"sd1": (512, 512), "sd2": (768, 768), "sdxl": (1024, 1024)}
_AMPERE = (8, 0)
_EDGE = 8  # Pixels of a latent position.


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One configuration of training; sizes are those of the largest bucket and batch."""

    family: FamilyName
    size: Size
    """Width and height in pixels."""
    batch: int
    chunks: int
    """Chunks of 77 tokens that a caption is encoded in."""
    precision: Literal["single", "mixed", "half"]
    is_checkpointed: bool
    attention: Attention
    optimizer: str
    optimizer_arguments: Mapping[str, Any] = field(default_factory=dict)
    accumulates: bool = False
    is_fused: bool = False
    has_ema: bool = False
    trains_text_encoder: bool = False
    encodes: bool = True
    """Latents are not cached: the VAE stays on the card and encodes each batch."""
    vae_is_half: bool = False
    sample_size: Size | None = None
    """Width and height of sample pictures; None without them."""
    unet: UnetTable | None = None
    """The UNet's own table where it is not the family's."""
    hypernetwork: Structure | None = None
    """A hypernetwork is trained on a model that stays as it is."""
    hypernetwork_widths: tuple[int, ...] = ()
    """The widths it has networks for; all of the UNet's if empty."""
    drawn_elements: int = 0
    """Weights of other hypernetworks, which samples are drawn with."""

    @property
    def area(self) -> float:
        """Latent positions, in units of a 512 x 512 picture's."""
        return (self.size[0] // _EDGE) * (self.size[1] // _EDGE) / 4096

    @property
    def case(self) -> str:
        """The name of its planes in the table."""
        return case_name(
            self.precision,
            self.attention,
            is_checkpointed=self.is_checkpointed,
            has_hypernetwork=self.hypernetwork is not None,
        )


def request_for(
    settings: Settings,
    family: FamilyName,
    *,
    batches: Sequence[tuple[Size, int]] = (),
    sample_sizes: Sequence[Size] = (),
    capability: tuple[int, int] = (0, 0),
    unet: UnetTable | None = None,
) -> Request:
    """Return the request for settings.

    Args:
        settings: Those of the run.
        family: The model's.
        batches: Bucket and batch size of each bucket of the plan; without a plan the resolution decides.
        sample_sizes: Sizes of the sample pictures, where the prompts are known.
        capability: The card's compute capability; (0, 0) if it is not known.
        unet: The UNet's own table where it is not the family's.
    """
    memory, training = settings.memory, settings.training
    size, batch = max(batches or _unplanned(settings, family), key=lambda pair: pair[0][0] * pair[0][1] * pair[1])
    try:
        arguments = parse_arguments(settings.optimizer.optimizer_args)
    except EngineError:  # Said by a check; the forecast does without.
        arguments = {}
    default = (512, 512) if settings.sampling.sample_prompts else None
    return Request(
        family=family,
        size=size,
        batch=batch,
        chunks=(settings.model.max_token_length or 75) // 75,
        precision=_precision(settings),
        is_checkpointed=memory.gradient_checkpointing,
        attention=attention_of(settings, capability),
        optimizer=settings.optimizer.optimizer_type,
        optimizer_arguments=arguments,
        accumulates=training.gradient_accumulation_steps > 1,
        is_fused=memory.fused_backward_pass,
        has_ema=training.use_ema,
        trains_text_encoder=training.train_text_encoder,
        encodes=not (memory.cache_latents or memory.cache_latents_to_disk),
        vae_is_half=memory.mixed_precision != "no" and not memory.no_half_vae,
        sample_size=max(sample_sizes, key=lambda side: side[0] * side[1], default=default),
        unet=unet,
        drawn_elements=sum(_file(split_strength(text)[0])[2] for text in settings.sampling.hypernetworks),
        **_hypernetwork(settings),
    )


def _hypernetwork(settings: Settings) -> dict[str, Any]:
    training = settings.training
    if not training.train_hypernetwork:
        return {}
    structure, widths = structure_of(training), training.hypernetwork_sizes or ()
    if training.hypernetwork_weights is not None:
        structure, widths, _ = _file(training.hypernetwork_weights)
    return {"hypernetwork": structure, "hypernetwork_widths": tuple(widths)}


@lru_cache(maxsize=8)
def _file(path: str) -> tuple[Structure, tuple[int, ...], int]:
    """Return a hypernetwork's structure, widths and weights; one that can't be read, which a check says, is usual."""
    try:
        file = open_hypernetwork(Path(path))
    except EngineError:
        return Structure(), (), 0
    return file.structure, tuple(file.layers), sum(tensor.numel for tensor in file.tensors().values())


def _unplanned(settings: Settings, family: FamilyName) -> list[tuple[Size, int]]:
    return [(settings.dataset.resolution or DEFAULT_SIZES[family], settings.training.train_batch_size)]


def _precision(settings: Settings) -> Literal["single", "mixed", "half"]:
    memory = settings.memory
    if memory.full_fp16 or memory.full_bf16:
        return "half"
    return "single" if memory.mixed_precision == "no" else "mixed"


def attention_of(settings: Settings, capability: tuple[int, int] = (0, 0)) -> Attention:
    """Return how attention is computed: torch has no fused kernel for bf16 before Ampere (compute capability 8.0)."""
    memory = settings.memory
    if memory.mem_eff_attn:
        return "sliced"
    is_old = (0, 0) < capability < _AMPERE
    return "math" if is_old and memory.mixed_precision == "bf16" and not memory.xformers else "fused"

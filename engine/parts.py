"""Everything a run is made of, prepared once before the first step.

Dimension key: B images, C latent channels, h x w latent size, L joined tokens, D text width.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.attention import enable_gradient_checkpointing, set_attention
from engine.caches import WindowSource, loading_threads, prepare_latents, prepare_text
from engine.checkpoint import Saveable
from engine.compiling import compile_unet
from engine.curves import learning_rate_at
from engine.denoiser import Conditioning, Denoiser
from engine.diffusion import Schedule, make_schedule
from engine.ema import Ema
from engine.errors import EngineError
from engine.events import Warned
from engine.fingerprint import fingerprint
from engine.hypernetworks import Hypernetworks, attach
from engine.latents import Latents, encode_with_vae
from engine.loading import LoadedBatch, WindowLoader
from engine.losses import check_weights
from engine.masks import prepare_masks
from engine.models import FAMILIES
from engine.models.metadata import ModelSpec, modelspec
from engine.models.sd import StableDiffusion
from engine.optim import build_optimizer
from engine.plan import Plan
from engine.preview import PreviewOptions, SampledImage, sample_images
from engine.prompts import SamplePrompt, read_prompts
from engine.ranks import ALONE, Ranks
from engine.settings import SECTION_OF, MemorySettings, Settings
from engine.sharding import (
    GatheredModel,
    is_sharded,
    prepare_deepspeed,
    refuse_what_needs_all,
    whole_weights,
)
from engine.snapshot import History
from engine.telling import Teller
from engine.text import encode
from engine.update import Updater, make_updater

METADATA = frozenset(name for name in SECTION_OF if name.startswith("metadata_"))
DDP_TIMEOUT_MINUTES = 30  # torch's own, for every kind of device.
PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """What the loop works with; `dtype` is the precision of everything frozen."""

    settings: Settings
    plan: Plan
    accelerator: Accelerator
    model: StableDiffusion
    denoiser: nn.Module
    optimizer: Optimizer
    updater: Updater
    schedule: Schedule
    source: WindowSource
    prompts: tuple[SamplePrompt, ...]
    preview: PreviewOptions
    dtype: torch.dtype
    ranks: Ranks
    base: Mapping[str, str]
    """Identities of the parts that stay as they are: a state fits no other ones."""
    ema: Ema | None = None
    hypernetworks: Hypernetworks | None = None
    history: History = field(default_factory=History)

    @property
    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters that get gradients."""
        return [parameter for parameter in self.denoiser.parameters() if parameter.requires_grad]

    @property
    def trains(self) -> tuple[str, ...]:
        """The names of the trained parts."""
        if self.settings.training.train_hypernetwork:
            return ("hypernetwork",)
        return ("unet", "text_encoder") if self.settings.training.train_text_encoder else ("unet",)

    @property
    def is_scaled(self) -> bool:
        """Whether fp16's loss scaling makes a gradient that is not finite an ordinary event."""
        return self.accelerator.scaler is not None

    @property
    def is_on_card(self) -> bool:
        """Whether training runs on a graphics card, whose memory ends sooner than the computer's."""
        return str(self.accelerator.device) != "cpu"

    def windows(self, first_step: int) -> WindowLoader:
        """Return the windows from a step on, loaded ahead."""
        return WindowLoader(self.source.load, first_step, self.plan.steps)

    def latents_of(self, loaded: LoadedBatch) -> Tensor:
        """Return a batch's latents (B, C, h, w), float32, scaled, on the device; encoded here where none are cached."""
        device = self.accelerator.device
        if loaded.latents_BChw is not None:
            latents_BChw = loaded.latents_BChw.to(device, torch.float32, non_blocking=True)
        else:
            assert loaded.pixels_BHWC is not None
            latents_BChw = encode_with_vae(self.model.vae, loaded.pixels_BHWC, loaded.vae_seeds).float()
        return latents_BChw * self.model.latent_scale

    def masks_of(self, loaded: LoadedBatch) -> Tensor | None:
        """Return a batch's masks (B, 1, h, w) on the device, None where every picture counts in full."""
        masks_B1hw = loaded.masks_B1hw
        return None if masks_B1hw is None else masks_B1hw.to(self.accelerator.device, non_blocking=True)

    def conditioning_of(self, loaded: LoadedBatch) -> Conditioning:
        """Return what a batch is conditioned on; a frozen text encoder whose states are not cached runs here."""
        conditioning = loaded.conditioning.to(self.accelerator.device, self.dtype)
        if conditioning.states_BLD is not None or self.settings.training.train_text_encoder:
            return conditioning
        assert conditioning.ids_BN77 is not None
        with torch.no_grad():
            states_BLD = encode(
                self.model.text_encoder,
                conditioning.ids_BN77,
                self.settings.model.clip_skip,
                weights_BN77=conditioning.weights_BN77,
            )
        return Conditioning(states_BLD=states_BLD)

    def metadata(self) -> dict[str, str]:
        """Return the modelspec metadata of a model saved now; it names no path, user or host."""
        settings = self.settings
        words = {name.removeprefix("metadata_"): value for name, value in settings.flat().items() if name in METADATA}
        return modelspec(
            ModelSpec(
                family=self.model.family,
                prediction_type=self.model.prediction_type,
                timestamp=time.time(),
                implementation_version=f"sdtui/{version('sdtui')}",
                output_name=settings.saving.output_name,
                resolution=self.plan.config.datasets[0].resolution,
                clip_skip=settings.model.clip_skip,
                min_timestep=settings.loss.min_timestep,
                max_timestep=settings.loss.max_timestep,
                words=words,
                is_hypernetwork=settings.training.train_hypernetwork,
            )
        )

    def model_to_save(self) -> Saveable:
        """Return the model; where its weights are spread over the processes, all are called to bring them together."""
        if self.hypernetworks is not None and self.hypernetworks.trained is not None:
            return self.hypernetworks.to_save(base=self.settings.model.pretrained_model_name_or_path)
        if not is_sharded(self.accelerator):
            return self.model
        self.ranks.call()
        return GatheredModel(model=self.model, weights=whole_weights(self.accelerator, self.denoiser))

    def go_along(self) -> None:
        """Take part in what the main process does between two steps, or, as that one, say that it is done."""
        if not is_sharded(self.accelerator):
            return
        if self.ranks.is_main:
            self.ranks.call(is_over=True)
        else:
            self.ranks.answer_calls(lambda: whole_weights(self.accelerator, self.denoiser))

    def draw_samples(
        self, prompts: Sequence[SamplePrompt], *, step: int, epoch: int | None = None, first_index: int = 0
    ) -> Iterator[SampledImage]:
        """Yield the sample pictures of prompts as they are drawn and written."""
        with self.hypernetworks.attached.drawing() if self.hypernetworks else nullcontext():
            yield from sample_images(self.model, prompts, self.preview, step=step, epoch=epoch, first_index=first_index)


def prepare(
    settings: Settings, plan: Plan, *, folder: Path, cache_dir: Path, tell: Teller, ranks: Ranks = ALONE
) -> Parts:
    """Load the model, encode what can be encoded once, and make the optimizer.

    Raises:
        EngineError: The model, a picture, a prompt or the optimizer's arguments are wrong.
    """
    prompts = read_prompts(Path(settings.sampling.sample_prompts)) if settings.sampling.sample_prompts else ()
    _refuse_in_several(settings, ranks)
    accelerator = _accelerator(settings, ranks)
    refuse_what_needs_all(settings, accelerator.distributed_type)
    prepare_deepspeed(accelerator, settings)
    ranks = ranks.joined()
    # Wrong arguments are refused here rather than after hours of encoding.
    build_optimizer([("unet", nn.Linear(1, 1))], settings.optimizer)
    learning_rate_at(0, plan.steps, settings.optimizer)
    model = _load(settings, tell)
    schedule = make_schedule(
        model.prediction_type,
        rescale_betas_zero_snr=settings.loss.zero_terminal_snr,
        device=accelerator.device,
    )
    check_weights(settings.loss, schedule)
    set_attention(model.unet, settings.memory, accelerator.device)
    dtype = PRECISIONS[settings.memory.mixed_precision]
    base = _identities(model, settings)
    hypernetworks = attach(settings, model, tell)
    if hypernetworks is not None and hypernetworks.trained is not None:
        base["hypernetwork"] = hypernetworks.identity
    _place_frozen(model, settings, accelerator.device, dtype)
    source = _source(settings, plan, model, cache_dir=cache_dir, tell=tell, ranks=ranks)
    if hypernetworks is not None:
        hypernetworks.place(accelerator.device)
    denoiser = _denoiser(settings, model, hypernetworks)
    for _, part in denoiser.parts():
        part.to(accelerator.device, trained_dtype(settings.memory))
    optimizer = build_optimizer(denoiser.parts(), settings.optimizer)
    ema = Ema(denoiser.parts(), settings.training.ema_decay) if settings.training.use_ema else None
    compile_unet(model.unet, settings.memory, buckets=len(plan.buckets), device=accelerator.device)
    prepared, optimizer = accelerator.prepare(denoiser, optimizer)
    return Parts(
        settings=settings,
        plan=source.plan,
        accelerator=accelerator,
        model=model,
        denoiser=prepared,
        optimizer=optimizer,
        updater=make_updater(accelerator, optimizer, settings),
        schedule=schedule,
        source=source,
        prompts=prompts,
        preview=_preview(settings, schedule, accelerator.device, folder),
        dtype=dtype,
        ranks=ranks,
        base=base,
        ema=ema,
        hypernetworks=hypernetworks,
    )


def fill_caches(settings: Settings, plan: Plan, *, cache_dir: Path, tell: Teller) -> tuple[Latents, int | None]:
    """Encode into the disk cache what `prepare` would; return the latents, and the number of captions encoded.

    The number is None where captions change from step to step or the text encoder is trained.

    Raises:
        EngineError: The model or a picture can't be read, or latents are not finite.
    """
    accelerator = _accelerator(settings, ALONE)
    model = _load(settings, tell)
    _place_frozen(model, settings, accelerator.device, PRECISIONS[settings.memory.mixed_precision])
    plan, latents = prepare_latents(settings, plan, model, cache_dir=cache_dir, tell=tell, ranks=ALONE)
    assert latents is not None, "cache_latents_to_disk is set"
    texts = prepare_text(settings, plan, model, cache_dir=cache_dir, tell=tell, ranks=ALONE)
    return latents, None if texts is None else len(texts)


def _source(
    settings: Settings, plan: Plan, model: StableDiffusion, *, cache_dir: Path, tell: Teller, ranks: Ranks
) -> WindowSource:
    """Encode what can be encoded once, and return what makes batches of it."""
    plan, latents = prepare_latents(settings, plan, model, cache_dir=cache_dir, tell=tell, ranks=ranks)
    masks = prepare_masks(
        plan,
        cache_dir=cache_dir if settings.memory.cache_latents_to_disk else None,
        is_cached=latents is not None,
        workers=loading_threads(settings),
        tell=tell,
    )
    texts = prepare_text(settings, plan, model, cache_dir=cache_dir, tell=tell, ranks=ranks)
    if latents is not None:
        model.vae.to("cpu")
    return WindowSource(
        settings=settings,
        plan=plan,
        tokenizer=model.tokenizer,
        latents=latents,
        texts=texts,
        ranks=ranks,
        masks=masks,
    )


def _preview(settings: Settings, schedule: Schedule, device: torch.device, folder: Path) -> PreviewOptions:
    dtype = PRECISIONS[settings.memory.mixed_precision]
    return PreviewOptions(
        folder=folder / "sample",
        output_name=settings.saving.output_name,
        seed=settings.training.seed,
        sampler=settings.sampling.sample_sampler,
        schedule=schedule,
        device=device,
        autocast=None if dtype is torch.float32 else dtype,
        clip_skip=settings.model.clip_skip,
        max_token_length=settings.model.max_token_length,
        weighted_captions=settings.model.weighted_captions,
    )


def trained_dtype(memory: MemorySettings) -> torch.dtype:
    """Return the number format of the trained weights: float32 unless all of them are to be kept in half precision."""
    return PRECISIONS[memory.mixed_precision] if memory.full_fp16 or memory.full_bf16 else torch.float32


def _refuse_in_several(settings: Settings, ranks: Ranks) -> None:
    if ranks.world > 1 and settings.memory.fused_backward_pass:
        raise EngineError(
            f"fused_backward_pass = true with {ranks.world} processes: weights would be updated before the processes "
            "have exchanged their gradients; remove fused_backward_pass"
        )


def _accelerator(settings: Settings, ranks: Ranks) -> Accelerator:
    memory, training = settings.memory, settings.training
    # accelerate keeps the precision of the first run in the process, and refuses another in the second.
    AcceleratorState._reset_state()  # noqa: SLF001 - the way that accelerate's own tests and notebooks do it
    try:
        accelerator = Accelerator(
            mixed_precision=memory.mixed_precision,
            # Left to itself, accelerate trains apart in each of several processes that have no graphics card.
            cpu=ranks.world > 1 and not torch.accelerator.is_available(),
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=timedelta(minutes=training.ddp_timeout or DDP_TIMEOUT_MINUTES)),
                DistributedDataParallelKwargs(
                    gradient_as_bucket_view=training.ddp_gradient_as_bucket_view,
                    static_graph=training.ddp_static_graph,
                ),
            ],
        )
    except ValueError as error:
        raise _impossible_precision(memory, str(error)) from error
    if memory.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise _impossible_precision(memory, "half precision needs a graphics card")
    return accelerator


def _impossible_precision(memory: MemorySettings, cause: str) -> EngineError:
    return EngineError(
        f"mixed_precision = {memory.mixed_precision} is not possible on this device ({cause}): "
        "set mixed_precision=bf16 or mixed_precision=no"
    )


def _load(settings: Settings, tell: Teller) -> StableDiffusion:
    chosen = settings.model
    load = FAMILIES["sd2" if chosen.v2 else "sd1"]
    model = load(
        chosen.pretrained_model_name_or_path, vae=chosen.vae, v2=chosen.v2, v_parameterization=chosen.v_parameterization
    )
    for warning in model.warnings:
        tell(Warned(code="model", message=warning))
    return model


def _identities(model: StableDiffusion, settings: Settings) -> dict[str, str]:
    frozen = {"vae": model.vae}
    if settings.training.train_hypernetwork:
        frozen["unet"] = model.unet
    if not settings.training.train_text_encoder:
        frozen["text_encoder"] = model.text_encoder
    return {part: fingerprint(module) for part, module in frozen.items()}


def _place_frozen(model: StableDiffusion, settings: Settings, device: torch.device, dtype: torch.dtype) -> None:
    model.vae.to(device, torch.float32 if settings.memory.no_half_vae else dtype)
    model.text_encoder.to(device, torch.float32 if settings.training.train_text_encoder else dtype)
    if settings.training.train_hypernetwork:
        model.unet.to(device, dtype)


def _denoiser(settings: Settings, model: StableDiffusion, hypernetworks: Hypernetworks | None) -> Denoiser:
    text_encoder = model.text_encoder if settings.training.train_text_encoder else None
    trained = hypernetworks.trained if hypernetworks is not None else None
    model.unet.requires_grad_(requires_grad=trained is None).train()
    if text_encoder is not None:
        text_encoder.requires_grad_(requires_grad=True).train()
    if settings.memory.gradient_checkpointing:
        enable_gradient_checkpointing(model.unet, text_encoder)
    return Denoiser(model.unet, text_encoder, settings.model.clip_skip, trained)

"""Runs one batch forward and backward through a real model without data, as the recipe would on CUDA.

Dimension key: B images, C latent channels, h x w latent size, L tokens, D text width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.attention import SlicedAttention, switch_on_checkpointing
from engine.memory.planes import Attention, case_name
from engine.memory_trace.ledger import Ledger, Watch, completed_gradients
from engine.memory_trace.policy import CudaPolicy, SlicedModel
from engine.models.hypernetwork import Attached, Hypernetwork, widths_of
from engine.models.hypernetwork_file import Structure

Precision = Literal["single", "mixed", "half"]
"""Weights and computation in float32; weights in float32 and 16-bit computation; both in 16 bits."""
PRECISIONS: tuple[Precision, ...] = ("single", "mixed", "half")
Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What changes the operations of a step, beside the architecture."""

    precision: Precision
    is_checkpointed: bool
    attention: Attention
    has_hypernetwork: bool = False
    """A hypernetwork is trained on a UNet that stays as it is, in the format of the computation."""

    @property
    def half(self) -> torch.dtype | None:
        """The 16-bit format of autocast; both have the same size."""
        return None if self.precision == "single" else torch.bfloat16

    @property
    def weights(self) -> torch.dtype:
        """The format of the trained weights."""
        return torch.bfloat16 if self.precision == "half" else torch.float32

    @property
    def name(self) -> str:
        """Its key in the table."""
        return case_name(
            self.precision,
            self.attention,
            is_checkpointed=self.is_checkpointed,
            has_hypernetwork=self.has_hypernetwork,
        )


def case_of(words: str) -> Case:
    """Return the case of words such as "mixed,checkpointed,fused", with a fourth word "hypernetwork" or without.

    Raises:
        ValueError: It is none.
    """
    precision, checkpointing, attention, *rest = words.split(",")
    if (
        precision not in PRECISIONS
        or rest not in ([], ["hypernetwork"])
        or checkpointing not in {"plain", "checkpointed"}
        or attention not in get_args(Attention)
    ):
        raise ValueError(f"{words} is no case: such as mixed,checkpointed,fused")
    return Case(
        precision=precision,
        is_checkpointed=checkpointing == "checkpointed",
        attention=cast("Attention", attention),
        has_hypernetwork=bool(rest),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The size of a batch: images, latent height and width, tokens of a caption."""

    batch: int
    height: int
    width: int
    tokens: int = 77

    @property
    def area(self) -> float:
        """Latent positions, in units of a 512 x 512 picture's."""
        return self.height * self.width / 4096


def build_unet(config: Config, device: str = "meta") -> nn.Module:
    """Return a diffusers UNet of that config, by default on the meta device: shapes without data.

    Raises:
        ValueError, TypeError: It is no config of a conditional UNet.
    """
    from diffusers import UNet2DConditionModel

    with torch.device(device):
        unet: nn.Module = UNet2DConditionModel.from_config(dict(config))
    return unet.train()


def build_with_hypernetwork(config: Config, structure: Structure | None = None) -> tuple[nn.Module, nn.Module]:
    """Return a UNet that stays as it is, and a hypernetwork for all its widths attached to it."""
    unet = build_unet(config).requires_grad_(requires_grad=False)
    with torch.device("meta"):
        network = Hypernetwork(structure or Structure(), widths_of(unet))
    Attached(unet, trained=network)
    return unet, network.train()


def trace_unet(
    unet: nn.Module,
    case: Case,
    point: Point,
    *,
    hypernetwork: nn.Module | None = None,
    device: str = "meta",
    is_rounded: bool = True,
) -> Ledger:
    """Return what one batch's forward and backward pass through the UNet holds, beside its weights."""
    set_up(unet, case)
    trained = unet
    if hypernetwork is not None:
        trained = nn.Module.to(hypernetwork, case.weights)
        nn.Module.to(unet, case.half or torch.float32)
    inputs = inputs_for(unet, case, point, device)

    def predict() -> Tensor:
        prediction: Tensor = unet(**inputs, return_dict=False)[0]
        return prediction

    return _trace(trained, predict, case, frozen=unet, is_rounded=is_rounded)


def trace_text_encoder(text_encoder: nn.Module, case: Case, chunks: int) -> Ledger:
    """Return what a trained text encoder holds for a number of chunks of 77 tokens, from ids to gradients."""
    nn.Module.to(text_encoder, case.weights)
    if case.is_checkpointed:
        switch_on_checkpointing(text_encoder)
    ids_B77 = torch.zeros((chunks, 77), dtype=torch.long, device="meta")

    def encode() -> Tensor:
        states: Tensor = text_encoder(input_ids=ids_B77, output_hidden_states=True).last_hidden_state
        return states

    return _trace(text_encoder, encode, case)


def trace_inference(module: nn.Module, run: Callable[[], object], case: Case) -> Ledger:
    """Return what a pass without gradients holds beside the module's weights."""
    ledger = Ledger()
    policy = CudaPolicy(ledger, case.half, is_fused=case.attention == "fused")
    with torch.no_grad(), policy, Watch(ledger):
        _see_weights(module, ledger)
        ledger.kind = "activations"
        result = run()
    del result
    return ledger


def _trace(
    module: nn.Module,
    predict: Callable[[], Tensor],
    case: Case,
    *,
    frozen: nn.Module | None = None,
    is_rounded: bool = True,
) -> Ledger:
    ledger = Ledger(is_rounded=is_rounded)
    policy = CudaPolicy(ledger, case.half, is_fused=case.attention == "fused")
    with completed_gradients(module, ledger), policy, Watch(ledger):
        _see_weights(module, ledger)
        if frozen is not None:
            _see_weights(frozen, ledger)
        ledger.kind = "activations"
        prediction = predict().float()
        policy.end_autocast()
        policy.is_on = False
        loss = functional.mse_loss(prediction, torch.empty_like(prediction))
        del prediction
        ledger.kind = "temporary"
        policy.is_on, policy.has_cache = True, False  # Checkpointed blocks run under an autocast of their own.
        run_backward(loss)
        ledger.end = len(ledger.order)
    return ledger


def run_backward(loss: Tensor) -> None:
    """Compute gradients as Tensor.backward does, without leaving the function mode, and recomputation with it."""
    engine = torch.autograd.Variable._execution_engine  # noqa: SLF001 - the public calls leave the mode
    engine.run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _see_weights(module: nn.Module, ledger: Ledger) -> None:
    ledger.kind = "weights"
    for tensor in (*module.parameters(), *module.buffers()):
        ledger.see(tensor)
    ledger.num_weights = len(ledger.order)


def set_up(unet: Any, case: Case) -> None:  # noqa: ANN401 - diffusers has no types
    """Give a UNet the precision, attention and checkpointing of a case; with real tensors real sliced attention."""
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    nn.Module.to(unet, case.weights)  # diffusers' own would warn about an empty list of modules.
    sliced = SlicedModel if next(unet.parameters()).is_meta else SlicedAttention
    processors = {"fused": AttnProcessor2_0, "math": AttnProcessor, "sliced": sliced}
    unet.set_attn_processor(processors[case.attention]())
    (unet.enable_gradient_checkpointing if case.is_checkpointed else unet.disable_gradient_checkpointing)()


def inputs_for(unet: Any, case: Case, point: Point, device: str) -> dict[str, Any]:  # noqa: ANN401
    """Return what a UNet is called with."""
    config, batch = unet.config, point.batch
    states = torch.zeros(batch, point.tokens, config.cross_attention_dim, device=device, dtype=case.half)
    inputs: dict[str, Any] = {
        "sample": torch.zeros(batch, config.in_channels, point.height, point.width, device=device),
        "timestep": torch.zeros(batch, dtype=torch.long, device=device),
        "encoder_hidden_states": states,
    }
    if config.addition_embed_type == "text_time":  # SDXL: pooled text, and six numbers about size and crop.
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.zeros(batch, pooled, device=device, dtype=case.half),
            "time_ids": torch.zeros(batch, 6, device=device, dtype=case.half),
        }
    return inputs

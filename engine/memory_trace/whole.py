"""Runs two whole steps without data, everything a run holds among it: what the forecast is held against.

Only optimizers that need CUDA are replaced, by tensors of the sizes that engine/memory/optimizers.py states.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.attention import switch_on_checkpointing
from engine.memory.optimizers import ROUNDING, cost_of
from engine.memory.request import Request
from engine.memory_trace.ledger import Ledger, Watch
from engine.memory_trace.policy import CudaPolicy
from engine.memory_trace.step import Case, Point, build_unet, build_with_hypernetwork, inputs_for, run_backward, set_up
from engine.memory_trace.table import TEXT_ENCODERS, build_text_encoder
from engine.resources import family_config


def trace_whole_step(request: Request) -> int:
    """Return the most bytes that tensors hold during the second step of a request."""
    case = Case(
        precision=request.precision,
        is_checkpointed=request.is_checkpointed,
        attention=request.attention,
        has_hypernetwork=request.hypernetwork is not None,
    )
    run = _Run(request=request, case=case)
    with run.policy, Watch(run.ledger):
        run.prepare()
        run.step()
        run.ledger.peak = run.ledger.total
        run.step()
        if request.sample_size is not None:
            run.sample()
    return run.ledger.peak


@dataclass(eq=False)
class _Run:
    request: Request
    case: Case
    ledger: Ledger = field(default_factory=Ledger)
    held: list[Tensor] = field(default_factory=list)
    """Frozen models, state of the optimizer, average of the weights: all that has only a size here."""
    has_state: bool = False

    def __post_init__(self) -> None:
        request = self.request
        self.policy = CudaPolicy(self.ledger, self.case.half, is_fused=request.attention == "fused")
        config = family_config(request.family, "unet")
        self.hypernetwork: nn.Module | None = None
        if request.hypernetwork is None:
            self.unet = build_unet(config)
        else:
            self.unet, self.hypernetwork = build_with_hypernetwork(config, request.hypernetwork)
        self.text_encoders = [
            build_text_encoder(family_config(request.family, name)) for name in TEXT_ENCODERS[request.family]
        ]
        set_up(self.unet, self.case)
        if self.hypernetwork is not None:
            nn.Module.to(self.hypernetwork, self.case.weights)
            nn.Module.to(self.unet, self.case.half or torch.float32)
        for encoder in self.text_encoders:
            nn.Module.to(encoder, self.case.weights)
            if request.is_checkpointed:
                switch_on_checkpointing(encoder)
        self.cost = cost_of(request.optimizer, request.optimizer_arguments)

    @property
    def trained(self) -> list[nn.Parameter]:
        if self.hypernetwork is not None:
            return [*self.hypernetwork.parameters()]
        modules = [self.unet, *(self.text_encoders if self.request.trains_text_encoder else [])]
        return [parameter for module in modules for parameter in module.parameters()]

    def prepare(self) -> None:
        request = self.request
        for parameter in (*self.unet.parameters(), *self.trained):
            self.ledger.see(parameter)
        frozen: Iterable[nn.Module] = () if request.trains_text_encoder else self.text_encoders
        bytes_each = 4 if request.precision == "single" else 2
        self._hold(bytes_each * parameter.numel() for module in frozen for parameter in module.parameters())
        if request.encodes:
            self._hold((2 if request.vae_is_half else 4) * size for size in _vae_sizes(request.family))
        if request.has_ema:
            self._hold(4 * parameter.numel() for parameter in self.trained)
        for parameter in self.trained:
            parameter.register_post_accumulate_grad_hook(self._finished)  # type: ignore[no-untyped-call]

    def _hold(self, sizes: Iterable[int]) -> None:
        self.held += [torch.empty(size, dtype=torch.uint8, device="meta") for size in sizes]

    def _finished(self, parameter: nn.Parameter) -> None:
        if self.request.is_fused:
            self._update([parameter])
            parameter.grad = None

    def step(self) -> None:
        for _ in range(2 if self.request.accumulates else 1):
            self._batch()
        if not self.request.is_fused:
            self._update(self.trained)
        self.has_state = True
        for parameter in self.trained:
            parameter.grad = None

    def _batch(self) -> None:
        request = self.request
        if request.encodes:
            line = 640 if not request.vae_is_half else 320  # MiB for each 512 x 512 picture, see the table.
            torch.empty(round(line * (1 << 20) * request.batch * request.area), dtype=torch.uint8, device="meta")
        point = Point(
            batch=request.batch, width=request.size[0] // 8, height=request.size[1] // 8, tokens=77 * request.chunks
        )
        inputs = inputs_for(self.unet, self.case, point, "meta")
        self.policy.is_on = self.policy.has_cache = True
        if request.trains_text_encoder:
            inputs["encoder_hidden_states"] = self._encode()
        prediction = self.unet(**inputs, return_dict=False)[0].float()
        del inputs
        self.policy.end_autocast()
        self.policy.is_on = False
        loss = functional.mse_loss(prediction, torch.empty_like(prediction))
        del prediction
        self.policy.is_on, self.policy.has_cache = True, False
        run_backward(loss)

    def _encode(self) -> Tensor:
        request = self.request
        ids_B77 = torch.zeros((request.batch * request.chunks, 77), dtype=torch.long, device="meta")
        states = [
            encoder(input_ids=ids_B77, output_hidden_states=True).last_hidden_state for encoder in self.text_encoders
        ]
        joined = torch.cat(states, dim=-1) if len(states) > 1 else states[0]
        return joined.reshape(request.batch, 77 * request.chunks, -1)

    def _update(self, parameters: list[nn.Parameter]) -> None:
        if not self.has_state:
            self._hold(self.cost.state(tuple(parameter.shape)) for parameter in parameters)
        elements = [parameter.numel() for parameter in parameters]
        per_weight = self.cost.temporary
        if self.case.precision == "half":
            per_weight = max(8 + per_weight, ROUNDING)
        size = sum(elements) if self.cost.is_whole else max(elements)
        torch.empty(per_weight * size, dtype=torch.uint8, device="meta")

    def sample(self) -> None:
        assert self.request.sample_size is not None
        width, height = self.request.sample_size
        with torch.no_grad():
            inputs = inputs_for(self.unet, self.case, Point(batch=2, width=width // 8, height=height // 8), "meta")
            self.policy.has_cache = True
            self.unet.eval()
            self.unet(**inputs, return_dict=False)
            self.policy.end_autocast()


def _vae_sizes(family: str) -> list[int]:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL.from_config(family_config(family, "vae"))
    return [parameter.numel() for parameter in vae.parameters()]

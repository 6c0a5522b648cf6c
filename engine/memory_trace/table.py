"""Makes the memory table that ships with the package: every family, precision, checkpointing and attention."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import product
from typing import Any, get_args

import torch
from torch import Tensor, nn

from engine.memory.allocation import MIB
from engine.memory.planes import Attention
from engine.memory.table import config_hash
from engine.memory_trace.ledger import Ledger
from engine.memory_trace.planes import fit_planes
from engine.memory_trace.step import (
    PRECISIONS,
    Case,
    Config,
    Point,
    build_unet,
    build_with_hypernetwork,
    inputs_for,
    set_up,
    trace_inference,
    trace_text_encoder,
    trace_unet,
)
from engine.models.hypernetwork import attentions
from engine.resources import family_config

TEXT_ENCODERS = {"sd1": ("text_encoder",), "sd2": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2")}
CASES = tuple(
    Case(precision=precision, is_checkpointed=is_checkpointed, attention=attention)
    for precision, is_checkpointed, attention in product(PRECISIONS, (False, True), get_args(Attention))
)
# Those of other kinds of attention, which few use, are traced where they are asked for.
HYPERNETWORK_CASES = tuple(replace(case, has_hypernetwork=True) for case in CASES if case.attention == "fused")
Say = Callable[[str], None]


def stamp() -> dict[str, str]:
    """Return what a table depends on beside the configs."""
    return {"diffusers": version("diffusers"), "transformers": version("transformers")}


def traced_family(family: str, cases: tuple[Case, ...], say: Say) -> dict[str, Any]:
    """Return the part of the table for a family: its UNet, text encoders and VAE."""
    config = family_config(family, "unet")
    return {
        **traced_unet(config, cases, say),
        "text_encoders": [_text_encoder_table(family_config(family, name)) for name in TEXT_ENCODERS[family]],
        "vae": vae_table(family_config(family, "vae")),
    }


def traced_unet(config: Config, cases: tuple[Case, ...], say: Say = lambda _line: None) -> dict[str, Any]:
    """Return a UNet's shapes, its planes for each case, and what drawing a sample holds.

    Raises:
        ValueError, TypeError: It is no config of a conditional UNet.
    """
    unet = build_unet(config)
    planes = {}
    frozen, network = build_with_hypernetwork(config)
    for case in cases:
        say(case.name)
        traced, trained = (frozen, network) if case.has_hypernetwork else (unet, None)

        def trace(point: Point, case: Case = case, traced: nn.Module = traced, trained: Any = trained) -> Ledger:  # noqa: ANN401
            return trace_unet(traced, case, point, hypernetwork=trained)

        planes[case.name] = fit_planes(trace, case)
    # Sampling keeps nothing for a backward pass: one entry serves a case with and without checkpointing.
    plain = {replace(case, is_checkpointed=False, has_hypernetwork=False) for case in cases}
    samples = {case.name: _sampling(unet, case) for case in plain}
    return {
        "hash": config_hash(config),
        "shapes": shapes_of(unet),
        "planes": planes,
        "sampling": samples,
        "attention": _attended(unet),
    }


def _attended(unet: nn.Module) -> list[list[int]]:
    """Return for each attention layer what its keys are made of: width, positions at 512 x 512, of 77 tokens."""
    seen: list[list[int]] = []

    def look(module: Any, inputs: tuple[Tensor, ...], *, is_text: bool) -> None:  # noqa: ANN401
        length = inputs[0].shape[1]
        seen.append([module.in_features, 0 if is_text else length, length if is_text else 0])

    case = Case(precision="single", is_checkpointed=False, attention="fused")
    set_up(unet, case)
    hooks = [
        attention.to_k.register_forward_pre_hook(partial(look, is_text=attention.is_cross_attention))
        for attention in attentions(unet)
    ]
    with torch.no_grad():
        unet(**inputs_for(unet, case, Point(batch=1, height=64, width=64), "meta"), return_dict=False)
    for hook in hooks:
        hook.remove()
    return [[count, *found] for found, count in sorted(Counter(map(tuple, seen)).items())]


def shapes_of(module: nn.Module) -> list[list[Any]]:
    """Return the different shapes of the parameters, each behind how often it occurs."""
    counts = Counter(tuple(parameter.shape) for parameter in module.parameters())
    return [[count, list(shape)] for shape, count in sorted(counts.items())]


def _sampling(unet: nn.Module, case: Case) -> list[float]:
    """Return the line of a guided pass, two images at once: MiB = c0 + c1 p + c2 p^2."""
    set_up(unet, case)
    peaks = []
    for side in (64, 96, 128):
        inputs = inputs_for(unet, case, Point(batch=2, height=side, width=side), "meta")
        ledger = trace_inference(unet, lambda inputs=inputs: unet(**inputs, return_dict=False), case)  # type: ignore[misc]
        peaks.append(_beside_weights(ledger))
    return _through(peaks, (1.0, 2.25, 4.0))


def vae_table(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a VAE's shapes and the lines of encoding B p and decoding p: MiB = c0 + c1 x + c2 x^2, by precision."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL.from_config(dict(config))
    lines: dict[str, Any] = {"shapes": shapes_of(vae)}
    case = Case(precision="single", is_checkpointed=False, attention="fused")  # The VAE runs outside autocast.
    for name, dtype in (("single", torch.float32), ("half", torch.bfloat16)):
        nn.Module.to(vae, dtype)
        encoded, decoded = [], []
        for side in (64, 96, 128):
            pixels = torch.zeros(1, 3, side * 8, side * 8, device="meta", dtype=dtype)
            latents = torch.zeros(1, config["latent_channels"], side, side, device="meta", dtype=dtype)
            encoded.append(_beside_weights(trace_inference(vae, lambda x=pixels: vae.encode(x), case)))  # type: ignore[misc]
            decoded.append(_beside_weights(trace_inference(vae, lambda x=latents: vae.decode(x), case)))  # type: ignore[misc]
        lines[name] = {"encode": _through(encoded, (1.0, 2.25, 4.0)), "decode": _through(decoded, (1.0, 2.25, 4.0))}
    return lines


def _beside_weights(ledger: Ledger) -> float:
    return max(sum(moment.held) for moment in ledger.moments) / MIB


def _through(values: list[float], places: tuple[float, ...]) -> list[float]:
    matrix = torch.tensor([[1.0, place, place * place] for place in places], dtype=torch.float64)
    found = torch.linalg.solve(matrix, torch.tensor(values, dtype=torch.float64))
    return [round(value, 2) + 0.0 for value in found.tolist()]


def build_text_encoder(config: Mapping[str, Any]) -> nn.Module:
    """Return a CLIP text encoder of that config on the meta device."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    has_projection = config["architectures"] == ["CLIPTextModelWithProjection"]
    kind = CLIPTextModelWithProjection if has_projection else CLIPTextModel
    with torch.device("meta"):
        text_encoder: nn.Module = kind(CLIPTextConfig(**config))
    return text_encoder.train()


def _text_encoder_table(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a text encoder's shapes and, for training it, lines MiB = c0 + c1 chunks by case and pass."""
    lines: dict[str, Any] = {}
    for is_checkpointed in (False, True):
        model = build_text_encoder(config)
        for precision in PRECISIONS:
            case = Case(precision=precision, is_checkpointed=is_checkpointed, attention="fused")
            found = [_text_peaks(trace_text_encoder(model, case, chunks)) for chunks in (2, 3)]
            lines[f"{precision} {'checkpointed' if is_checkpointed else 'plain'}"] = {
                name: [round(3 * low - 2 * high, 2) + 0.0, round(high - low, 2)]
                for name, low, high in ((name, found[0][name], found[1][name]) for name in found[0])
            }
    return {"shapes": shapes_of(model), "lines": lines}


def _text_peaks(ledger: Ledger) -> dict[str, float]:
    """Return the most that the pass before the UNet holds, what stays for the pass back, and the most held in that."""
    forward = [moment for moment in ledger.moments if not moment.is_backward]
    backward = [moment for moment in ledger.moments if moment.is_backward]
    return {
        "forward": max(sum(moment.held) for moment in forward) / MIB,
        "kept": sum(backward[0].held) / MIB,
        "backward": max(sum(moment.held) for moment in backward) / MIB,
        "backward without gradients": max(sum(moment.held[:3]) for moment in backward) / MIB,
    }

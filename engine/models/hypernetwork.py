"""Hypernetworks: small networks on what attention makes its keys and values from; the model stays as it is.

Dimension key: B images, L positions, D width.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from engine.models.hypernetwork_file import ACTIVATIONS, HypernetworkFile, Structure, write_hypernetwork
from engine.models.lazy import LazyTensor, lazy
from engine.models.saving import PRECISIONS
from engine.rng import seed_for

_WEIGHT_STD = 0.01  # Of new weights, as NovelAI and A1111 draw them: the start is nearly the identity.


class Branch(nn.Module):
    """One small network, of one width, on keys or on values."""

    def __init__(self, structure: Structure, width: int) -> None:
        super().__init__()
        self.linear = nn.Sequential(*_modules(structure, width))

    def forward(self, states_BLD: Tensor, strength: float) -> Tensor:
        """Return the states (B, L, D) changed by the network's output, in their own number format."""
        changed_BLD: Tensor = states_BLD + strength * self.linear(states_BLD)
        return changed_BLD.to(states_BLD.dtype)


def _modules(structure: Structure, width: int) -> Iterator[nn.Module]:
    for kind, layer in structure.modules():
        if kind == "linear":
            yield nn.Linear(structure.size(width, layer - 1), structure.size(width, layer))
        elif kind == "activation":
            yield getattr(nn, ACTIVATIONS[structure.activation])()
        elif kind == "norm":
            yield nn.LayerNorm(structure.size(width, layer))
        else:
            yield nn.Dropout(structure.dropout[layer])


class Hypernetwork(nn.Module):
    """A pair of small networks for each width, one on keys and one on values, shared by all attention of that width."""

    def __init__(self, structure: Structure, widths: Iterable[int]) -> None:
        super().__init__()
        self.structure = structure
        self.layers = nn.ModuleDict(
            {str(width): nn.ModuleList([Branch(structure, width) for _ in "kv"]) for width in sorted(widths)}
        )

    @classmethod
    def new(cls, structure: Structure, widths: Iterable[int], *, seed: int) -> "Hypernetwork":
        """Return one whose weights are drawn: normal with deviation 0.01, biases 0, the same for the same seed."""
        network = cls(structure, widths)
        # By their order and not by their names, whose numbers dropout moves.
        for number, (name, parameter) in enumerate(network.named_parameters()):
            generator = torch.Generator().manual_seed(seed_for(seed, "hypernetwork", number))
            with torch.no_grad():
                if name.endswith("weight"):
                    parameter.normal_(0.0, _WEIGHT_STD, generator=generator)
                else:
                    parameter.zero_()
        return network

    @classmethod
    def loaded(cls, file: HypernetworkFile) -> "Hypernetwork":
        """Return the one that a file holds, in float32."""
        network = cls(file.structure, file.layers)
        for width, pair in file.layers.items():
            for branch, tensors in zip(network.branches(width), pair, strict=True):
                branch.load_state_dict({name: tensor.tensor().float() for name, tensor in tensors.items()})
        return network

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths it has networks for."""
        return tuple(map(int, self.layers))

    def branches(self, width: int) -> tuple[Branch, Branch]:
        """Return the networks of a width, for keys and for values."""
        keys, values = cast("nn.ModuleList", self.layers[str(width)])
        return cast("Branch", keys), cast("Branch", values)

    def tensors(self) -> dict[int, tuple[dict[str, LazyTensor], dict[str, LazyTensor]]]:
        """Return the weights as a file holds them."""
        named = {
            width: [
                {name: lazy(value) for name, value in branch.state_dict().items()} for branch in self.branches(width)
            ]
            for width in self.widths
        }
        return {width: (keys, values) for width, (keys, values) in named.items()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StrongHypernetwork:
    """A hypernetwork and how strongly it counts."""

    network: Hypernetwork
    strength: float


class Attached:
    """The hypernetworks of a UNet: those of training at full strength, or within `drawing` those of samples.

    They are on the inputs of every `to_k` and `to_v`, so that any kind of attention computes with them. Where there
    are several, each works on what the one before has made of keys and of values, as in A1111.
    """

    def __init__(
        self, unet: nn.Module, *, trained: Hypernetwork | None, drawn: Sequence[StrongHypernetwork] = ()
    ) -> None:
        self._training = [StrongHypernetwork(network=trained, strength=1.0)] if trained is not None else []
        self._drawn = list(drawn)
        self._active = self._training
        for attention in attentions(unet):
            for place, projection in enumerate((attention.to_k, attention.to_v)):
                projection.register_forward_pre_hook(lambda _, inputs, place=place: (self._changed(inputs[0], place),))

    @property
    def networks(self) -> tuple[Hypernetwork, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys(strong.network for strong in (*self._training, *self._drawn)))

    def _changed(self, states_BLD: Tensor, place: int) -> Tensor:
        width = states_BLD.shape[-1]
        for strong in self._active:
            if width in strong.network.widths and strong.strength:
                states_BLD = strong.network.branches(width)[place](states_BLD, strong.strength)
        return states_BLD

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Compute as for a sample inside the block: with the strengths asked for, and without dropout."""
        were_training = [network for network in self.networks if network.training]
        for network in were_training:
            network.eval()
        self._active = self._drawn
        try:
            yield
        finally:
            self._active = self._training
            for network in were_training:
                network.train()


def attentions(unet: nn.Module) -> Iterator[Any]:
    """Yield a UNet's attention layers, of hidden states on themselves and on the text."""
    from diffusers.models.attention_processor import Attention

    return (module for module in unet.modules() if isinstance(module, Attention))


def widths_of(unet: nn.Module) -> tuple[int, ...]:
    """Return the widths of what a UNet's attention makes keys and values from: 320, 640, 768 and 1280 in SD 1.x."""
    return tuple(sorted({attention.to_k.in_features for attention in attentions(unet)}))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HypernetworkToSave:
    """A trained hypernetwork as the run saves it, in place of a model."""

    network: Hypernetwork
    base: str
    """Name of the model it is for."""
    steps_before: int = 0
    """Steps it was trained before this run."""

    def save(
        self,
        path: Path,
        save_model_as: str,
        *,
        save_precision: str | None,
        metadata: Mapping[str, str],
        counts: tuple[int, int],
    ) -> None:
        """Write it; "ckpt" is the .pt that A1111 reads.

        Raises:
            EngineError: A value is not finite, or the disk refuses.
        """
        assert save_model_as in ("ckpt", "safetensors"), "the checks refuse the others"
        file = HypernetworkFile(
            structure=self.network.structure,
            layers=self.network.tensors(),
            name=path.stem,
            step=self.steps_before + counts[1],
            base=self.base,
            metadata=metadata,
        )
        write_hypernetwork(file.astype(PRECISIONS[save_precision]) if save_precision else file, path)

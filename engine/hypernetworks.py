"""Which hypernetworks a run trains and draws with, from its settings. Torch-free until they are attached."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.events import Warned
from engine.models.hypernetwork_file import Structure, open_for, open_hypernetwork, sizes_text
from engine.setting_types import split_strength
from engine.settings import Settings, TrainingSettings
from engine.telling import Teller

if TYPE_CHECKING:
    import torch

    from engine.models.hypernetwork import Attached, Hypernetwork, HypernetworkToSave, StrongHypernetwork
    from engine.models.sd import StableDiffusion

STRUCTURE_SETTINGS = (
    "hypernetwork_sizes", "hypernetwork_layer_structure", "hypernetwork_activation", "hypernetwork_layer_norm",
    "hypernetwork_dropout",
)  # fmt: skip


def structure_of(training: TrainingSettings) -> Structure:
    """Return the structure that the settings ask for; dropout follows every layer but the last."""
    layers, rate = training.hypernetwork_layer_structure, training.hypernetwork_dropout
    return Structure(
        layers=layers,
        activation=training.hypernetwork_activation,
        layer_norm=training.hypernetwork_layer_norm,
        dropout=(0.0, *[rate] * (len(layers) - 2), 0.0) if rate else (),
    )


def num_parameters(training: TrainingSettings, widths: Iterable[int]) -> int:
    """Return how many weights are trained, given the widths of the model's attention.

    Raises:
        EngineError: hypernetwork_weights can't be read.
    """
    if training.hypernetwork_weights is not None:
        file = open_hypernetwork(Path(training.hypernetwork_weights))
        return sum(tensor.numel for tensor in file.tensors().values())
    structure, chosen = structure_of(training), chosen_widths(training, tuple(widths))
    return sum(2 * structure.num_parameters(width) for width in chosen)


def chosen_widths(training: TrainingSettings, present: Sequence[int]) -> tuple[int, ...]:
    """Return the widths of a model's attention that get a network: those that the settings name, or all of them.

    Raises:
        EngineError: The model does not have one that is named.
    """
    wanted = training.hypernetwork_sizes or tuple(present)
    if strangers := set(wanted) - set(present):
        raise EngineError(
            f"hypernetwork_sizes = {sizes_text(wanted)}: this model's attention has no width {sizes_text(strangers)}; "
            f"it has {sizes_text(present)}"
        )
    return tuple(sorted(set(wanted)))


def check_files(settings: Settings, widths: Sequence[int]) -> Iterator[tuple[str, str, EngineError | None]]:
    """Open every hypernetwork that the settings name, for a model whose attention has `widths`.

    Yields the setting with a warning, or with "" and why it can't be used.
    """
    training = settings.training
    named = [("hypernetworks", split_strength(text)[0]) for text in settings.sampling.hypernetworks]
    if training.train_hypernetwork and training.hypernetwork_weights is not None:
        named.append(("hypernetwork_weights", training.hypernetwork_weights))
    elif training.train_hypernetwork:
        try:
            _check_room(structure_of(training), chosen_widths(training, widths))
        except EngineError as error:
            yield "hypernetwork_sizes", "", error
    for setting, name in named:
        try:
            yield from ((setting, warning, None) for warning in open_for(Path(name), widths)[1])
        except EngineError as error:
            yield setting, "", error


def _check_room(structure: Structure, widths: Iterable[int]) -> None:
    width = min(widths)
    if structure.size(width, structure.narrowest) < 1:
        shown = ",".join(f"{size:g}" for size in structure.layers)
        raise EngineError(
            f"hypernetwork_layer_structure = {shown}: a layer has no room in a width of {width}; widen it"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hypernetworks:
    """The one that is trained, if any, and where they are attached; `steps_before` is its training so far."""

    trained: "Hypernetwork | None"
    attached: "Attached"
    steps_before: int = 0

    def place(self, device: "torch.device") -> None:
        """Move all of them to where the UNet is, in float32."""
        import torch

        for network in self.attached.networks:
            network.to(device, torch.float32)

    @property
    def identity(self) -> str:
        """What a state has to agree with in one that it is put back into."""
        assert self.trained is not None
        structure = self.trained.structure
        words = (",".join(f"{size:g}" for size in structure.layers), structure.activation, structure.layer_norm,
                 structure.activate_output, structure.dropout, self.trained.widths, self.steps_before)  # fmt: skip
        return " ".join(map(str, words))

    def to_save(self, *, base: str) -> "HypernetworkToSave":
        """Return the trained one as it is saved; of the model's path or hub id only the last name is kept."""
        from engine.models.hypernetwork import HypernetworkToSave

        assert self.trained is not None
        name = Path(base).name.removesuffix(".safetensors").removesuffix(".ckpt")
        return HypernetworkToSave(network=self.trained, base=name, steps_before=self.steps_before)


def attach(settings: Settings, model: "StableDiffusion", tell: Teller) -> Hypernetworks | None:
    """Load or make the hypernetworks of a run and attach them to the model's UNet.

    Returns None where the settings name none.

    Raises:
        EngineError: A file can't be used, or nothing of it fits the model.
    """
    training, sampling = settings.training, settings.sampling
    if not training.train_hypernetwork and not sampling.hypernetworks:
        return None
    from engine.models.hypernetwork import Attached, StrongHypernetwork, widths_of

    widths = widths_of(model.unet)
    if not Path(settings.model.pretrained_model_name_or_path).exists():
        # A model on this machine has been looked at before the start.
        for _, warning, error in check_files(settings, widths):
            if error is not None:
                raise error
            tell(Warned(code="hypernetwork", message=warning))
    drawn = [_drawn(text, widths) for text in sampling.hypernetworks]
    trained, steps_before = _trained(training, widths) if training.train_hypernetwork else (None, 0)
    if trained is not None:
        trained.train()
        drawn.append(StrongHypernetwork(network=trained, strength=sampling.hypernetwork_strength))
    attached = Attached(model.unet, trained=trained, drawn=drawn)
    return Hypernetworks(trained=trained, attached=attached, steps_before=steps_before)


def _drawn(text: str, widths: Sequence[int]) -> "StrongHypernetwork":
    from engine.models.hypernetwork import Hypernetwork, StrongHypernetwork

    path, strength = split_strength(text)
    network = Hypernetwork.loaded(open_for(Path(path), widths)[0])
    return StrongHypernetwork(network=network.requires_grad_(requires_grad=False).eval(), strength=strength)


def _trained(training: TrainingSettings, widths: Sequence[int]) -> "tuple[Hypernetwork, int]":
    """Return the one to train and the steps it was trained before."""
    from engine.models.hypernetwork import Hypernetwork

    if training.hypernetwork_weights is not None:
        file, _ = open_for(Path(training.hypernetwork_weights), widths)
        network = Hypernetwork.loaded(file)
        # What the model has no use for gets no gradients; it is saved as it came.
        for width in set(network.widths) - set(widths):
            for branch in network.branches(width):
                branch.requires_grad_(requires_grad=False)
        return network, file.step
    chosen = chosen_widths(training, widths)
    return Hypernetwork.new(structure_of(training), chosen, seed=training.seed), 0

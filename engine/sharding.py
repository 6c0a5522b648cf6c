"""Training whose weights or optimizer state are spread over processes, by FSDP or DeepSpeed ZeRO-2.

Which of them, accelerate learns from its launcher's configuration; see docs/several-gpus.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from engine.errors import EngineError
from engine.models.sd import StableDiffusion
from engine.settings import Settings

_NAMES = {DistributedType.FSDP: "FSDP", DistributedType.DEEPSPEED: "DeepSpeed"}


def is_sharded(accelerator: Accelerator) -> bool:
    """Tell whether no process has all the weights, so that all have to take part in saving a model."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def has_all_state(accelerator: Accelerator) -> bool:
    """Tell whether the main process has the whole model and optimizer, and so can write a state."""
    return accelerator.distributed_type not in _NAMES


def refuse_what_needs_all(settings: Settings, distributed_type: DistributedType) -> None:
    """Refuse what would need the whole model or optimizer in one process.

    Raises:
        EngineError: A setting asks for it.
    """
    kind = _NAMES.get(distributed_type)
    if kind is None:
        return
    saving = settings.saving
    wanted = {
        "use_ema": settings.training.use_ema,
        "save_state": saving.save_state or saving.save_state_on_train_end,
        "resume": saving.resume is not None,
        "train_hypernetwork": settings.training.train_hypernetwork,
    }
    if distributed_type == DistributedType.FSDP:
        wanted["sample_prompts"] = settings.sampling.sample_prompts is not None
    else:
        wanted["gradient_accumulation_steps > 1"] = settings.training.gradient_accumulation_steps > 1
    refused = ", ".join(name for name, is_wanted in wanted.items() if is_wanted)
    if refused:
        raise EngineError(
            f"{refused}: not possible under {kind}, where no process has the whole state: "
            "leave it out, or launch with docs/accelerate/ddp.yaml"
        )


def prepare_deepspeed(accelerator: Accelerator, settings: Settings) -> None:
    """Tell DeepSpeed how many images a process handles at once, which accelerate reads off a data loader elsewhere."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = settings.training.train_batch_size


def whole_weights(accelerator: Accelerator, denoiser: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the trained weights by part and name, on the CPU of the main process; all processes call this together."""
    return by_part(accelerator.get_state_dict(denoiser))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GatheredModel:
    """A model to be saved with weights that were brought together from all processes."""

    model: StableDiffusion
    weights: Mapping[str, Mapping[str, Tensor]]

    def save(self, path: Path, save_model_as: str, **options: Any) -> None:  # noqa: ANN401 - those of the model
        """Write the model; see `engine.models.sd.StableDiffusion.save`."""
        self.model.save(path, save_model_as, weights=self.weights, **options)


def by_part(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return tensors named "part.name" by part and name."""
    parts: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in weights.items():
        part, _, name = full_name.partition(".")
        parts.setdefault(part, {})[name] = tensor
    return parts

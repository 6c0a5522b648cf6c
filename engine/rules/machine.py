"""Rules that compare a run with the machine it would run on; each says that it speaks of this machine. Torch-free.

A machine without a graphics card is rarely the one that will train: what only a card could do is then a remark.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from engine.display import size
from engine.hardware import Card
from engine.models.inspect import ModelInfo
from engine.rules.model import FULL_SIZE
from engine.rules.rule import Finding, rule, set_to, to_default
from engine.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes that a run will put on one disk, those free there, and the setting that chooses the place."""

    setting: str
    place: str
    num_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSubject:
    """The settings and what the machine is; `is_named` where the card is one that the user named."""

    settings: Settings
    cards: tuple[Card, ...]
    is_named: bool = False
    info: ModelInfo | None = None
    disks: tuple[Need, ...] = field(default=())
    available_bytes: int | None = None
    """Memory that is free."""

    @property
    def card(self) -> Card | None:
        """The card that a run takes: the first."""
        return self.cards[0] if self.cards else None

    @property
    def shown(self) -> str:
        """What to call the card in a message."""
        assert self.card is not None
        major, minor = self.card.capability
        return f"{'the card named' if self.is_named else 'this machine'}: {self.card.name} (compute {major}.{minor})"

    @property
    def has_mps(self) -> bool:
        """Whether this is a Mac, whose own graphics torch uses."""
        return sys.platform == "darwin"


NO_CARD = "this machine has no graphics card"


@rule(
    "bf16-on-old-card", "error", why="bf16 needs Ampere (compute 8.0, RTX 30) or newer.",
    source="sd-scripts docs/fine_tune_README_ja.md; CUDA programming guide, compute capabilities",
)  # fmt: skip
def bf16_on_old_card(subject: MachineSubject) -> Iterator[Finding]:
    """mixed_precision=bf16 on a card older than Ampere."""
    card = subject.card
    if card is not None and subject.settings.memory.mixed_precision == "bf16" and not card.has_bf16:
        message = f"{subject.shown} has no bf16"
        fix = "set mixed_precision=fp16"
        yield Finding(setting="mixed_precision", message=message, fix=fix, values=set_to(mixed_precision="fp16"))


@rule(
    "fp16-without-card",
    "info",
    why="Loss scaling for fp16 is made for CUDA; training refuses it on the processor.",
    source="torch, documentation of torch.amp",
)
def fp16_without_card(subject: MachineSubject) -> Iterator[Finding]:
    """mixed_precision=fp16 on a machine without a graphics card."""
    if subject.card is None and not subject.has_mps and subject.settings.memory.mixed_precision == "fp16":
        message = f"{NO_CARD}, and fp16 needs one: here, training would be refused"
        yield Finding(setting="mixed_precision", message=message, fix="to train here, set mixed_precision=bf16 or no")


@rule(
    "fp16-on-new-card",
    "info",
    why="bf16 has the range of fp32, so nothing overflows and no loss is scaled.",
    source="Kalamkar et al. 2019, arXiv:1905.12322",
)
def fp16_on_new_card(subject: MachineSubject) -> Iterator[Finding]:
    """mixed_precision=fp16 on a card that computes in bf16 too."""
    card = subject.card
    if card is not None and card.has_bf16 and subject.settings.memory.mixed_precision == "fp16":
        message = f"{subject.shown} computes in bf16 too, which never overflows"
        fix = "set mixed_precision=bf16"
        yield Finding(setting="mixed_precision", message=message, fix=fix, values=set_to(mixed_precision="bf16"))


@rule(
    "fp32-on-card",
    "info",
    why="Half precision halves activations and is several times as fast.",
    source="Micikevicius et al. 2018, arXiv:1710.03740",
)
def fp32_on_card(subject: MachineSubject) -> Iterator[Finding]:
    """mixed_precision=no on a graphics card."""
    card = subject.card
    if card is not None and subject.settings.memory.mixed_precision == "no":
        better = "bf16" if card.has_bf16 else "fp16"
        message = f"{subject.shown} is several times as fast in {better}"
        fix, values = f"set mixed_precision={better}", set_to(mixed_precision=better)
        yield Finding(setting="mixed_precision", message=message, fix=fix, values=values)


@rule(
    "xformers-without-card",
    "info",
    why="xformers computes on CUDA; training refuses it elsewhere.",
    source="engine/attention.py, which tries it",
)
def xformers_without_card(subject: MachineSubject) -> Iterator[Finding]:
    """Attention by xformers on a machine without a graphics card."""
    if subject.card is None and subject.settings.memory.xformers:
        message = f"{NO_CARD}, and xformers needs one: here, training would be refused"
        fix, values = "to train here, set sdpa=true", (*to_default("xformers"), *set_to(sdpa=True))
        yield Finding(setting="xformers", message=message, fix=fix, values=values)


@rule(
    "full-model-without-card",
    "info",
    why="A step of a whole SD model takes a processor minutes.",
    source="docs/benchmarks, measured",
)
def full_model_without_card(subject: MachineSubject) -> Iterator[Finding]:
    """A model of full size on a machine without a graphics card."""
    info = subject.info
    if subject.card is None and not subject.has_mps and info and info.parameters.get("unet", 0) >= FULL_SIZE:
        message = f"{NO_CARD}; a step of this model takes minutes here"
        yield Finding(setting="pretrained_model_name_or_path", message=message, fix="train it on a machine with a card")


@rule(
    "disk-full", "error", why="A run that can't save loses what it learnt.", source="arithmetic; `plan` shows the parts"
)
def disk_full(subject: MachineSubject) -> Iterator[Finding]:
    """The run needs more space than its disk has."""
    for need in subject.disks:
        if need.num_bytes > need.free_bytes:
            yield _too_full(need, "needs", "free space, or choose another disk")


@rule("disk-low", "warning", why="Other programs write to the disk too.", source="arithmetic; `plan` shows the parts")
def disk_low(subject: MachineSubject) -> Iterator[Finding]:
    """The run fills more than nine tenths of the space that its disk has."""
    for need in subject.disks:
        if 0.9 * need.free_bytes < need.num_bytes <= need.free_bytes:
            yield _too_full(need, "nearly fills the disk: it needs", "free space before a long run")


def _too_full(need: Need, verb: str, fix: str) -> Finding:
    has = f"this machine has {size(need.free_bytes)} free in {need.place}"
    keep = " (save less often, keep fewer with save_last_n_epochs, or set save_precision=fp16)"
    fix += keep if need.setting == "output_dir" else ""
    return Finding(setting=need.setting, message=f"the run {verb} {size(need.num_bytes)}, and {has}", fix=fix)


@rule(
    "memory-low",
    "warning",
    why="Weights are read into memory in fp32 before they go to the card.",
    source="engine/models/sd.py",
)
def memory_low(subject: MachineSubject) -> Iterator[Finding]:
    """The model in fp32 is larger than the memory that is free."""
    if subject.info is None or subject.available_bytes is None:
        return
    needed = 4 * sum(subject.info.parameters.get(part, 0) for part in ("unet", "text_encoder", "vae"))
    if needed > subject.available_bytes:
        message = f"the model takes {size(needed)} in memory, and this machine has {size(subject.available_bytes)} free"
        yield Finding(setting="pretrained_model_name_or_path", message=message, fix="end other programs, or add swap")


RULES = (
    bf16_on_old_card, fp16_without_card, fp16_on_new_card, fp32_on_card, xformers_without_card, full_model_without_card,
    disk_full, disk_low, memory_low,
)  # fmt: skip

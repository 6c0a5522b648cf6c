"""The ways to make a run fit its card, the cheapest first: single changes and combinations. Torch-free.

Costs are in units of "about one percent slower"; losses of quality are weighed as much as a slowdown that one would
accept to avoid them. docs/memory.md lists them with their sources.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from engine.errors import EngineError, ProblemsError, Values
from engine.hardware import Card
from engine.memory.forecast import Forecast
from engine.memory.verdict import Verdict, verdict
from engine.rules import find_problems
from engine.settings import Settings

Weigh = Callable[[Settings], Forecast]
_MOST_CHANGES = 6
_MOST_WAYS = 6
_MOST_TIGHT = 2
_STEP = 64  # Pixels; resolutions stay multiples of it.


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of settings, and what it costs."""

    values: Values
    title: str
    """In two words."""
    cost: float
    loss: str
    """What is lost, in a few words."""
    ladder: str = ""
    """What this is one step of: where a small step is enough, a larger one is not offered."""

    def covers(self, other: "Change") -> bool:
        """Return whether this does what another does, or goes further."""
        return self == other or bool(self.ladder and self.ladder == other.ladder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Changes that together make a run fit."""

    changes: tuple[Change, ...]
    verdict: Verdict

    @property
    def cost(self) -> float:
        """What they cost together."""
        return sum(change.cost for change in self.changes)

    @property
    def values(self) -> Values:
        """All settings that change."""
        return tuple(pair for change in self.changes for pair in change.values)

    @property
    def title(self) -> str:
        """The changes in a few words."""
        return ", ".join(change.title for change in self.changes)

    @property
    def loss(self) -> str:
        """What is lost, in a few words."""
        return "; ".join(change.loss for change in self.changes)

    @property
    def shown(self) -> tuple[tuple[str, str], ...]:
        """All settings that change, and their values as one types them."""
        return tuple((name, _shown(value)) for name, value in self.values)

    def as_set(self) -> str:
        """Return the changes as arguments of `train` and `check`."""
        return " ".join(f"--set {name}={value}" for name, value in self.shown)


def has_bf16(card: Card | None) -> bool:
    """Return whether a card computes in bf16; one of which only the size is known is taken for a recent one."""
    return card is None or card.capability == (0, 0) or card.has_bf16


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def ways_to_fit(
    settings: Settings, weigh: Weigh, free_bytes: int, *, can_bf16: bool = True, fixed: Collection[str] = ()
) -> tuple[Way, ...]:
    """Return the ways to fit, the cheapest first; none if it fits already or nothing helps.

    A way that is green comes before one that is amber, and one that is amber counts only if it costs less.
    Combinations hold no change that is not needed.

    Args:
        settings: Those that do not fit.
        weigh: Forecasts settings.
        free_bytes: What the card has to give.
        can_bf16: Whether the card computes in bf16.
        fixed: Names of settings that do nothing here, since the data-set file says otherwise.
    """
    if verdict(weigh(settings), free_bytes).color == "green":
        return ()
    offered = [
        change
        for change in _changes(settings, can_bf16=can_bf16)
        if not any(name in fixed for name, _ in change.values)
    ]
    green: list[Way] = []
    tight: list[Way] = []
    for chosen in _by_cost(offered):
        if any(_covers(chosen, way.changes) for way in green):
            continue
        way = _tried(settings, chosen, weigh, free_bytes)
        if way is None:
            continue
        if way.verdict.color == "green":
            green.append(way)
        elif not green and not any(_covers(chosen, other.changes) for other in tight):
            tight.append(way)
        if len(green) == _MOST_WAYS:
            break
    tight = tight[:_MOST_TIGHT]
    return (*green[: _MOST_WAYS - len(tight)], *tight)


def _by_cost(offered: Sequence[Change]) -> list[tuple[Change, ...]]:
    """Return every combination whose changes do not contradict each other, the cheapest first."""
    possible = []
    for count in range(1, _MOST_CHANGES + 1):
        for chosen in combinations(offered, count):
            names = [name for change in chosen for name, _ in change.values]
            if len(names) == len(set(names)):
                possible.append(chosen)
    return sorted(possible, key=lambda chosen: (sum(change.cost for change in chosen), len(chosen)))


def _covers(chosen: Sequence[Change], others: Sequence[Change]) -> bool:
    return all(any(change.covers(other) for change in chosen) for other in others)


def _tried(settings: Settings, chosen: Sequence[Change], weigh: Weigh, free_bytes: int) -> Way | None:
    changed = settings.replace(**{name: value for change in chosen for name, value in change.values})
    try:
        judged = verdict(weigh(changed), free_bytes)
    except EngineError:  # A UNet of its own kind that can't be traced so.
        return None
    if judged.color == "red" or _brings_errors(settings, changed):
        return None
    return Way(changes=tuple(chosen), verdict=judged)


def _brings_errors(before: Settings, after: Settings) -> bool:
    try:
        known = {problem.code for problem in find_problems(before) if problem.severity == "error"}
        return any(problem.severity == "error" and problem.code not in known for problem in find_problems(after))
    except ProblemsError:
        return True


def _changes(settings: Settings, *, can_bf16: bool) -> Iterator[Change]:
    """Yield every change that is not made already."""
    memory, training = settings.memory, settings.training
    if not memory.cache_latents and not memory.cache_latents_to_disk:
        yield Change(
            values=(("cache_latents", True),), title="cached latents", cost=0, loss="the first epoch starts later"
        )
    if training.use_ema:
        yield Change(values=(("use_ema", False),), title="no EMA", cost=12, loss="no running average of the weights")
    yield from _precision_changes(settings, can_bf16=can_bf16)
    if not memory.gradient_checkpointing:
        yield Change(
            values=(("gradient_checkpointing", True),), title="checkpointing", cost=30, loss="about a third slower"
        )
    yield from _optimizer_changes(settings)
    yield from _batch_changes(settings)
    if training.train_text_encoder:
        yield Change(
            values=(("train_text_encoder", False),),
            title="frozen text encoder",
            cost=40,
            loss="the text encoder learns no new words",
        )
    yield from _resolution_changes(settings)


def _precision_changes(settings: Settings, *, can_bf16: bool) -> Iterator[Change]:
    memory = settings.memory
    format_ = "bf16" if can_bf16 else "fp16"
    values: Values = (("mixed_precision", format_),)
    if memory.mixed_precision == "no":
        yield Change(values=values, title=format_, cost=1, loss="16-bit computation; faster")
    if can_bf16 and not memory.full_bf16 and not memory.full_fp16:
        values = () if memory.mixed_precision == "bf16" else values
        loss = "weights in 16 bits, rounded at random"
        yield Change(values=(*values, ("full_bf16", True)), title="bf16 weights", cost=45, loss=loss)


def _optimizer_changes(settings: Settings) -> Iterator[Change]:
    name, memory = settings.optimizer.optimizer_type, settings.memory
    if name in {"AdamW", "Adam", "PagedAdamW", "AdamWScheduleFree"}:
        yield Change(
            values=(("optimizer_type", "AdamW8bit"),), title="AdamW8bit", cost=3, loss="optimizer state in 8 bits"
        )
        yield Change(
            values=(("optimizer_type", "PagedAdamW8bit"),),
            title="PagedAdamW8bit",
            cost=35,
            loss="state in the computer's memory",
        )
    elif name == "AdamW8bit":
        yield Change(
            values=(("optimizer_type", "PagedAdamW8bit"),),
            title="PagedAdamW8bit",
            cost=30,
            loss="state in the computer's memory",
        )
    if not memory.fused_backward_pass and settings.training.gradient_accumulation_steps == 1:
        values: Values = (("fused_backward_pass", True),)
        yield Change(
            values=values, title="fused backward", cost=15, loss="gradients clipped one by one, a little slower"
        )
        if name == "AdamW":
            both: Values = (("optimizer_type", "AdaFactor"), ("fused_backward_pass", True))
            yield Change(
                values=both,
                title="fused AdaFactor",
                cost=30,
                loss="another optimizer, whose rates differ; clipped one by one",
            )


def _batch_changes(settings: Settings) -> Iterator[Change]:
    """Yield smaller batches with as many more of them in a step."""
    training = settings.training
    batch = training.train_batch_size
    for smaller in sorted({size for size in range(1, batch) if batch % size == 0}, reverse=True)[:4]:
        steps = training.gradient_accumulation_steps * (batch // smaller)
        values: Values = (("train_batch_size", smaller), ("gradient_accumulation_steps", steps))
        loss = f"{steps} batches of {smaller} in a step; slower"
        yield Change(
            values=values,
            title=f"batch {smaller} x {steps}",
            cost=10 + 4 * (batch // smaller),
            loss=loss,
            ladder="batch",
        )


def _resolution_changes(settings: Settings) -> Iterator[Change]:
    resolution = settings.dataset.resolution
    if resolution is None:
        return
    for share in (0.75, 0.5):
        smaller = tuple(max(256, round(side * share / _STEP) * _STEP) for side in resolution)
        if smaller[0] * smaller[1] < resolution[0] * resolution[1]:
            loss = f"smaller pictures, {smaller[0]} x {smaller[1]}"
            yield Change(
                values=(("resolution", smaller),),
                title=f"{smaller[0]}x{smaller[1]}",
                cost=90 / share,
                loss=loss,
                ladder="resolution",
            )

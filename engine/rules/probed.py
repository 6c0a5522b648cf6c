"""Rules on what probes have measured. Torch-free."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.probe_results import ProbeResult
from engine.rules.rule import Finding, rule, set_to
from engine.settings import Settings

PROBE = "measured by `probe` on this model"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedSubject:
    """The settings, as the model's file completes them, and the results of earlier probes."""

    settings: Settings
    results: Sequence[ProbeResult]

    def verdict(self, name: str) -> ProbeResult | None:
        """Return the result of a probe."""
        return next((result for result in self.results if result.name == name), None)


@rule("probed-prediction", "warning", why="The loss against the right target is far smaller.", source=PROBE)
def probed_prediction(subject: ProbedSubject) -> Iterator[Finding]:
    """What the model was seen to predict is not what is to be trained."""
    result, said = subject.verdict("prediction"), subject.settings.model.v_parameterization
    if result is None or result.verdict == "undecided":
        return
    is_v = result.verdict == "v_prediction"
    if said != is_v:
        fix = f"set v_parameterization={str(is_v).lower()}"
        values = set_to(v_parameterization=is_v)
        yield Finding(setting="v_parameterization", message=result.message, fix=fix, values=values)


@rule(
    "probed-vae", "error", why="fp16 ends at 65504; beyond it activations are infinite and latents NaN.", source=PROBE
)
def probed_vae(subject: ProbedSubject) -> Iterator[Finding]:
    """The VAE overflows in fp16, in which it would run."""
    result, memory = subject.verdict("vae"), subject.settings.memory
    if (
        result is not None
        and result.verdict == "overflows"
        and memory.mixed_precision == "fp16"
        and not memory.no_half_vae
    ):
        yield Finding(
            setting="no_half_vae", message=result.message, fix="set no_half_vae=true", values=set_to(no_half_vae=True)
        )


@rule("probed-step", "error", why="A step with these settings was tried here.", source=PROBE)
def probed_step(subject: ProbedSubject) -> Iterator[Finding]:
    """A step with the largest bucket failed on this machine."""
    result = subject.verdict("step")
    if result is None or result.verdict == "works":
        return
    fix = "see the forecast of memory" if result.verdict == "out-of-memory" else "lower learning_rate, or use bf16"
    yield Finding(setting="train_batch_size", message=f"on this machine {result.message}", fix=fix)


RULES = (probed_prediction, probed_vae, probed_step)

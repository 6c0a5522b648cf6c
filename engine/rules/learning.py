"""Rules for optimizers and learning-rate schedules. Torch-free."""

from collections.abc import Iterator

from engine.curves import ADAFACTOR, POLYNOMIAL_END, curve_name, multiplier_at
from engine.errors import EngineError
from engine.rules.rule import Finding, rule, set_to, to_default
from engine.settings import OptimizerSettings, Settings

GET_OPTIMIZER = "sd-scripts library/train_util.py, get_optimizer"
SCHEDULES = "transformers, optimization.get_scheduler"


@rule("constant-warmup", "error", why="The constant schedule has no warmup.", source=SCHEDULES)
def constant_warmup(settings: Settings) -> Iterator[Finding]:
    """lr_warmup_steps is set with the constant schedule."""
    optimizer = settings.optimizer
    if optimizer.lr_scheduler == "constant" and optimizer.lr_warmup_steps and not optimizer.lr_scheduler_type:
        yield Finding(
            setting="lr_warmup_steps",
            message="the constant schedule has no warmup",
            fix="set lr_scheduler=constant_with_warmup",
            values=set_to(lr_scheduler="constant_with_warmup"),
        )


@rule("long-warmup", "warning", why="The full rate is never reached.", source=SCHEDULES)
def long_warmup(settings: Settings) -> Iterator[Finding]:
    """The warmup is as long as the run."""
    warmup, training = settings.optimizer.lr_warmup_steps, settings.training
    if training.max_train_epochs is None and warmup >= training.max_train_steps and warmup >= 1:
        message = f"lr_warmup_steps = {warmup:g} is as long as the run of {training.max_train_steps} steps"
        fix = "set lr_warmup_steps=0.05, a twentieth of the run"
        yield Finding(setting="lr_warmup_steps", message=message, fix=fix, values=set_to(lr_warmup_steps=0.05))


@rule("polynomial-floor", "error", why=f"The polynomial schedule ends at {POLYNOMIAL_END:g}.", source=SCHEDULES)
def polynomial_floor(settings: Settings) -> Iterator[Finding]:
    """The polynomial schedule begins at or below the rate where it ends."""
    optimizer = settings.optimizer
    if optimizer.lr_scheduler == "polynomial" and optimizer.learning_rate <= POLYNOMIAL_END:
        message = f"learning_rate = {optimizer.learning_rate:g} is not above {POLYNOMIAL_END:g}, where polynomial ends"
        fix = "set lr_scheduler=linear, or raise learning_rate"
        yield Finding(setting="learning_rate", message=message, fix=fix, values=set_to(lr_scheduler="linear"))


@rule("optimizer-args", "error", why="Arguments are read as name=value.", source=GET_OPTIMIZER)
def optimizer_args(settings: Settings) -> Iterator[Finding]:
    """An entry of optimizer_args is no name=value, or sets the learning rate."""
    for pair in settings.optimizer.optimizer_args:
        name, equals, _ = (part.strip() for part in pair.partition("="))
        if not equals or not name.isidentifier():
            message, fix = f"optimizer_args: {pair!r} is not of the form name=value", "write it as name=value"
            yield Finding(setting="optimizer_args", message=message, fix=fix)
        elif name == "lr":
            kept = tuple(other for other in settings.optimizer.optimizer_args if other != pair)
            message = "optimizer_args: lr is set by learning_rate and learning_rate_te"
            values = set_to(optimizer_args=kept or None)
            yield Finding(setting="optimizer_args", message=message, fix="remove it there", values=values)


def has_argument(optimizer: OptimizerSettings, name: str, value: str) -> bool:
    """Tell whether optimizer_args hold name=value."""
    return any(pair.replace(" ", "") == f"{name}={value}" for pair in optimizer.optimizer_args)


def takes_relative_steps(optimizer: OptimizerSettings) -> bool:
    """Tell whether AdaFactor follows a rule of its own rather than a rate."""
    return optimizer.optimizer_type == "AdaFactor" and not has_argument(optimizer, "relative_step", "False")


_SCHEDULE = ("lr_scheduler", "lr_warmup_steps", "lr_scheduler_type", "lr_scheduler_args")
_DECLINED = "or optimizer_args=relative_step=False"


@rule(
    "adafactor-schedule", "error", why="With relative steps AdaFactor takes no rate from outside.",
    source=f"{GET_OPTIMIZER}; Shazeer and Stern 2018, arXiv:1804.04235",
)  # fmt: skip
def adafactor_schedule(settings: Settings) -> Iterator[Finding]:
    """A schedule or warmup is set for AdaFactor with relative steps."""
    optimizer = settings.optimizer
    is_other = curve_name(optimizer.lr_scheduler) not in ("constant", ADAFACTOR) or optimizer.lr_scheduler_type
    if takes_relative_steps(optimizer) and (is_other or optimizer.lr_warmup_steps):
        yield Finding(
            setting="lr_scheduler",
            message=f"AdaFactor takes steps by a rule of its own, not by lr_scheduler={optimizer.lr_scheduler}",
            fix=f"set lr_scheduler=constant without warmup, {_DECLINED}",
            values=to_default(*_SCHEDULE),
        )


@rule("adafactor-curve", "error", why="It stands for AdaFactor's relative steps.", source=GET_OPTIMIZER)
def adafactor_curve(settings: Settings) -> Iterator[Finding]:
    """lr_scheduler=adafactor is set for another optimizer, or for one that declines relative steps."""
    optimizer = settings.optimizer
    if curve_name(optimizer.lr_scheduler) == ADAFACTOR and not takes_relative_steps(optimizer):
        yield Finding(
            setting="lr_scheduler",
            message=f"lr_scheduler={optimizer.lr_scheduler} needs optimizer_type=AdaFactor with relative steps",
            fix="set lr_scheduler=constant",
            values=to_default("lr_scheduler"),
        )


@rule("min-lr-missing", "error", why="It ends at a share of the rate, which has no default.", source=SCHEDULES)
def min_lr_missing(settings: Settings) -> Iterator[Finding]:
    """cosine_with_min_lr is chosen without the share at which it ends."""
    optimizer = settings.optimizer
    if optimizer.lr_scheduler == "cosine_with_min_lr" and optimizer.lr_scheduler_min_lr_ratio is None:
        name = "lr_scheduler_min_lr_ratio"
        message = f"cosine_with_min_lr needs {name}, the share of the rate at which it ends"
        yield Finding(
            setting=name, message=message, fix=f"set {name}=0.1", values=set_to(lr_scheduler_min_lr_ratio=0.1)
        )


@rule("step-rules", "error", why="It has no other description.", source="diffusers, optimization")
def step_rules(settings: Settings) -> Iterator[Finding]:
    """piecewise_constant is chosen without step_rules that can be read."""
    optimizer = settings.optimizer
    if optimizer.lr_scheduler != "piecewise_constant" or optimizer.lr_scheduler_type:
        return
    try:
        multiplier_at(0, 1, optimizer)
    except EngineError as error:
        example = ("step_rules='1:1000,0.1:2000,0.01'",)
        fix, values = f"set lr_scheduler_args to {example[0]}", set_to(lr_scheduler_args=example)
        yield Finding(setting="lr_scheduler_args", message=str(error), fix=fix, values=values)


@rule(
    "schedule-free", "error", why="It needs no schedule, and its weights are an average already.",
    source="Defazio et al. 2024, arXiv:2405.15682; sd-scripts library/train_util.py, get_scheduler_fix",
)  # fmt: skip
def schedule_free(settings: Settings) -> Iterator[Finding]:
    """A schedule, a warmup or an average of weights is set for a schedule-free optimizer."""
    optimizer, chosen = settings.optimizer, settings.optimizer.optimizer_type
    if "ScheduleFree" not in chosen:
        return
    if optimizer.lr_scheduler != "constant" or optimizer.lr_warmup_steps or optimizer.lr_scheduler_type:
        message = f"{chosen} follows no schedule; it warms up by optimizer_args=warmup_steps=100"
        fix = "set lr_scheduler=constant without warmup"
        yield Finding(setting="lr_scheduler", message=message, fix=fix, values=to_default(*_SCHEDULE))
    if settings.training.use_ema:
        message = f"use_ema has nothing to add to {chosen}, whose weights are an average already"
        yield Finding(setting="use_ema", message=message, fix="remove use_ema", values=to_default("use_ema"))


@rule(
    "adaptive-rate", "warning", why="The rate is multiplied by what the optimizer estimates.",
    source=f"{GET_OPTIMIZER}, which warns of it; Mishchenko and Defazio 2023, arXiv:2306.06101",
)  # fmt: skip
def adaptive_rate(settings: Settings) -> Iterator[Finding]:
    """Prodigy or D-Adaptation, which find the rate themselves, are given one far from 1."""
    optimizer = settings.optimizer
    if finds_its_rate(optimizer) and optimizer.learning_rate < 0.1:
        message = f"learning_rate = {optimizer.learning_rate:g} is a factor for {optimizer.optimizer_type}, near 1"
        yield Finding(
            setting="learning_rate", message=message, fix="set learning_rate=1", values=set_to(learning_rate=1.0)
        )


@rule(
    "adaptive-te-rate", "error", why="One estimate serves all parts of the model.",
    source="prodigyopt and dadaptation, which refuse it in their first step",
)  # fmt: skip
def adaptive_te_rate(settings: Settings) -> Iterator[Finding]:
    """Prodigy or D-Adaptation are given another rate for the text encoder."""
    optimizer = settings.optimizer
    rate = optimizer.learning_rate_te
    if (
        settings.training.train_text_encoder
        and finds_its_rate(optimizer)
        and rate not in (None, 0, optimizer.learning_rate)
    ):
        message = f"{optimizer.optimizer_type} finds one rate for all parts, so learning_rate_te can't differ"
        fix, values = "remove learning_rate_te", to_default("learning_rate_te")
        yield Finding(setting="learning_rate_te", message=message, fix=fix, values=values)


def finds_its_rate(optimizer: OptimizerSettings) -> bool:
    """Tell whether the optimizer estimates the learning rate, which the setting then only multiplies."""
    return optimizer.optimizer_type == "Prodigy" or optimizer.optimizer_type.startswith("DAdapt")


@rule(
    "adafactor-rate", "warning", why="With relative steps AdaFactor takes no rate from outside.",
    source=f"{GET_OPTIMIZER}; sd-scripts docs/train_SDXL-en.md",
)  # fmt: skip
def adafactor_rate(settings: Settings) -> Iterator[Finding]:
    """A learning rate is set for AdaFactor with relative steps."""
    optimizer = settings.optimizer
    if not takes_relative_steps(optimizer):
        return
    for name in ("learning_rate", "learning_rate_te"):
        if getattr(optimizer, name) != type(optimizer).model_fields[name].default:
            message = f"{name} has no effect: AdaFactor takes steps by a rule of its own"
            yield Finding(setting=name, message=message, fix=f"remove {name}, {_DECLINED}", values=to_default(name))


@rule(
    "adafactor-clip", "warning", why="AdaFactor clips its updates by itself; both together slow it down.",
    source=f"{GET_OPTIMIZER}, which warns of it",
)  # fmt: skip
def adafactor_clip(settings: Settings) -> Iterator[Finding]:
    """max_grad_norm limits gradients beside AdaFactor's own limit."""
    if settings.optimizer.optimizer_type == "AdaFactor" and settings.optimizer.max_grad_norm:
        message = "AdaFactor limits its updates by itself; max_grad_norm limits the gradients besides"
        fix = "set max_grad_norm=0"
        yield Finding(setting="max_grad_norm", message=message, fix=fix, values=set_to(max_grad_norm=0.0))


@rule(
    "adafactor-memory", "info", why="On SD 1.x AdaFactor's state was traced to be larger than that of 8-bit Adam.",
    source="a trace of the optimizer step on the meta device",
)  # fmt: skip
def adafactor_memory(settings: Settings) -> Iterator[Finding]:
    """AdaFactor is chosen for an SD model of 1.x or 2.x."""
    if settings.optimizer.optimizer_type == "AdaFactor":
        yield Finding(
            setting="optimizer_type",
            message="AdaFactor saves no memory over AdamW8bit on SD 1.x and 2.x",
            fix="set optimizer_type=AdamW8bit if memory is the reason",
        )


@rule(
    "high-rate", "warning", why="A rate this high destroys any network of this kind within a few steps.",
    source="Kingma and Ba 2015, arXiv:1412.6980: 1e-3 is Adam's default for networks from scratch",
)  # fmt: skip
def high_rate(settings: Settings) -> Iterator[Finding]:
    """A learning rate is far above that of any network, however small."""
    optimizer = settings.optimizer
    if optimizer.optimizer_type not in {"AdamW", "AdamW8bit", "Lion"}:
        return
    for name in ("learning_rate", "learning_rate_te"):
        rate = getattr(optimizer, name)
        if rate is not None and rate > 5e-3:
            message = f"{name} = {rate:g} is far too high for {optimizer.optimizer_type}"
            yield Finding(setting=name, message=message, fix=f"remove {name}", values=to_default(name))


@rule(
    "te-rate-zero", "warning", why="It takes memory for gradients and moments and changes nothing.",
    source="arithmetic",
)  # fmt: skip
def te_rate_zero(settings: Settings) -> Iterator[Finding]:
    """The text encoder is trained with a rate of 0."""
    if settings.training.train_text_encoder and settings.optimizer.learning_rate_te == 0:
        yield Finding(
            setting="learning_rate_te",
            message="the text encoder is trained with a learning rate of 0, so it costs memory and stays as it is",
            fix="remove train_text_encoder",
            values=to_default("train_text_encoder", "learning_rate_te"),
        )


@rule(
    "slow-average", "info", why="An average of decay d spans about 1 / (1 - d) steps.",
    source="diffusers, EMAModel; engine/ema.py",
)  # fmt: skip
def slow_average(settings: Settings) -> Iterator[Finding]:
    """The average of the weights spans more steps than the run has."""
    training = settings.training
    span = 1 / (1 - training.ema_decay)
    if training.use_ema and training.max_train_epochs is None and span > training.max_train_steps:
        message = f"ema_decay = {training.ema_decay:g} averages over {span:.0f} steps, more than the run has"
        yield Finding(setting="ema_decay", message=message, fix="set ema_decay=0.999", values=set_to(ema_decay=0.999))


RULES = (
    adafactor_curve, min_lr_missing, step_rules, schedule_free, adaptive_rate, adaptive_te_rate,
    constant_warmup, long_warmup, polynomial_floor, optimizer_args, adafactor_schedule, adafactor_rate, adafactor_clip,
    adafactor_memory, high_rate, te_rate_zero, slow_average,
)  # fmt: skip

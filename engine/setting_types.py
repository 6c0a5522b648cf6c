"""The types of setting values: choices by name, and sizes, ranges and colours written as text. Torch-free."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

MixedPrecision = Literal["no", "fp16", "bf16"]
SavePrecision = Literal["float", "fp16", "bf16"]
CaptionerName = Literal["blip", "wd14", "deepdanbooru"]
SaveFormat = Literal["ckpt", "safetensors", "diffusers", "diffusers_safetensors"]
OptimizerName = Literal[
    "AdamW", "AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit", "Lion", "Lion8bit", "PagedLion8bit",
    "SGDNesterov", "SGDNesterov8bit", "DAdaptation", "DAdaptAdamPreprint", "DAdaptAdaGrad", "DAdaptAdam", "DAdaptAdan",
    "DAdaptAdanIP", "DAdaptLion", "DAdaptSGD", "Prodigy", "AdaFactor", "AdamWScheduleFree", "RAdamScheduleFree",
    "SGDScheduleFree", "Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "ASGD", "RMSprop", "Rprop", "SGD",
]  # fmt: skip
CurveName = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt",
    "cosine_with_min_lr", "warmup_stable_decay", "piecewise_constant", "adafactor",
]  # fmt: skip
LossName = Literal["l2", "l1", "huber", "smooth_l1"]
HuberSchedule = Literal["snr", "exponential", "constant"]
SamplerName = Literal[
    "ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsolver++", "dpmsingle",
    "k_lms", "k_euler", "k_euler_a", "k_dpm_2", "k_dpm_2_a",
]  # fmt: skip
TrackerName = Literal["tensorboard", "wandb", "all"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
CompilerName = Literal["eager", "aot_eager", "inductor", "cudagraphs"]
ActivationName = Literal[
    "linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "celu", "gelu", "hardshrink", "hardsigmoid",
    "hardswish", "hardtanh", "logsigmoid", "mish", "relu6", "selu", "silu", "softplus", "softshrink", "softsign",
    "tanhshrink",
]  # fmt: skip
Interpolation = Literal["lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box"]


class Section(BaseModel):
    """A TOML section: frozen, strict about types, no unknown keys, finite numbers only."""

    # Building the validators is put off to their first use: 40 ms that the first screen need not wait for.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        defer_build=True,
    )


def _numbers(value: Any) -> Any:
    """Read "512,768", 512 or [512, 768] as a pair; anything else is left for the type check to refuse."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return (value, value)
    if isinstance(value, str):
        try:
            parts = tuple(float(part) if "." in part else int(part) for part in value.split(","))
        except ValueError as error:
            raise ValueError("should be numbers separated by commas") from error
        return parts * 2 if len(parts) == 1 else parts
    return tuple(value) if isinstance(value, list) else value


def _strings(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def spelled(*names: str) -> BeforeValidator:
    """Accept a name in any mixture of upper and lower case, as sd-scripts does for optimizers."""
    spelling = {name.lower(): name for name in names}
    return BeforeValidator(lambda value: spelling.get(value.lower(), value) if isinstance(value, str) else value)


def _joined(value: Sequence[float] | None) -> str | None:
    return None if value is None else ",".join(map(str, value))


def _shortly_joined(value: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in value)


def _widths(value: Any) -> Any:
    """Read "320,768", 768 or a list."""
    read = _numbers(value)
    return read[:1] if isinstance(value, int | str) and isinstance(read, tuple) and "," not in str(value) else read


def _from_one_to_one(value: tuple[float, ...]) -> tuple[float, ...]:
    if value[0] != 1 or value[-1] != 1:
        raise ValueError("should begin and end with 1, the width itself, such as 1,2,1")
    return value


def split_strength(text: str) -> tuple[str, float]:
    """Return the file and the strength of "file" or "file:strength"; without one it is 1."""
    path, _, number = text.rpartition(":")
    is_number = path and re.fullmatch(r"-?\d{0,4}\.?\d{1,6}", number, re.ASCII)
    return (path, float(number)) if is_number else (text, 1.0)  # Else the colon is the file's own.


def _steps_or_share(value: Any) -> Any:
    """Read "5%" as 0.05, and tell 1.0, the whole run, from 1, one step."""
    if not isinstance(value, str):
        return value
    try:
        if value.endswith("%"):
            return float(value[:-1]) / 100
        return int(value) if value.strip().isdecimal() else float(value)
    except ValueError as error:
        raise ValueError("should be a number of steps, a share such as 0.05, or 5%") from error


StepsOrShare = Annotated[int | float, BeforeValidator(_steps_or_share, json_schema_input_type=int | float | str)]
# A class of an installed package, such as "torch.optim.Muon".
DottedName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]
# sd-scripts' "adafactor:1e-4": the rate is shown until the first step and changes nothing.
AdafactorCurve = Annotated[str, Field(pattern=r"^adafactor:[0-9.eE+-]+$")]

# Written as "512,768": that is what sd-scripts' --config_file reads.
Size = Annotated[
    tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]],
    BeforeValidator(_numbers, json_schema_input_type=int | str | list[int]),
    PlainSerializer(_joined),
]
Range = Annotated[
    tuple[Annotated[float, Field(ge=1)], Annotated[float, Field(ge=1)]],
    BeforeValidator(_numbers, json_schema_input_type=str | list[float]),
    PlainSerializer(_joined),
]
Color = Annotated[
    tuple[
        Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)]
    ],
    BeforeValidator(_numbers, json_schema_input_type=str | list[int]),
    PlainSerializer(_joined),
]
Strings = Annotated[tuple[str, ...], BeforeValidator(_strings, json_schema_input_type=list[str]), PlainSerializer(list)]
Layers = Annotated[
    tuple[Annotated[float, Field(gt=0, le=16)], ...],
    Field(min_length=2, max_length=32),
    BeforeValidator(_numbers, json_schema_input_type=str | list[float]),
    AfterValidator(_from_one_to_one),
    PlainSerializer(_shortly_joined),
]
Widths = Annotated[
    tuple[Annotated[int, Field(ge=1, le=65_536)], ...],
    Field(min_length=1, max_length=32),
    BeforeValidator(_widths, json_schema_input_type=int | str | list[int]),
    PlainSerializer(_joined),
]
PathKind = Literal["model", "file", "folder", "output", "state"]


def path_hint(kind: PathKind) -> dict[str, Any]:
    """Mark a setting as a path, so that forms complete it and run.toml keeps it relative."""
    return {"path": kind}


def secret_hint() -> dict[str, Any]:
    """Mark a setting that is never written anywhere: a password or key."""
    return {"secret": True}


def unit_hint(unit: str) -> dict[str, Any]:
    """Say what unit a number is in."""
    return {"unit": unit}

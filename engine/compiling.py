"""The UNet compiled by torch, once for each shape it meets."""

import shutil

import torch
from torch import nn

from engine.errors import EngineError
from engine.settings import MemorySettings

_SHAPES_PER_BUCKET = 4  # Whole and short batches, in training and in validation.
_OTHER_SHAPES = 32  # Of samples, which may have any size.


def compile_unet(unet: nn.Module, memory: MemorySettings, *, buckets: int, device: torch.device) -> None:
    """Compile the UNet in place, so that its weights keep their names; each shape is compiled when it comes first.

    Raises:
        EngineError: The backend needs a C++ compiler that is not there.
    """
    if not memory.torch_compile:
        return
    needs_compiler = memory.dynamo_backend == "inductor" and device.type == "cpu"
    if needs_compiler and not any(map(shutil.which, ("g++", "c++", "clang++", "cl"))):
        raise EngineError(
            "torch_compile with dynamo_backend = inductor needs a C++ compiler on this device, and none is found: "
            "install g++ or clang, set dynamo_backend=aot_eager, or remove torch_compile"
        )
    # Past the limit torch would run new shapes uncompiled, and say so in a log that nobody reads.
    limit = _SHAPES_PER_BUCKET * buckets + _OTHER_SHAPES
    config = torch._dynamo.config  # noqa: SLF001 - the documented place of these options
    config.recompile_limit = max(config.recompile_limit, limit)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 8 * limit)
    unet.compile(backend=memory.dynamo_backend, dynamic=False)

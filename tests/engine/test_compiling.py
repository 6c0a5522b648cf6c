"""The UNet compiled in place, once for each shape; `python -m benchmarks.compiled_run` compiles a whole one."""

import torch
from torch import nn

from engine.compiling import compile_unet
from engine.settings import MemorySettings


class Counted(nn.Module):
    """Counts how often Python runs its forward, which a compiled module does only to see a new shape."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, inputs):
        return self.inner(inputs) + inputs.shape[0]


def test_every_shape_is_compiled_and_names_stay():
    """Beyond torch's limit of eight shapes too; the numbers are those of the plain module."""
    module, plain = Counted(), Counted()
    plain.load_state_dict(module.state_dict())
    memory = MemorySettings(torch_compile=True, dynamo_backend="eager")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]

    compile_unet(module, memory, buckets=2, device=torch.device("cpu"))
    for size in range(1, 13):
        inputs = torch.ones(size, 4)
        assert torch.allclose(plain(inputs), module(inputs))

    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 12
    assert module.state_dict().keys() == plain.state_dict().keys()


def test_without_the_setting_nothing_is_compiled():
    module = Counted()

    compile_unet(module, MemorySettings(), buckets=1, device=torch.device("cpu"))

    assert module._compiled_call_impl is None

"""One compiled UNet against the plain one: the same prediction, and the seconds of compiling and of a step."""

import argparse
import time

import torch
from diffusers import UNet2DConditionModel

from engine.compiling import compile_unet
from engine.settings import MemorySettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="inductor", choices=["eager", "aot_eager", "inductor", "cudagraphs"])
    backend = parser.parse_args().backend
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(16, 16, 16, 16), layers_per_block=1, cross_attention_dim=16, norm_num_groups=8
    )
    inputs = torch.randn(2, 4, 8, 16), torch.tensor([3, 700]), torch.randn(2, 77, 16)
    plain = unet(*inputs, return_dict=False)[0]
    memory = MemorySettings(torch_compile=True, dynamo_backend=backend)
    compile_unet(unet, memory, buckets=1, device=torch.device("cpu"))
    for attempt in range(3):
        began = time.perf_counter()
        prediction = unet(*inputs, return_dict=False)[0]
        prediction.sum().backward()
        print(f"{backend} pass {attempt}: {time.perf_counter() - began:.2f} s")
    print(f"largest difference: {(prediction - plain).abs().max().item():.2g}")


if __name__ == "__main__":
    main()

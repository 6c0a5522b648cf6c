"""The memory forecast against a symbolic run of two whole steps, on configurations it was not fitted to; and its time.

`python -m benchmarks memory` runs all of them (ten minutes), `REDUCED=1 python -m benchmarks memory` every fifth.
"""

import os
import time

from engine.memory.forecast import forecast
from engine.memory.request import Request
from engine.models.hypernetwork_file import Structure

GIB = 1 << 30


RICH = Structure(layers=(1.0, 2.0, 2.0, 1.0), activation="relu", layer_norm=True)


def request(family: str, size: tuple[int, int], batch: int, words: str, optimizer: str, **more: object) -> Request:
    precision, checkpointing, attention = words.split()
    return Request(
        family=family,  # type: ignore[arg-type]
        size=size,
        batch=batch,
        chunks=more.pop("chunks", 1),  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        is_checkpointed=checkpointing == "checkpointed",
        attention=attention,  # type: ignore[arg-type]
        optimizer=optimizer,
        encodes=bool(more.pop("encodes", False)),
        **more,  # type: ignore[arg-type]
    )


CASES = [
    request("sd1", (512, 512), 1, "mixed checkpointed fused", "AdamW8bit"),
    request("sd1", (576, 704), 3, "mixed checkpointed fused", "AdamW8bit", chunks=3),
    request("sd1", (448, 960), 1, "mixed plain fused", "SGDNesterov"),
    request("sd1", (640, 448), 6, "single plain fused", "AdamW"),
    request("sd1", (768, 768), 4, "half checkpointed fused", "AdaFactor", is_fused=True),
    request("sd1", (512, 768), 2, "mixed checkpointed fused", "AdamW", accumulates=True, has_ema=True),
    request("sd1", (512, 512), 4, "mixed plain fused", "AdamW8bit", trains_text_encoder=True, chunks=2),
    request("sd1", (704, 576), 2, "mixed checkpointed fused", "Lion", trains_text_encoder=True),
    request("sd1", (512, 640), 1, "mixed checkpointed math", "AdamW8bit"),
    request("sd1", (640, 640), 2, "half plain math", "AdamW8bit"),
    request("sd1", (832, 640), 3, "single checkpointed sliced", "AdaFactor"),
    request("sd1", (512, 512), 2, "mixed checkpointed fused", "AdaFactor", is_fused=True),
    request("sd1", (576, 576), 5, "mixed checkpointed fused", "AdamW8bit", encodes=True, vae_is_half=True),
    request("sd1", (512, 512), 1, "mixed checkpointed fused", "AdamW8bit", sample_size=(768, 768)),
    request("sd1", (576, 448), 3, "mixed plain fused", "AdamW", hypernetwork=Structure(), chunks=2),
    request("sd1", (512, 704), 2, "mixed checkpointed fused", "AdamW", hypernetwork=RICH),
    request("sd2", (640, 768), 2, "single plain fused", "AdamW8bit", hypernetwork=RICH, has_ema=True),
    request("sd2", (768, 768), 1, "mixed checkpointed fused", "AdamW8bit"),
    request("sd2", (640, 896), 5, "half plain fused", "AdamW8bit"),
    request("sd2", (704, 832), 2, "mixed plain fused", "AdamW", accumulates=True),
    request("sd2", (768, 576), 2, "mixed checkpointed fused", "AdamW8bit", trains_text_encoder=True),
    request("sd2", (512, 512), 8, "single checkpointed fused", "AdaFactor", is_fused=True),
    request("sd2", (640, 640), 1, "mixed plain sliced", "AdamW8bit"),
    request("sdxl", (1024, 1024), 1, "mixed checkpointed fused", "AdaFactor"),
    request("sdxl", (832, 1216), 2, "half checkpointed fused", "AdamW8bit"),
    request("sdxl", (896, 1152), 1, "mixed plain fused", "AdamW8bit", chunks=3),
    request("sdxl", (1024, 1024), 2, "single checkpointed fused", "AdaFactor", is_fused=True),
    request("sdxl", (768, 1344), 1, "half plain math", "AdaFactor"),
    request("sdxl", (1152, 896), 3, "mixed checkpointed fused", "AdamW8bit", accumulates=True),
]


def main() -> None:
    from engine.memory_trace.whole import trace_whole_step

    print(f"{'configuration':78} {'forecast':>9} {'trace':>9} {'off by':>8}")
    worst = 0.0
    for case in CASES[:: 5 if os.environ.get("REDUCED") else 1]:
        found, traced = forecast(case).allocated_bytes, trace_whole_step(case)
        off = found / traced - 1
        worst = max(worst, abs(off))
        flags = ("accumulates", "is_fused", "has_ema", "trains_text_encoder", "encodes", "sample_size", "hypernetwork")
        extra = " ".join(name for name in flags if getattr(case, name))
        name = f"{case.family} {case.size[0]}x{case.size[1]} b{case.batch} t{case.chunks} {case.case} {case.optimizer}"
        print(f"{f'{name} {extra}':78} {found / GIB:9.3f} {traced / GIB:9.3f} {off:8.2%}", flush=True)
    print(f"worst {worst:.2%}")
    began = time.perf_counter()
    for _ in range(1000):
        forecast(CASES[5])
    print(f"one forecast {(time.perf_counter() - began) * 1e3:.0f} us   (wanted < 1000)")


if __name__ == "__main__":
    main()

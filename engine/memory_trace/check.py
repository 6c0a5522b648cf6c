"""Holds the tracer against real allocations: the same step on real tensors on the CPU, watched by torch's profiler."""

from typing import Any

from torch.profiler import ProfilerActivity, profile

from engine.memory_trace.step import Case, Config, Point, build_unet, trace_unet


def compare_with_cpu(config: Config, case: Case, point: Point) -> tuple[int, int]:
    """Return the most bytes beside the weights that a batch holds: as traced without data, and as really allocated.

    Both sides follow the same policy of precision, so this checks the counting, not that policy. Attention has to be
    "math" or "sliced": the fused kind is a model of CUDA's kernels, which the CPU does not have.
    """
    traced = trace_unet(build_unet(config), case, point, is_rounded=False)
    expected = max(sum(moment.held) for moment in traced.moments)
    unet = build_unet(config, "cpu")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trace_unet(unet, case, point, device="cpu")
    return expected, _peak(profiler)


def _peak(profiler: profile) -> int:
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    peak = total = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak

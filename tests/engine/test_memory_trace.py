"""The tracer: against real allocations, the shipped table, the allocator's rules, the real optimizers."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import get_args

import pytest

import sdtui
from engine.memory import own_table
from engine.memory.allocation import MIB, CachingAllocator
from engine.memory.forecast import forecast
from engine.memory.of_run import unet_config
from engine.memory.optimizers import COSTS, cost_of, state_bytes
from engine.memory.own_table import known_table, table_for
from engine.memory.request import Request
from engine.memory.table import config_hash, family_table, shipped_table
from engine.memory_trace.check import compare_with_cpu
from engine.memory_trace.optimizers import measure_optimizer
from engine.memory_trace.step import Case, Point, build_unet, build_with_hypernetwork, trace_unet
from engine.memory_trace.table import CASES, HYPERNETWORK_CASES
from engine.models.hypernetwork_file import Structure
from engine.models.source import open_source
from engine.resources import family_config
from engine.setting_types import OptimizerName

STARTER = Path(sdtui.__file__).parent / "starter" / "model"
TINY = {**family_config("sd1", "unet"), "block_out_channels": [32, 64, 64, 64], "cross_attention_dim": 64,
        "attention_head_dim": 4}  # fmt: skip

SMALLEST = {
    **family_config("sd1", "unet"), "block_out_channels": [32], "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"], "layers_per_block": 1, "cross_attention_dim": 16,
}  # fmt: skip


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_the_trace_equals_real_allocations(is_checkpointed):
    """Within 0.1 % of what torch's profiler sees on the CPU."""
    case = Case(precision="single", is_checkpointed=is_checkpointed, attention="math")

    traced, real = compare_with_cpu(TINY, case, Point(batch=2, height=32, width=32))

    assert traced == pytest.approx(real, rel=1e-3)


def test_the_shipped_table_is_of_this_diffusers():
    """A small part is built anew: where it differs, `make memory-table` builds all of it."""
    case = Case(precision="half", is_checkpointed=True, attention="fused")
    ledger = trace_unet(build_unet(family_config("sd1", "unet")), case, Point(batch=3, height=72, width=56))

    found = family_table("sd1").unet.case(case.name)
    area = 72 * 56 / 4096
    for is_backward, held in ((False, found.forward_peak(3, area, 1)), (True, found.backward_peak(3, area, 1))):
        traced = max(sum(moment.held) for moment in ledger.moments if moment.is_backward == is_backward)
        assert sum(held) * MIB == pytest.approx(traced, rel=1e-3)
    assert shipped_table()["diffusers"] == version("diffusers")


@pytest.mark.parametrize("family", [*shipped_table()["families"]])
def test_the_shipped_table_is_of_the_shipped_configs(family):
    """By their hash."""
    assert config_hash(family_config(family, "unet")) == family_table(family).unet.hash


def test_sliced_attention_equals_real_allocations():
    """What stands for it in a trace takes what engine.attention.SlicedAttention does, head by head, on the CPU."""
    case = Case(precision="single", is_checkpointed=True, attention="sliced")

    traced, real = compare_with_cpu(SMALLEST, case, Point(batch=2, height=32, width=32))

    assert traced == pytest.approx(real, rel=1e-3)


@pytest.mark.parametrize("case", [*CASES, *HYPERNETWORK_CASES], ids=lambda case: case.name)
def test_the_starter_projects_unet_is_in_the_shipped_table(tmp_path, monkeypatch, case):
    """As `check` takes it from the model's files, in every precision, checkpointing and attention."""
    monkeypatch.setattr(own_table, "traced", None)
    config = unet_config(open_source(STARTER), "sd1")

    table = table_for(config, "sd1", case.name, cache_dir=tmp_path)

    assert table is not None
    assert table == known_table(config, "sd1", case.name, cache_dir=tmp_path)
    assert table.case(case.name).forward_peak(4, 0.0625, 1)[0] > 0
    assert not [*tmp_path.iterdir()]


TRACING = """
import json, sys
from pathlib import Path
from engine.memory.own_table import table_for
case = "mixed checkpointed fused"
table = table_for(json.loads(sys.stdin.read()), "sd1", case, cache_dir=Path(sys.argv[1]))
print(sum(table.case(case).forward_peak(1, 1.0, 1)), "torch" in sys.modules)
"""


def test_an_unknown_unet_is_traced_once(tmp_path):
    """In a process of its own, so that the one that asks stays free of torch; and kept in the cache folder."""
    command = [sys.executable, "-c", TRACING, str(tmp_path)]
    done = subprocess.run(command, input=json.dumps(SMALLEST), capture_output=True, text=True, check=True)
    peak, has_torch = done.stdout.split()
    assert (float(peak) > 1, has_torch) == (True, "False")
    (kept,) = (tmp_path / "memory").iterdir()
    before = kept.stat().st_mtime_ns

    case = "mixed checkpointed fused"
    assert table_for(family_config("sd1", "unet"), "sd1", case, cache_dir=tmp_path) is None
    table = table_for(SMALLEST, "sd1", case, cache_dir=tmp_path)

    assert table is not None
    assert sum(table.case(case).forward_peak(1, 1.0, 1)) == float(peak)
    assert kept.stat().st_mtime_ns == before
    request = Request(
        family="sd1", size=(256, 256), batch=1, chunks=1, precision="mixed", is_checkpointed=True, attention="fused",
        optimizer="AdamW", encodes=False, unet=table,
    )  # fmt: skip
    assert forecast(request).by_part["weights"] < 40 * MIB
    assert forecast(replace(request, sample_size=(256, 256))).phases["sample"] > 0


def test_a_rare_case_of_a_known_unet_is_not_guessed(tmp_path, monkeypatch):
    """Where tracing takes too long there is no answer; elsewhere the family's own config is traced."""
    case = "mixed plain math hypernetwork"
    with pytest.raises(KeyError):
        known_table(None, "sd1", case, cache_dir=tmp_path)

    asked = []
    raw = shipped_table()["families"]["sd1"]
    monkeypatch.setattr(own_table, "traced", lambda config, name: asked.append((config, name)) or raw)
    table_for(None, "sd1", case, cache_dir=tmp_path)
    assert asked == [(family_config("sd1", "unet"), case)]


def test_a_hypernetwork_takes_what_real_allocations_do():
    """A traced step of the usual one against its planes; other structures by what their layers keep."""
    point = Point(batch=2, height=40, width=48)
    rich = Structure(layers=(1.0, 2.0, 2.0, 1.0), activation="relu", layer_norm=True)
    usual = Request(
        family="sd1", size=(384, 320), batch=2, chunks=1, precision="mixed", is_checkpointed=False, attention="fused",
        optimizer="AdamW", encodes=False, hypernetwork=Structure(),
    )  # fmt: skip
    for structure, tolerance in ((Structure(), 1e-3), (rich, 1e-2)):
        unet, network = build_with_hypernetwork(family_config("sd1", "unet"), structure)
        case = Case(precision="mixed", is_checkpointed=False, attention="fused", has_hypernetwork=True)
        moments = trace_unet(unet, case, point, hypernetwork=network).moments

        found = forecast(replace(usual, hypernetwork=structure))

        traced = max(sum(moment.held) for moment in moments)
        still = sum(found.by_part[part] for part in ("weights", "optimizer", "frozen"))
        assert found.allocated_bytes - still == pytest.approx(traced, rel=tolerance)


def test_the_allocator_splits_and_merges():
    """Small requests share a segment of 2 MiB; what is freed side by side becomes one block again."""
    allocator = CachingAllocator()
    first, second = allocator.allocate(600), allocator.allocate(MIB)
    assert (allocator.reserved, allocator.allocated) == (2 * MIB, MIB + 1024)
    allocator.release(first)
    allocator.release(second)
    large = [allocator.allocate(9 * MIB), allocator.allocate(9 * MIB)]
    assert allocator.reserved == 22 * MIB
    for block in large:
        allocator.release(block)
    allocator.allocate(20 * MIB)
    assert allocator.reserved == 22 * MIB


def test_every_optimizer_has_its_cost():
    """None is guessed."""
    assert set(COSTS) == set(get_args(OptimizerName))


@pytest.mark.parametrize("name", [name for name in COSTS if "Paged" not in name])
def test_costs_are_what_the_real_optimizers_take(name):
    """State to a thousandth, temporary tensors not below the real ones; torch's own in the form that CUDA takes."""
    shape = (256, 128, 3, 3)
    cost = cost_of(name, {})
    is_foreach = cost.is_whole and cost.is_per_tensor
    measured = measure_optimizer(name, [shape], **({"foreach": True} if is_foreach else {}))

    assert state_bytes(cost, [(1, shape)]) == pytest.approx(measured.state, rel=2e-3, abs=2048)
    assert cost.temporary * prod(shape) >= measured.temporary - 16384

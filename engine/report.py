"""A plan as the JSON document of `plan --json`, and as a table for people. Torch-free."""

import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from engine.display import duration, size
from engine.errors import safe_text
from engine.inspection import Inspection
from engine.outlay import prompts_of, times_sampled, times_saved
from engine.plan import Plan
from engine.plan_facts import PlanFacts
from engine.speed import device_name, key_of, known_speed, run_seconds
from engine.tokens import capacity, truncated_tokens

WIDTH = 79


def plan_report(found: Inspection) -> dict[str, Any]:
    """Return the plan as plain data, with the keys that docs/architecture.md promises."""
    plan, facts = found.plan, found.facts
    assert plan is not None
    assert facts is not None
    seconds, reason = forecast_seconds(found)
    return {
        "images": _images(plan, facts),
        "buckets": [
            {"size": list(bucket.size), "images": bucket.images, "batches": bucket.batches} for bucket in plan.buckets
        ],
        "steps": plan.steps,
        "epochs": plan.epochs,
        "batches_per_epoch": plan.batches_per_epoch,
        "steps_per_epoch": plan.steps_per_epoch,
        "seconds": seconds,
        "seconds_reason": reason,
        "memory": found.memory.as_json() if found.memory else None,
        "disk": dict(found.disk),
        "duplicates": [[plan.catalog.keys[row] for row in group.rows] for group in facts.duplicates],
        "problems": [problem.as_json() for problem in found.problems],
    }


def _images(plan: Plan, facts: PlanFacts) -> list[dict[str, Any]]:
    length = plan.settings.model.max_token_length
    limit = capacity(length)
    rows = []
    for row, (caption, count) in enumerate(zip(facts.captions, facts.tokens_N.tolist(), strict=True)):
        place = plan.placement(row)
        rows.append(
            {
                "key": plan.catalog.keys[row],
                "size": list(place.size),
                "bucket": list(place.bucket),
                "resized": list(place.resized),
                "crop": list(place.crop),
                "cut_fraction": place.cut_fraction,
                "caption": caption,
                "tokens": min(count, limit),
                "truncated_tokens": truncated_tokens(count, length),
                "repeats": plan.subset_of(row).num_repeats,
                "held_out": bool(plan.held_out_N[row]),
            }
        )
    return rows


def forecast_seconds(found: Inspection) -> tuple[float | None, str]:
    """Return how long training takes after its preparations, from earlier runs of this kind, and how that is known."""
    plan = found.plan
    assert plan is not None
    device = found.card.name if found.card else device_name()
    speed = known_speed(found.cache_dir, key_of(plan.settings, found.files.info, device))
    if speed is None:
        return None, "no run with these settings was measured on this machine; `probe RUN.toml step` measures a step"
    samples = times_sampled(plan) * len(prompts_of(plan))
    seconds = run_seconds(speed, _kinds_of_steps(plan), steps=plan.steps, saves=times_saved(plan), samples=samples)
    measured = {(point.bucket, point.images) for point in speed.points}
    exact = all((bucket, images) in measured for bucket, images, _ in _kinds_of_steps(plan))
    kinds = f"{len(speed.points)} kinds of step"
    return seconds, f"from {kinds} measured on {device}" + ("" if exact else ", others by their pixels")


def _kinds_of_steps(plan: Plan) -> list[tuple[tuple[int, int], int, int]]:
    """Return the steps of an epoch as (bucket, images, how many); where steps hold several batches, an average one."""
    if plan.settings.training.gradient_accumulation_steps > 1:
        items = sum(bucket.items for bucket in plan.buckets)
        largest = max(plan.buckets, key=lambda bucket: bucket.items)
        return [(largest.size, max(1, round(items / plan.steps_per_epoch)), plan.steps_per_epoch)]
    kinds = []
    for bucket in plan.buckets:
        whole, rest = divmod(bucket.items, bucket.batch_size)
        kinds += [(bucket.size, images, count) for images, count in ((bucket.batch_size, whole), (rest, 1))]
    return [(bucket, images, count) for bucket, images, count in kinds if images and count]


def print_plan(document: Mapping[str, Any]) -> None:
    """Print what matters of a plan to stderr, in lines of at most 79 characters."""
    for part in (_counts, _buckets, _crops, _captions, _costs):
        for line in part(document):
            for piece in textwrap.wrap(line, WIDTH, subsequent_indent="    ", drop_whitespace=False) or [""]:
                sys.stderr.write(f"{piece}\n")


def _counts(document: Mapping[str, Any]) -> Iterator[str]:
    images = document["images"]
    yield f"{len(images)} pictures, {document['batches_per_epoch']} batches in an epoch"
    held_out = sum(image["held_out"] for image in images)
    if held_out:
        yield f"{held_out} of them are held out of training and measured"
    yield f"{document['steps']} steps of {document['steps_per_epoch']} in an epoch, {document['epochs']} epochs"


def _buckets(document: Mapping[str, Any]) -> Iterator[str]:
    most = max(bucket["images"] for bucket in document["buckets"])
    for bucket in document["buckets"]:
        width, height = bucket["size"]
        bar = "#" * max(1, round(30 * bucket["images"] / most))
        yield f"  {width:5}x{height:<5} {bar:30} {bucket['images']:7} pictures {bucket['batches']:6} batches"


def _crops(document: Mapping[str, Any]) -> Iterator[str]:
    worst = sorted(document["images"], key=lambda image: -image["cut_fraction"])[:5]
    if worst and worst[0]["cut_fraction"] > 0.001:
        yield "most cut away:"
        for image in worst:
            yield f"  {image['cut_fraction']:6.1%} of {safe_text(image['key'])}"


def _captions(document: Mapping[str, Any]) -> Iterator[str]:
    losers = sorted((image for image in document["images"] if image["truncated_tokens"]),
                    key=lambda image: -image["truncated_tokens"])  # fmt: skip
    if losers:
        lost = sum(image["truncated_tokens"] for image in losers)
        yield f"{len(losers)} captions lose {lost} tokens:"
        for image in losers[:5]:
            yield f"  {image['truncated_tokens']:6} of {safe_text(image['key'])}"


def _costs(document: Mapping[str, Any]) -> Iterator[str]:
    seconds = document["seconds"]
    yield f"time: {duration(seconds) if seconds is not None else 'not known'}"
    yield f"  {document['seconds_reason']}"
    memory = document["memory"]
    if memory:
        yield f"graphics memory: {size(memory['total_bytes'])}, most of it in the {memory['peak_phase']} phase"
    disk = document["disk"]
    shown = [
        (kind, disk[kind]) for kind in ("models", "states", "latents", "text", "samples", "events") if kind in disk
    ]
    yield f"disk: {size(disk['total'])}" + ("" if disk["one_model"] is not None else ", without the models")
    for kind, num_bytes in shown:
        many = f" ({disk['num_models']} of {size(disk['one_model'])})" if kind == "models" and num_bytes else ""
        if num_bytes is None or num_bytes:
            yield f"  {kind:8} {'not known' if num_bytes is None else size(num_bytes)}{many}"

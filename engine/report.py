"""A plan as the JSON document of `plan --json`, and as a table for people. Torch-free."""

import sys
from collections.abc import Sequence
from typing import Any

from engine.checkpoint import epoch_interval
from engine.display import size
from engine.errors import Problem, safe_text
from engine.plan import Plan
from engine.tokens import capacity, count_tokens, load_tokenizer, truncated_tokens

# Bytes of a saved model by family and format, where the file itself can't be asked: reference sizes of fp32 weights.
BYTES_PER_LATENT_PIXEL = 4 * 2 / 64  # Four float16 channels, an eighth of each side.


def plan_report(plan: Plan, *, problems: Sequence[Problem]) -> dict[str, Any]:
    """Return the plan as plain data, with the keys that docs/architecture.md promises."""
    return {
        "images": _images(plan),
        "buckets": [
            {"size": list(bucket.size), "images": bucket.images, "batches": bucket.batches} for bucket in plan.buckets
        ],
        "steps": plan.steps,
        "epochs": plan.epochs,
        "batches_per_epoch": plan.batches_per_epoch,
        "steps_per_epoch": plan.steps_per_epoch,
        "seconds": None,
        "memory": None,
        "disk": disk_bytes(plan),
        "problems": [problem.as_json() for problem in problems],
    }


def _images(plan: Plan) -> list[dict[str, Any]]:
    chosen = plan.settings.model
    tokenizer = load_tokenizer(v2=bool(chosen.v2))
    shown = [plan.caption(row, 0, epoch=1, step=0) for row in range(plan.num_images)]
    tokens = count_tokens(shown, tokenizer, weighted=chosen.weighted_captions)
    rows = []
    for row, (caption, count) in enumerate(zip(shown, tokens, strict=True)):
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
                "tokens": min(count, capacity(chosen.max_token_length)),
                "truncated_tokens": truncated_tokens(count, chosen.max_token_length),
                "repeats": plan.subset_of(row).num_repeats,
            }
        )
    return rows


def num_saves(plan: Plan) -> int:
    """Return how many models lie in the run folder at the end, the last one included."""
    saving = plan.settings.saving
    count = 1
    every = epoch_interval(saving, plan.epochs)
    if every:
        by_epochs = (plan.epochs - 1) // every
        count += min(by_epochs, saving.save_last_n_epochs) if saving.save_last_n_epochs else by_epochs
    if saving.save_every_n_steps:
        by_steps = plan.steps // saving.save_every_n_steps
        if saving.save_last_n_steps:
            by_steps = min(by_steps, -(-saving.save_last_n_steps // saving.save_every_n_steps) + 1)
        count += by_steps
    return count


def disk_bytes(plan: Plan) -> dict[str, int | None]:
    """Return what the run takes on disk by kind; None where it can't be known without loading the model."""
    area = sum(bucket.images * bucket.size[0] * bucket.size[1] for bucket in plan.buckets)
    flips = 2 if any(subset.augment.flip_aug for subset in plan.config.subsets) else 1
    to_disk = plan.settings.memory.cache_latents_to_disk
    return {
        "latents": round(area * BYTES_PER_LATENT_PIXEL * flips) if to_disk else 0,
        "models": None,
        "num_models": num_saves(plan),
        "events": plan.steps * 400,
    }


def print_plan(document: dict[str, Any]) -> None:
    """Print what matters of a plan to stderr."""
    out = sys.stderr.write
    images = document["images"]
    out(f"{len(images)} pictures, {document['batches_per_epoch']} batches in an epoch\n")
    out(f"{document['steps']} steps, {document['epochs']} epochs\n")
    for bucket in document["buckets"]:
        width, height = bucket["size"]
        out(f"  {width:5}x{height:<5} {bucket['images']:7} pictures {bucket['batches']:6} batches\n")
    worst = sorted(images, key=lambda image: -image["cut_fraction"])[:5]
    if worst and worst[0]["cut_fraction"] > 0.001:
        out("most cut away:\n")
        for image in worst:
            out(f"  {image['cut_fraction']:6.1%} of {safe_text(image['key'])}\n")
    losers = [image for image in images if image["truncated_tokens"]]
    if losers:
        lost = sum(image["truncated_tokens"] for image in losers)
        out(f"{len(losers)} captions lose {lost} tokens; max_token_length=150 or 225 keeps more\n")
    if document["disk"]["latents"]:
        out(f"latents take {size(document['disk']['latents'])} on disk\n")
    for problem in document["problems"]:
        out(f"{problem['severity']}: {problem['where']}: {problem['message']}\n")

"""Whole runs in this process: what they tell and leave, and that they repeat."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.cli import main
from engine.control import Control
from engine.parts import prepare
from engine.plan import make_plan
from engine.settings_io import load_run
from engine.telling import Teller
from engine.train import _train_batch

from .run_support import (
    BATCHES,
    GOLDEN,
    base_run,
    go,
    loaded_run,
    same,
    uncached_run,
    write_pictures,
)


@pytest.fixture(scope="module")
def base():
    return base_run()


@pytest.fixture(scope="module")
def uncached():
    return uncached_run()


def test_the_golden_data_set_trains_the_golden_model(tmp_path):
    """Fourteen real pictures with metadata, captions shuffled and dropped, pictures mirrored."""
    config = GOLDEN / "dataset" / "dataset_config_bs2_shuffle.toml"

    run = go(tmp_path, model=GOLDEN / "tiny_sd1", dataset_config=str(config), max_train_steps=4)

    assert run.code == 0
    assert run.of("started")[0].images == 14
    assert run.of("started")[0].steps_per_epoch == 9
    assert run.of("finished")[0].step == len(run.steps) == 4
    assert all(0.3 < loss < 2 for loss in run.losses)
    assert main(["verify", str(run.folder / "last.safetensors")]) == 0


def test_a_run_tells_what_the_contract_promises(base):
    """Kinds and fields of events.jsonl, in order, steps without a gap."""
    kinds = [event.kind for event in base.events]
    first = base.of("started")[0]

    assert base.code == 0
    assert kinds[-2:] == ["saved", "finished"]
    assert set(kinds) == {"progress", "warning", "started", "step", "saved", "finished"}
    assert {event.code for event in base.of("warning")} == {"no-caption", "empty-caption"}
    assert [step.step for step in base.steps] == list(range(1, 7))
    assert all(a.time <= b.time for a, b in pairwise(base.events))
    assert (first.steps, first.epochs, first.steps_per_epoch, first.images) == (6, 2, BATCHES, 7)
    assert (first.seed, first.device, first.family, first.trains) == (42, "cpu", "sd1", ("unet",))
    assert first.resumed_from is None
    assert {event.stage for event in base.of("progress")} == {"scan", "latents", "text"}
    for step in base.steps:
        assert step.loss == pytest.approx(sum(step.image_losses) / step.images)
        assert len(step.timesteps) == len(step.image_losses) == step.images
        assert (step.learning_rate, step.epoch) == (1e-3, 1 + (step.step - 1) // BATCHES)
        assert step.seconds > step.wait_seconds >= 0
        assert step.grad_norm > 0
        assert step.peak_memory_bytes > 1e8
        assert step.bucket in {(64, 64), (128, 64), (64, 128)}
    assert base.of("finished")[0].loss == pytest.approx(sum(base.losses) / 6)
    assert base.of("finished")[0].path == base.of("saved")[0].path == "last.safetensors"
    for line in (base.folder / "events.jsonl").read_text().splitlines():
        assert {"kind", "time", "step"} <= json.loads(line).keys()


def test_a_run_leaves_the_files_of_the_contract(base):
    """Nothing else, nothing temporary; what libraries say is in log.txt."""
    names = {path.name for path in base.folder.iterdir()}

    assert names == {
        "run.toml", "dataset.toml", "events.jsonl", "metrics.bin", "log.txt", "last.safetensors", "requests", "lock"
    }  # fmt: skip
    assert "AutoencoderKL" in (base.folder / "log.txt").read_text()


def test_nothing_of_a_machine_is_in_the_model_file(base):
    """Metadata names no path, user or host."""
    header = (base.folder / "last.safetensors").read_bytes()[:200_000].split(b"}}", 1)[0]

    assert str(base.folder.parents[1]).encode() not in header
    assert b"sdtui/" in header


def test_the_same_seed_gives_the_same_run_bit_for_bit(base, tmp_path):
    """And another seed another one."""
    again, other = go(tmp_path / "a", max_train_steps=6), go(tmp_path / "b", max_train_steps=6, seed=43)

    assert again.losses == base.losses
    assert same(again.weights(), base.weights())
    assert other.losses != base.losses
    assert not same(other.weights(), base.weights())


@pytest.mark.parametrize("workers", [0, 1, 8])
def test_loading_threads_change_nothing(uncached, tmp_path, workers):
    """Order, augmentation and noise depend on no thread."""
    run = go(tmp_path, max_train_steps=6, cache_latents=False, max_data_loader_n_workers=workers)

    assert run.losses == uncached.losses
    assert same(run.weights(), uncached.weights())


def test_the_run_folder_runs_again_tensor_for_tensor(tmp_path):
    """run.toml and dataset.toml of a run folder say all there is to say."""
    subset = {"shuffle_caption": True, "caption_dropout_rate": 0.3, "flip_aug": True, "caption_prefix": "x"}
    run = go(tmp_path, max_train_steps=3, subset=subset, min_snr_gamma=5.0, lr_scheduler="cosine", clip_skip=2)

    code = main(["train", str(run.folder / "run.toml"), "--set", f"output_dir={tmp_path / 'again'}"])

    assert code == 0
    assert same(run.weights(), load_file(tmp_path / "again" / "last.safetensors"))
    blank = dict.fromkeys(["output_dir", "dataset_config", "pretrained_model_name_or_path"], "")
    first, second = (load_run(folder / "run.toml").settings for folder in (run.folder, tmp_path / "again"))
    assert first.replace(**blank) == second.replace(**blank)


def test_cached_latents_give_the_losses_of_fresh_ones(base, uncached, tmp_path):
    """Without mixed precision they are kept in float32."""
    on_disk = go(tmp_path / "a", max_train_steps=6, cache_latents_to_disk=True, cache_dir=str(tmp_path / "cache"))
    from_disk = go(tmp_path / "b", max_train_steps=6, cache_latents_to_disk=True, cache_dir=str(tmp_path / "cache"))

    assert base.losses[0] == pytest.approx(uncached.losses[0], rel=1e-6)
    assert base.losses == pytest.approx(uncached.losses, rel=1e-3)  # AdamW makes a whole step of any rounding error.
    assert base.losses == on_disk.losses
    assert from_disk.losses == on_disk.losses
    assert not [event for event in from_disk.of("progress") if event.stage == "latents" and event.total]


def test_cached_text_gives_the_losses_of_fresh_text(base, tmp_path):
    """Captions that change from step to step are encoded there; a warmup that is over at once changes none."""
    fresh = go(tmp_path, max_train_steps=6, subset={"token_warmup_step": 1, "token_warmup_min": 100})

    assert not [event for event in fresh.of("progress") if event.stage == "text"]
    assert base.losses[0] == pytest.approx(fresh.losses[0], rel=1e-6)
    assert base.losses == pytest.approx(fresh.losses, rel=1e-3)


class InDouble(torch.nn.Module):
    """The denoiser in float64, since rounding in float32 hides what is looked for."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser = denoiser.double()

    def forward(self, noisy, timesteps, conditioning):
        return self.denoiser(noisy.double(), timesteps, conditioning.to(noisy.device, torch.float64))


def gradients(folder, pictures, **values):
    """Return the gradients of the first window, and its batches' numbers of images."""
    loaded = loaded_run(folder, dataset_config=None, train_data_dir=str(pictures), resolution=64, **values)
    plan = make_plan(loaded.settings, cache_dir=folder)
    parts = prepare(loaded.settings, plan, folder=folder, cache_dir=folder, tell=Teller([Control()]))
    parts = replace(parts, denoiser=InDouble(parts.denoiser))
    window = parts.source.load(0)
    images = [batch.images for batch in window]
    for batch in window:
        _train_batch(parts, batch, share=1 / sum(images))
    return torch.cat([parameter.grad.flatten() for parameter in parts.denoiser.parameters()]), images


def test_a_short_batch_weighs_by_its_images(tmp_path):
    """A window of 2 + 1 images has the gradient of one batch of 3, not the mean of two batches' gradients."""
    pictures = write_pictures(tmp_path / "p")
    for path in pictures.iterdir():
        if path.stem not in {"0", "1", "5"}:
            path.unlink()

    split, parts = gradients(tmp_path / "a", pictures, train_batch_size=2, gradient_accumulation_steps=2)
    whole, one = gradients(tmp_path / "b", pictures, train_batch_size=3)

    assert (sorted(parts), one) == ([1, 2], [3])
    assert (split - whole).norm() / whole.norm() < 1e-6


def test_accumulation_takes_several_batches_in_a_step(tmp_path):
    """A step never spans two epochs: of four batches in an epoch three make one step and one the next."""
    run = go(tmp_path, max_train_steps=4, gradient_accumulation_steps=3)

    assert sum(step.images for step in run.steps[:2]) == sum(step.images for step in run.steps[2:]) == 7
    assert [step.epoch for step in run.steps] == [1, 1, 2, 2]
    assert run.of("started")[0].steps_per_epoch == 2


def test_epochs_win_over_steps(tmp_path):
    """max_train_epochs decides the length."""
    run = go(tmp_path, max_train_epochs=1, max_train_steps=100)

    assert len(run.steps) == BATCHES


def test_two_runs_of_different_precision_follow_each_other(tmp_path):
    """accelerate keeps its precision for the whole process; ours may change from run to run."""
    assert go(tmp_path / "a", mixed_precision="bf16", max_train_steps=1).code == 0
    assert go(tmp_path / "b", mixed_precision="no", max_train_steps=1).code == 0


def test_metrics_hold_one_row_a_step(base):
    """metrics.bin is numpy's to read."""
    from engine.events import METRIC_FIELDS

    rows = np.fromfile(base.folder / "metrics.bin", np.dtype(list(METRIC_FIELDS)))

    assert rows["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert rows["loss"].tolist() == pytest.approx(base.losses)

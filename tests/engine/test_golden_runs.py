"""Whole training runs of sd-scripts, replayed step by step with our functions from its latents and noise."""

import argparse
import json
import math
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.curves import learning_rate_at
from engine.denoiser import Conditioning, Denoiser
from engine.diffusion import add_noise, make_schedule, target_for
from engine.flags import add_setting_flags, settings_from_flags
from engine.losses import loss_per_image
from engine.models.keys import normalised_text
from engine.models.sd import StableDiffusion
from engine.optim import build_optimizer, set_learning_rates
from engine.text import encode, token_tensors

GOLDEN = Path(__file__).parents[1] / "golden"
RUNS = json.loads((GOLDEN / "loss_trajectory.json").read_text())["runs"]
PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@cache
def tensors():
    return load_file(GOLDEN / "loss_trajectory.safetensors")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of the two tiny models: SD 2's has the same tensors, its projections as matrices, its own configs."""
    folder = tmp_path_factory.mktemp("models") / "tiny_sd2"
    shutil.copytree(GOLDEN / "tiny_sd1", folder)
    path = folder / "unet" / f"{PARTS['unet']}.safetensors"
    loaded = load_file(path)
    matrices = {
        key: value.flatten(1) for key, value in loaded.items() if key.endswith(("proj_in.weight", "proj_out.weight"))
    }
    save_file({**loaded, **matrices}, path)
    shutil.copytree(GOLDEN / "tiny_sd2_configs", folder, dirs_exist_ok=True)
    return {"tiny_sd1": GOLDEN / "tiny_sd1", "tiny_sd2": folder}


class Replay:
    """A run set up by our own reading of its command line."""

    def __init__(self, run, model_folder):
        parser = argparse.ArgumentParser()
        add_setting_flags(parser)
        self.settings = settings_from_flags(parser, run["argv"]).settings
        settings = self.settings
        self.model = StableDiffusion.load(
            str(model_folder), v2=settings.model.v2, v_parameterization=settings.model.v_parameterization
        )
        is_text_trained = settings.training.train_text_encoder
        self.model.text_encoder.requires_grad_(requires_grad=is_text_trained)
        self.denoiser = Denoiser(
            self.model.unet.train(), self.model.text_encoder if is_text_trained else None, settings.model.clip_skip
        )
        self.optimizer = build_optimizer(self.denoiser.parts(), settings.optimizer)
        self.schedule = make_schedule(
            self.model.prediction_type, rescale_betas_zero_snr=settings.loss.zero_terminal_snr
        )
        # sd-scripts reads the SNR before the rescale: its fault, needed to replay it.
        self.schedule = replace(self.schedule, snr_T=make_schedule("epsilon").snr_T)

    def conditioning(self, captions):
        model = self.settings.model
        ids, weights = token_tensors(
            captions, self.model.tokenizer, model.max_token_length, weighted=model.weighted_captions
        )
        if self.denoiser.text_encoder is not None:
            return ids, Conditioning(ids_BN77=ids, weights_BN77=weights)
        with torch.no_grad():
            states = encode(self.model.text_encoder, ids, model.clip_skip, weights_BN77=weights)
        return ids, Conditioning(states_BLD=states)

    def step(self, index, latents, noise, timesteps, conditioning):
        """Take one optimizer step and return its loss and gradient norm."""
        optimizer = self.settings.optimizer
        noisy = add_noise(latents, noise, timesteps, self.schedule)
        prediction = self.denoiser(noisy, timesteps, conditioning)
        target = target_for(latents, noise, timesteps, self.schedule)
        losses = loss_per_image(prediction, target, timesteps, self.settings.loss, self.schedule)
        loss = losses.sum() / len(losses)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), optimizer.max_grad_norm or math.inf)
        set_learning_rates(self.optimizer, learning_rate_at(index, self.settings.training.max_train_steps, optimizer))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return noisy, loss.item(), norm.item()


def assert_weights(expected, state):
    for key, (_, norm) in expected.items():
        assert norm == pytest.approx(state[key].double().norm().item(), rel=1e-3, abs=1e-9), key


@pytest.mark.parametrize("name", RUNS)
def test_run_gives_the_same_losses_gradients_and_weights(name, models):
    """Losses and gradient norms to 1e-5 at every step; weights by their norm, since AdamW makes +-lr of noise."""
    run = RUNS[name]
    replay = Replay(run, models[run["model"]])
    losses, norms = [], []

    for index, step in enumerate(run["steps"]):
        golden = {key: tensors()[digest] for key, digest in step["tensors"].items()}
        ids, conditioning = replay.conditioning(step["captions"])
        assert torch.equal(golden["input_ids"].view(ids.shape), ids)
        if conditioning.states_BLD is not None and "encoder_hidden_states" in golden:  # Kept for the first steps only.
            torch.testing.assert_close(conditioning.states_BLD, golden["encoder_hidden_states"], rtol=1e-5, atol=1e-5)
        timesteps = torch.tensor(step["timesteps"])
        noisy, loss, norm = replay.step(index, golden["latents"], golden["noise"], timesteps, conditioning)
        if "noisy_latents" in golden:
            torch.testing.assert_close(noisy, golden["noisy_latents"], rtol=1e-5, atol=1e-6)
        losses.append(loss)
        norms.append(norm)

    assert [step["loss"] for step in run["steps"]] == pytest.approx(losses, rel=1e-5)
    assert [step["grad_norm"] for step in run["steps"]] == pytest.approx(norms, rel=1e-5)
    assert_weights(run["unet_final"], replay.model.unet.state_dict())
    if run["te_final"]:
        assert_weights(normalised_text(run["te_final"]), normalised_text(replay.model.text_encoder.state_dict()))


def test_the_right_snr_moves_the_losses_of_the_zero_snr_run(models):
    """What sd-scripts' fault costs: with the SNR of the rescaled schedule the same step weighs otherwise."""
    run = RUNS["bs2_cached_v2_vpred_ztsnr"]
    replay = Replay(run, models[run["model"]])
    right = make_schedule("v_prediction", rescale_betas_zero_snr=True)
    timesteps = torch.tensor([500, 900])
    ones, zeros = torch.ones(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)

    theirs, ours = (
        loss_per_image(ones, zeros, timesteps, replay.settings.loss, schedule) for schedule in (replay.schedule, right)
    )

    assert pytest.approx(theirs.tolist(), rel=1e-3) == [0.27633, 0.01415]
    assert pytest.approx(ours.tolist(), rel=1e-3) == [0.24102, 0.00296]

"""Probes decide right on models of both kinds, say when they can't, measure a real step, and keep what they found."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.nn import functional

from engine import probing
from engine.cli import main
from engine.diffusion import add_noise, make_schedule, target_for
from engine.plan import make_plan
from engine.probe_results import ProbeResult
from engine.probes import compare_targets, largest_bucket, measure_vae
from engine.rules.probed import RULES, ProbedSubject
from engine.rules.rule import applied
from engine.settings import Settings
from sdtui.demo import write_project

from .run_support import loaded_run, pictures, tiny_model, write_run


def smooth_latents(count, seed):
    """Return latents as smooth as pictures' are, (count, 4, 8, 8) with a standard deviation of about 1."""
    coarse = torch.randn(count, 4, 2, 2, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, size=8, mode="bilinear") * 1.5


@cache
def trained(prediction_type, steps):
    """Train a small UNet on smooth latents, a second or two."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        norm_num_groups=8,
    )
    optimizer = torch.optim.AdamW(unet.parameters(), lr=3e-3)
    schedule = make_schedule(prediction_type)
    generator = torch.Generator().manual_seed(1)
    latents = smooth_latents(64, seed=2)
    for _ in range(steps):
        rows = torch.randint(0, 64, (16,), generator=generator)
        timesteps = torch.randint(0, 1000, (16,), generator=generator)
        noise = torch.randn((16, 4, 8, 8), generator=generator)
        noisy = add_noise(latents[rows], noise, timesteps, schedule)
        prediction = unet(noisy, timesteps, torch.zeros(16, 4, 16)).sample
        functional.mse_loss(prediction, target_for(latents[rows], noise, timesteps, schedule)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return unet.eval()


def probed(unet, latents=None):
    latents = smooth_latents(4, seed=3) if latents is None else latents
    return compare_targets(lambda *given: unet(*given).sample, latents, torch.zeros(len(latents), 4, 16))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_trained_model_is_told_by_its_losses(prediction_type):
    """On latents that it has not seen."""
    result = probed(trained(prediction_type, 40))

    assert result.verdict == prediction_type, result
    assert result.evidence["explained"][prediction_type] > 0.15
    assert result.evidence["agreement"] >= 0.75
    assert set(result.evidence["by_timestep"]) == {"300", "500", "700", "900"}
    json.dumps(result.as_json())


def test_an_untrained_model_is_not_decided():
    """It explains neither target, whatever the latents' power."""
    for scale in (0.3, 1.0, 2.0):
        result = probed(trained("epsilon", 0), smooth_latents(4, seed=3) * scale)
        assert result.verdict == "undecided"
        assert "not decided" in result.message


def test_a_vae_that_overflows_is_found_out_without_a_card():
    """Run in float32, its activations are compared with fp16's range; the module is named."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(tiny_model() / "vae")
    images = torch.zeros((1, 64, 64, 3), dtype=torch.uint8)
    assert measure_vae(vae, images).verdict == "safe"

    vae.encoder.mid_block.resnets[0].conv2.weight.data *= 1e7
    result = measure_vae(vae, images)
    assert result.verdict == "overflows"
    assert "encoder.mid_block" in result.evidence["module"]
    assert not vae.encoder.conv_in._forward_hooks


def test_the_starter_model_by_command(tmp_path, capsys, monkeypatch):
    """It was trained to predict noise, and says so; asked again, nothing is loaded."""
    write_project(tmp_path)
    path = tmp_path / "run.toml"
    words = ["probe", str(path), "prediction", "vae", "--json", "--set", f"cache_dir={tmp_path / 'cache'}"]

    assert main(words) == 0
    first = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(probing, "_measured", None)
    assert main(words) == 0
    again = json.loads(capsys.readouterr().out)

    assert {result["name"]: result["verdict"] for result in first} == {"prediction": "epsilon", "vae": "safe"}
    assert sorted(again, key=str) == sorted(first, key=str)
    assert main(["probe", str(path), "colour"]) == 2

    main(["check", *words[1:2], *words[-3:], "--set", "v_parameterization=true"])
    found = {problem["code"]: problem for problem in json.loads(capsys.readouterr().out)}
    assert found["probed-prediction"]["set"] == {"v_parameterization": False}


def test_one_step_is_measured_and_gives_the_plan_its_time(tmp_path, capsys):
    """A real step with the largest bucket; no run folder is made and no model saved."""
    path = write_run(tmp_path, pictures=pictures(), model=tiny_model(), max_train_steps=1000)

    assert main(["probe", str(path), "step", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    main(["plan", str(path), "--json"])
    plan = json.loads(capsys.readouterr().out)

    assert result["verdict"] == "works"
    assert result["evidence"]["images"] == 2
    assert len(result["evidence"]["loss"]) == 3
    assert plan["seconds"] > 0
    assert not (tmp_path / "out").exists()


def test_a_step_that_fails_is_a_result(tmp_path, capsys):
    """A rate so high that the next loss is infinite."""
    path = write_run(tmp_path, pictures=pictures(), model=tiny_model())

    assert main(["probe", str(path), "step", "--json", "--set", "learning_rate=10"]) == 0

    (result,) = json.loads(capsys.readouterr().out)
    assert result["verdict"] == "not-finite"
    assert "lower learning_rate" in result["message"]


def test_the_largest_bucket_is_the_one_with_most_pixels_in_a_batch(tmp_path):
    """Not the one of the largest pictures, if it holds only few."""
    loaded = loaded_run(tmp_path)
    plan = make_plan(loaded.settings, cache_dir=tmp_path / "cache")

    small = largest_bucket(loaded.settings, plan)

    assert [(bucket.size, bucket.images) for bucket in small.buckets] == [((128, 64), 2)]
    assert not small.settings.memory.cache_latents_to_disk


def test_a_model_on_a_hub_must_be_fetched_first(tmp_path, capsys):
    """Said in a sentence."""
    path = write_run(tmp_path, pictures=pictures(), model="someone/model")

    assert main(["probe", str(path)]) == 2
    assert "fetch it" in capsys.readouterr().err


PREDICTS_V = ProbeResult(name="prediction", verdict="v_prediction", message="m")
OVERFLOWS = ProbeResult(name="vae", verdict="overflows", message="m")
TOO_LARGE = ProbeResult(name="step", verdict="out-of-memory", message="m")
FP16 = {"mixed_precision": "fp16"}
CASES = {
    "probed-prediction": ({}, PREDICTS_V, {"v_parameterization": True}, PREDICTS_V),
    "probed-vae": (FP16, OVERFLOWS, {**FP16, "no_half_vae": True}, OVERFLOWS),
    "probed-step": ({}, TOO_LARGE, {}, replace(TOO_LARGE, verdict="works")),
}


@pytest.mark.parametrize("code", [rule.code for rule in RULES])
def test_what_was_measured_becomes_a_finding(code):
    """Where the settings are at odds with it, with the change that mends them."""
    values, result, good, other = CASES[code]
    subject = ProbedSubject(settings=Settings().replace(**values), results=[result])

    (found,) = [problem for problem in applied(RULES, subject) if problem.code == code]
    silent = ProbedSubject(settings=Settings().replace(**good), results=[other])
    assert code not in {problem.code for problem in applied(RULES, silent)}
    mended = replace(subject, settings=Settings().replace(**{**values, **dict(found.values)}))
    assert not found.values or not applied(RULES, mended)

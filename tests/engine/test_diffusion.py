"""Schedule, noise and targets against sd-scripts' numbers, and the promises of keyed draws."""

import json
import random
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.diffusion import (
    add_noise,
    draw_for_batch,
    draw_input_noise,
    draw_noise,
    draw_timesteps,
    make_schedule,
    snr,
    target_for,
    velocity,
    zero_terminal_snr,
)
from engine.settings import LossSettings

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "loss_functions.json").read_text())["noise_cases"]


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "loss_functions.safetensors")


def assert_close(expected, actual, rtol=1e-6):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * float(expected.abs().max()) * 1e-1)


def test_schedule_tables_equal_the_golden_vectors_bit_for_bit(golden):
    schedule = make_schedule("epsilon")

    assert torch.equal(golden["betas"], schedule.betas_T)
    assert torch.equal(golden["alphas_cumprod"], schedule.alphas_cumprod_T)


def test_snr_equals_the_golden_vector(golden):
    torch.testing.assert_close(make_schedule("epsilon").snr_T, golden["all_snr"], rtol=1e-6, atol=0)


def test_snr_is_signal_over_noise():
    torch.testing.assert_close(snr(torch.tensor([0.5, 0.9, 0.0])), torch.tensor([1.0, 9.0, 0.0]))


def test_zero_terminal_snr_keeps_the_first_step_and_ends_in_pure_noise():
    schedule = make_schedule("v_prediction", rescale_betas_zero_snr=True)
    expected = [0.99915, 0.998233, 0.989794, 0.886761, 0.652457, 0.241019, 0.0327991, 0.00296039, 0.0]

    actual = schedule.alphas_cumprod_T[[0, 1, 10, 100, 250, 500, 750, 900, 999]]

    torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-5, atol=1e-7)
    assert schedule.snr_T[-1] == 0
    assert torch.isfinite(schedule.snr_T).all()


def test_zero_terminal_snr_is_what_diffusers_samplers_use():
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    )

    torch.testing.assert_close(zero_terminal_snr(make_schedule("epsilon").betas_T), theirs.betas)


def test_snr_table_is_that_of_the_rescaled_schedule():
    schedule = make_schedule("v_prediction", rescale_betas_zero_snr=True)

    torch.testing.assert_close(snr(schedule.alphas_cumprod_T), schedule.snr_T)


def test_add_noise_and_velocity_equal_the_golden_tensors(golden):
    schedule = make_schedule("v_prediction")
    latents, noise, timesteps = (golden[f"add_noise/{name}"] for name in ("x0", "noise", "timesteps"))

    assert_close(golden["add_noise/out"], add_noise(latents, noise, timesteps, schedule))
    assert_close(golden["velocity/out"], velocity(latents, noise, timesteps, schedule))


def test_target_is_the_noise_or_the_velocity():
    latents, noise, timesteps = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2), torch.tensor([3, 900])
    schedule = make_schedule("v_prediction")

    assert target_for(latents, noise, timesteps, make_schedule("epsilon")) is noise
    assert torch.equal(velocity(latents, noise, timesteps, schedule), target_for(latents, noise, timesteps, schedule))


@pytest.mark.parametrize("name", CASES)
def test_draws_replay_sd_scripts_global_generators(golden, name):
    """Seeded alike, the same numbers are drawn in the same order, and the generators end in the same state."""
    case = CASES[name]
    loss = LossSettings(**case["args"])
    latents = golden["noise/latents"]
    generator, rng = torch.Generator().manual_seed(case["seed"]), random.Random(case["seed"])
    means = latents.mean(dim=(2, 3), keepdim=True)

    noise = draw_noise(latents.shape, loss, generator=generator, rng=rng, means_BC11=means)
    timesteps = draw_timesteps(len(latents), loss, generator)
    input_noise = draw_input_noise(noise, loss, generator)
    noisy = add_noise(latents, input_noise, timesteps, make_schedule("epsilon"))

    assert_close(golden[f"noise/{name}/noise"], noise)
    assert torch.equal(golden[f"noise/{name}/timesteps"], timesteps)
    assert_close(golden[f"noise/{name}/noisy"], noisy)
    assert case["torch_rand_after"] == torch.rand(1, generator=generator).item()
    assert case["py_random_after"] == rng.random()


EVERYTHING = LossSettings(
    noise_offset=0.1,
    noise_offset_random_strength=True,
    adaptive_noise_scale=0.2,
    multires_noise_iterations=6,
    ip_noise_gamma=0.1,
)


@pytest.mark.parametrize("loss", [LossSettings(), EVERYTHING], ids=["plain", "everything"])
def test_draws_of_an_image_do_not_depend_on_its_batch(loss):
    latents = torch.randn(4, 4, 8, 12, generator=torch.Generator().manual_seed(0))

    together = draw_for_batch(latents, [7, 3, 11, 0], seed=42, epoch=2, loss=loss)
    alone = draw_for_batch(latents[2:3], [11], seed=42, epoch=2, loss=loss)

    assert torch.equal(together.noise_BCHW[2:3], alone.noise_BCHW)
    assert torch.equal(together.input_noise_BCHW[2:3], alone.input_noise_BCHW)
    assert torch.equal(together.timesteps_B[2:3], alone.timesteps_B)


def test_draws_differ_by_seed_epoch_and_position():
    latents = torch.zeros(1, 4, 8, 8)
    keys = [(42, 0, 0), (43, 0, 0), (42, 1, 0), (42, 0, 1)]

    draws = [draw_for_batch(latents, [p], seed=s, epoch=e, loss=LossSettings()).noise_BCHW for s, e, p in keys]

    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[i + 1 :])


def test_noise_options_leave_timesteps_as_they_were():
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    plain = draw_for_batch(latents, [0, 1, 2], seed=1, epoch=0, loss=LossSettings())
    offset = draw_for_batch(latents, [0, 1, 2], seed=1, epoch=0, loss=EVERYTHING)

    assert torch.equal(plain.timesteps_B, offset.timesteps_B)


def test_draws_leave_the_global_generators_alone():
    torch.manual_seed(0)
    random.seed(0)
    before = torch.get_rng_state(), random.getstate()

    draw_for_batch(torch.zeros(2, 4, 8, 8), [0, 1], seed=1, epoch=0, loss=EVERYTHING)

    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_input_noise_is_the_noise_itself_without_ip_noise_gamma():
    draws = draw_for_batch(torch.zeros(2, 4, 8, 8), [0, 1], seed=1, epoch=0, loss=LossSettings())

    assert draws.input_noise_BCHW is draws.noise_BCHW


def test_multires_noise_has_unit_deviation_for_each_image():
    loss = LossSettings(multires_noise_iterations=10, multires_noise_discount=0.8)

    noise = draw_for_batch(torch.zeros(3, 4, 16, 16), [0, 1, 2], seed=1, epoch=0, loss=loss).noise_BCHW

    torch.testing.assert_close(noise.std(dim=(1, 2, 3)), torch.ones(3))


def test_noise_is_standard_normal():
    noise = draw_for_batch(torch.zeros(8, 4, 64, 64), range(8), seed=1, epoch=0, loss=LossSettings()).noise_BCHW

    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_timesteps_stay_within_their_bounds():
    loss = LossSettings(min_timestep=10, max_timestep=13)

    drawn = draw_timesteps(500, loss, torch.Generator().manual_seed(0))

    assert {10, 11, 12} == set(drawn.tolist())


def test_equal_timestep_bounds_draw_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()

    assert draw_timesteps(2, LossSettings(min_timestep=200, max_timestep=200), generator).tolist() == [200, 200]
    assert torch.equal(before, generator.get_state())


def test_drawing_a_batch_of_four_takes_a_millisecond_or_so():
    """The bound is loose for a busy machine; benchmarks hold the figure."""
    latents = torch.zeros(4, 4, 64, 64)

    def seconds():
        start = time.perf_counter()
        draw_for_batch(latents, [0, 1, 2, 3], seed=1, epoch=0, loss=LossSettings())
        return time.perf_counter() - start

    assert min(seconds() for _ in range(30)) < 5e-3

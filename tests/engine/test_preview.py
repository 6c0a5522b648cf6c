"""Samples drawn with a tiny real model: the same every time, written whole, and leaving training as it was."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from engine.diffusion import make_schedule
from engine.errors import EngineError
from engine.preview import PreviewOptions, draw, sample_images
from engine.prompts import SamplePrompt
from engine.text import encode, token_tensors
from engine.tokens import load_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    return SimpleNamespace(
        unet=UNet2DConditionModel(
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
        ).eval(),
        text_encoder=CLIPTextModel(CLIPTextConfig(vocab_size=49408, **text)).eval(),
        vae=AutoencoderKL(
            block_out_channels=(32, 32, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
        ).eval(),
        tokenizer=load_tokenizer(v2=False),
        latent_scale=0.18215,
    )


@pytest.fixture
def options(tmp_path):
    return {
        "folder": tmp_path / "sample",
        "output_name": "last",
        "seed": 42,
        "sampler": "ddim",
        "schedule": make_schedule("epsilon"),
        "device": CPU,
    }


CAT = SamplePrompt(prompt="a cat", negative_prompt="a dog", width=64, height=96, sample_steps=4, seed=7)
DOG = SamplePrompt(prompt="a dög, (big:1.3)", width=64, height=64, sample_steps=3, sample_sampler="euler_a")


def pixels(image):
    return torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).float()


def test_samples_are_named_by_step_index_and_seed(model, options):
    images = list(sample_images(model, [CAT, DOG], PreviewOptions(**options), step=500))

    expected = ["last_000500_00_7.png", f"last_000500_01_{images[1].seed}.png"]
    assert expected == sorted(path.name for path in (options["folder"]).iterdir())
    assert expected == [image.path.name for image in images]
    assert [image.index for image in images] == [0, 1]
    assert 0 <= images[1].seed < 2**32


def test_samples_of_an_epoch_are_named_after_it(model, options):
    (image,) = sample_images(model, [CAT], PreviewOptions(**options), step=500, epoch=3)

    assert image.path.name == "last_e000003_00_7.png"


def test_a_sample_tells_what_it_shows(model, options):
    (image,) = sample_images(model, [DOG], PreviewOptions(**options), step=12)

    with Image.open(image.path) as opened:
        assert opened.size == (64, 64)
        expected = {
            "prompt": "a dög, (big:1.3)",
            "negative_prompt": "",
            "sampler": "euler_a",
            "sample_steps": "3",
            "scale": "7.5",
            "seed": str(image.seed),
            "step": "12",
        }
        assert expected == opened.text


def test_width_comes_first(model, options):
    assert draw(model, CAT, PreviewOptions(**options), seed=1).size == (64, 96)


def test_samples_repeat_and_do_not_depend_on_the_others(model, options):
    together = [
        image.path.read_bytes() for image in sample_images(model, [CAT, DOG], PreviewOptions(**options), step=1)
    ]
    again = [image.path.read_bytes() for image in sample_images(model, [CAT, DOG], PreviewOptions(**options), step=1)]

    assert together == again


def test_a_prompt_without_a_seed_keeps_its_noise_over_the_steps_but_not_over_runs(model, options):
    first, later = (next(sample_images(model, [DOG], PreviewOptions(**options), step=step)).seed for step in (0, 100))
    other = next(sample_images(model, [DOG], PreviewOptions(**{**options, "seed": 43}), step=0)).seed

    assert first == later
    assert first != other


def test_sampling_leaves_training_as_it_was(model, options):
    model.unet.train()
    before = torch.get_rng_state()
    weights = {name: value.clone() for name, value in model.unet.state_dict().items()}

    next(sample_images(model, [DOG, CAT], PreviewOptions(**options), step=0))

    assert model.unet.training
    assert not model.text_encoder.training
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(weights[name], value) for name, value in model.unet.state_dict().items())
    assert all(parameter.grad is None for parameter in model.unet.parameters())
    model.unet.eval()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_sample_equals_diffusers_own_pipeline(model, options, prediction_type):
    """Zero terminal SNR too: the pipeline samples exactly at 0 there, ours a hair above."""
    rescaled = prediction_type == "v_prediction"
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=rescaled,
        timestep_spacing="trailing" if rescaled else "leading",
    )
    pipeline = StableDiffusionPipeline(
        vae=model.vae,
        text_encoder=None,
        tokenizer=None,
        unet=model.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    ids, _ = token_tensors(["a dog", "a cat"], model.tokenizer)
    with torch.no_grad():
        negative, positive = encode(model.text_encoder, ids, 2).split(1)
        expected = pipeline(
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            width=64,
            height=96,
            num_inference_steps=4,
            guidance_scale=7.5,
            generator=torch.Generator().manual_seed(7),
        ).images[0]
    schedule = make_schedule(prediction_type, rescale_betas_zero_snr=rescaled)

    actual = draw(model, CAT, PreviewOptions(**{**options, "schedule": schedule, "clip_skip": 2}), seed=7)

    assert (pixels(expected) - pixels(actual)).abs().max() <= 1


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a fox"},
        {"negative_prompt": "a fox"},
        {"scale": 2.0},
        {"sample_sampler": "euler"},
        {"sample_steps": 5},
    ],
)
def test_every_part_of_a_prompt_has_its_effect(model, options, change):
    values = {name: getattr(CAT, name) for name in CAT.__slots__}

    changed = draw(model, SamplePrompt(**{**values, **change}), PreviewOptions(**options), seed=7)

    assert not torch.equal(pixels(draw(model, CAT, PreviewOptions(**options), seed=7)), pixels(changed))


@pytest.mark.parametrize(
    "change", [{"clip_skip": 2}, {"max_token_length": 225}, {"weighted_captions": True}, {"autocast": torch.bfloat16}]
)
def test_text_settings_of_the_run_apply_to_samples(model, options, change):
    prompt = SamplePrompt(prompt="a (cat:1.5)", width=64, height=64, sample_steps=4)

    plain = draw(model, prompt, PreviewOptions(**options), seed=7)
    changed = draw(model, prompt, PreviewOptions(**{**options, **change}), seed=7)

    assert not torch.equal(pixels(plain), pixels(changed))


def test_a_scale_of_one_needs_no_negative_prompt(model, options):
    values = {name: getattr(CAT, name) for name in CAT.__slots__}

    unguided = [
        draw(
            model,
            SamplePrompt(**{**values, "scale": 1.0, "negative_prompt": negative}),
            PreviewOptions(**options),
            seed=7,
        )
        for negative in ("a dog", "")
    ]

    assert torch.equal(pixels(unguided[0]), pixels(unguided[1]))


def test_a_model_gone_wrong_draws_black_and_says_so(model, options, caplog):
    with torch.no_grad():
        bias = model.unet.conv_out.bias.clone()
        model.unet.conv_out.bias.fill_(float("nan"))

    image = draw(model, CAT, PreviewOptions(**options), seed=7)
    with torch.no_grad():
        model.unet.conv_out.bias.copy_(bias)

    assert pixels(image).max() == 0
    assert "'a cat' is not finite" in caplog.text


def test_an_unwritable_picture_is_named(model, options):
    (options["folder"] / "last_000000_00_7.png").mkdir(parents=True)

    with pytest.raises(EngineError, match=r"last_000000_00_7.png can't be written"):
        list(sample_images(model, [CAT], PreviewOptions(**options), step=0))

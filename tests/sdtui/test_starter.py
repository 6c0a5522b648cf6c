"""The starter project: drawings that never change, and a small model that is a true SD 1.x."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from engine.rng import python_rng
from engine.tokens import load_tokenizer, token_ids
from sdtui.starter import draw, model_folder, networks, write_pictures

SQUARE = (128, 128)


def _pixels(drawings):
    from sdtui.starter.build import pixels

    return pixels([drawing.picture for drawing in drawings])


def _drawings(draw_one, count=8):
    return [draw_one(python_rng("test", index), SQUARE) for index in range(count)]


@pytest.fixture(scope="module")
def vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(model_folder() / "vae", torch_dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(model_folder() / "unet", torch_dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def text_encoder():
    from transformers import CLIPTextModel

    return CLIPTextModel.from_pretrained(model_folder() / "text_encoder", dtype=torch.float32).eval()


def test_pictures_are_the_same_on_every_call(tmp_path):
    """The demo's figures can be repeated only on the same pictures."""
    write_pictures(tmp_path / "first", 12)
    write_pictures(tmp_path / "second", 12)

    first, second = (sorted((tmp_path / name).iterdir()) for name in ("first", "second"))
    assert [path.name for path in first] == [path.name for path in second]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_each_picture_has_its_caption_and_several_shapes_and_formats_occur(tmp_path):
    """The demo is to exercise buckets and file formats, on pictures described in plain words."""
    write_pictures(tmp_path, 40)

    pictures = [path for path in tmp_path.iterdir() if path.suffix != ".caption"]
    assert len(pictures) == 40
    assert {path.suffix for path in pictures} == {".png", ".jpg", ".webp"}
    sizes = set()
    for path in pictures:
        words = path.with_suffix(".caption").read_text(encoding="utf-8").split()
        assert words[2] == draw.CONCEPT
        assert {words[1], words[5]} < set(draw.COLOURS)
        with Image.open(path) as picture:
            sizes.add(picture.size)
    ratios = {round(width / height, 1) for width, height in sizes}
    assert min(ratios) < 0.5
    assert max(ratios) > 2


def test_an_existing_folder_keeps_its_other_files(tmp_path):
    """A person may point the demo at a folder in use."""
    (tmp_path / "mine.txt").write_text("mine")

    write_pictures(tmp_path, 1)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["heart_000.caption", "heart_000.png", "mine.txt"]


def test_captions_use_the_right_article():
    """A caption is a sentence that a person would write."""
    captions = {drawing.caption for drawing in _drawings(draw.draw_shape, 60)}

    assert not [caption for caption in captions if " a orange" in f" {caption}" or "an red" in caption]
    assert any("an orange" in caption for caption in captions)


def test_the_plain_shapes_never_show_the_concept():
    """What the demo teaches is to be new to the model."""
    assert draw.CONCEPT not in draw.SHAPES
    assert not [d for d in _drawings(draw.draw_shape, 60) if draw.CONCEPT in d.caption]


def test_importing_the_starter_loads_no_torch():
    """`sdtui demo` writes its project before anything heavy is loaded."""
    code = "import sys, sdtui.starter.draw; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_model_is_small_enough_to_ship():
    """The repository carries it, so it stays under 15 MB."""
    assert sum(path.stat().st_size for path in model_folder().rglob("*")) <= 15_000_000


def test_the_model_is_an_sd1_in_all_but_width():
    """Key maps, head counts and norms of SD 1.x must apply without exception."""
    unet, vae, text, scheduler = (
        json.loads((model_folder() / path).read_text())
        for path in (
            "unet/config.json",
            "vae/config.json",
            "text_encoder/config.json",
            "scheduler/scheduler_config.json",
        )
    )
    assert (unet["layers_per_block"], unet["attention_head_dim"], unet["norm_num_groups"]) == (2, 8, 32)
    assert unet["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert unet["up_block_types"] == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert not unet["use_linear_projection"]
    assert (len(vae["block_out_channels"]), vae["layers_per_block"], vae["norm_num_groups"]) == (4, 2, 32)
    assert (vae["latent_channels"], vae["scaling_factor"]) == (4, 0.18215)
    assert (text["vocab_size"], text["max_position_embeddings"], text["hidden_act"]) == (49408, 77, "quick_gelu")
    assert (scheduler["beta_start"], scheduler["beta_end"]) == (0.00085, 0.012)
    assert (scheduler["beta_schedule"], scheduler["prediction_type"]) == ("scaled_linear", "epsilon")


def test_latents_have_the_spread_that_sd1_tools_expect(vae):
    """With the fixed factor 0.18215 the latents must come out near unit variance."""
    with torch.no_grad():
        latents = vae.encode(_pixels(_drawings(draw.draw_shape, 16))).latent_dist.mean * 0.18215

    assert 0.8 < latents.std().item() < 1.2


@pytest.mark.parametrize(("draw_one", "bound"), [(draw.draw_shape, 0.01), (draw.draw_concept, 0.02)])
def test_the_vae_gives_drawings_back(vae, draw_one, bound):
    """Samples can be no clearer than what the VAE gives back (mean squared error, pixels in [-1, 1])."""
    pixels = _pixels(_drawings(draw_one))
    with torch.no_grad():
        decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)

    assert (decoded - pixels).square().mean().item() < bound


def _noise_loss(vae, unet, text_encoder, drawings):
    from diffusers import DDPMScheduler

    tokenizer = load_tokenizer(v2=False)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        latents = vae.encode(_pixels(drawings)).latent_dist.mean * 0.18215
        states = text_encoder(torch.tensor([token_ids(d.caption, tokenizer)[0] for d in drawings])).last_hidden_state
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.linspace(100, 900, len(drawings)).long()
        noisy = DDPMScheduler.from_config(networks.NOISE_SCHEDULE).add_noise(latents, noise, timesteps)
        return (unet(noisy, timesteps, states).sample - noise).square().mean().item()


def test_the_model_knows_the_shapes_and_not_the_concept(vae, unet, text_encoder):
    """The demo shows learning only if there is something to learn."""
    known = _noise_loss(vae, unet, text_encoder, _drawings(draw.draw_shape))
    unknown = _noise_loss(vae, unet, text_encoder, _drawings(draw.draw_concept))

    assert known < 0.25
    assert unknown > 1.5 * known


def test_the_outer_blocks_of_a_new_vae_change_nothing():
    """They are left out of training on the promise that they are identities when put back."""
    torch.manual_seed(0)
    vae = networks.make_vae().eval()
    pixels = _pixels(_drawings(draw.draw_shape, 1))
    with torch.no_grad():
        whole = vae(pixels).sample
        outer = networks.OuterBlocks(vae)
        without = vae(pixels).sample
        outer.put_back()

    torch.testing.assert_close(without, whole)


def test_scaling_the_latents_keeps_what_is_decoded():
    """The factor is folded into the convolutions round the latents, so pictures stay as they were."""
    torch.manual_seed(0)
    vae = networks.make_vae().eval()
    pixels = _pixels(_drawings(draw.draw_shape, 4))
    with torch.no_grad():
        before = vae.encode(pixels).latent_dist
        decoded = vae.decode(before.mean).sample
        networks.scale_latents(vae, before.mean)
        after = vae.encode(pixels).latent_dist

        torch.testing.assert_close(vae.decode(after.mean).sample, decoded, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.std / after.mean.std(), before.std / before.mean.std(), atol=0.1, rtol=0.5)
    torch.testing.assert_close(after.mean.std(dim=(0, 2, 3)), torch.full((4,), 1 / 0.18215))

"""Masks from alpha channels and from pictures, their numbers and their effect on the loss."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from engine.diffusion import make_schedule
from engine.errors import EngineError, ProblemsError
from engine.losses import loss_per_image
from engine.masks import mask_of
from engine.settings import LossSettings

from .run_support import SIZES, go, write_pictures


def test_masks_multiply_before_a_mean_that_is_not_renormalised():
    """As sd-scripts' apply_masked_loss: masking half away halves the loss of equal errors."""
    target, schedule = torch.zeros(2, 4, 8, 8), make_schedule("epsilon")
    prediction, timesteps = torch.full((2, 4, 8, 8), 2.0), torch.tensor([10, 500])
    masks = torch.ones(2, 1, 8, 8)
    masks[0, :, :4] = 0.0
    masks[1] = 0.25

    losses = loss_per_image(prediction, target, timesteps, LossSettings(), schedule, masks)

    assert losses.tolist() == [2.0, 1.0]


def test_a_mask_is_the_red_channel_averaged_over_each_latent_position():
    """The mean of 8 x 8 pixels, as area interpolation gives it."""
    images = torch.randint(0, 256, (2, 64, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    red = images[..., 0].unsqueeze(1).float() / 255

    masks = mask_of(images)

    assert masks.shape == (2, 1, 8, 16)
    assert torch.allclose(torch.nn.functional.interpolate(red, size=(8, 16), mode="area"), masks, atol=1e-6)


@pytest.fixture
def folder(tmp_path):
    """Pictures of which each has a mask that hides its left half, in its alpha channel and as a file."""
    write_pictures(tmp_path / "pictures")
    (tmp_path / "masks").mkdir()
    for number, (width, height) in enumerate(SIZES):
        path = tmp_path / "pictures" / f"{number}.png"
        shown = np.zeros((height, width), np.uint8)
        shown[:, width // 2 :] = 255
        picture = Image.open(path).convert("RGB")
        Image.merge("RGB", [Image.fromarray(shown)] * 3).save(tmp_path / "masks" / f"{number}.png")
        picture.putalpha(Image.fromarray(shown))
        picture.save(path)
    return tmp_path


def run(folder, name, subset, **values):
    return go(folder / name, pictures=folder / "pictures", max_train_steps=4, subset=subset, **values)


@pytest.mark.parametrize("is_cached", [True, False])
def test_alpha_and_mask_files_of_the_same_shape_train_alike(folder, is_cached):
    """Mirrored pictures have mirrored masks, and caching changes nothing but rounding."""
    masks = str(folder / "masks")
    flips = {"flip_aug": True}
    cached = {"cache_latents": is_cached}

    plain = run(folder, "plain", flips, **cached)
    alpha = run(folder, "alpha", {**flips, "alpha_mask": True}, **cached)
    files = run(folder, "files", {**flips, "conditioning_data_dir": masks}, masked_loss=True, **cached)
    unused = run(folder, "unused", {**flips, "conditioning_data_dir": masks}, **cached)

    assert alpha.losses == files.losses
    assert unused.losses == plain.losses
    # The first step's weights are the same in all: half of each picture is left.
    assert 0.3 < alpha.losses[0] / plain.losses[0] < 0.7
    assert all(math.isfinite(loss) for loss in alpha.losses)


def test_masks_are_kept_on_disk_beside_the_latents_and_found_again(folder):
    """A second run of the same cache trains the same and encodes nothing."""
    values = {"cache_latents_to_disk": True, "cache_dir": str(folder / "cache")}
    subset = {"alpha_mask": True}

    first, second = (run(folder, name, subset, **values) for name in ("first", "second"))

    assert first.losses == second.losses
    assert any((folder / "cache" / "latents").glob("mask-float32*"))
    assert first.of("progress") != []
    assert [event for event in second.of("progress") if event.stage == "latents"] == []


def test_a_missing_mask_is_named(folder):
    (folder / "masks" / "3.png").unlink()

    with pytest.raises(EngineError, match=r"holds no mask for 3\.png; add one of that name"):
        run(folder, "out", {"conditioning_data_dir": str(folder / "masks")}, masked_loss=True)


def test_a_mask_of_another_size_is_named(folder):
    Image.new("RGB", (32, 32)).save(folder / "masks" / "3.png")

    with pytest.raises(EngineError, match=r"3\.png: is 32x32 but"):
        run(folder, "out", {"conditioning_data_dir": str(folder / "masks")}, masked_loss=True)


def test_a_missing_folder_of_masks_is_named(folder):
    with pytest.raises(ProblemsError, match="there is no such folder"):
        run(folder, "out", {"conditioning_data_dir": "nowhere"}, masked_loss=True)

"""What a run saves, draws and logs, and when."""

import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from engine.cli import main

from .run_support import BATCHES, UNET, base_run, go, same, tiny_model


@pytest.fixture(scope="module")
def base():
    return base_run()


def test_models_are_saved_by_epochs_and_steps_and_the_last_few_kept(tmp_path):
    """The names and the keep-last rules of sd-scripts; a replaced model is told and gone."""
    run = go(
        tmp_path,
        max_train_steps=3 * BATCHES,
        output_name="cat",
        save_every_n_epochs=1,
        save_last_n_epochs=1,
        save_every_n_steps=3,
        save_last_n_steps=3,
    )

    saved = [(event.step, event.path, event.removed) for event in run.of("saved")]
    assert saved == [
        (3, "cat-step00000003.safetensors", ()),
        (4, "cat-000001.safetensors", ()),
        (6, "cat-step00000006.safetensors", ()),
        (8, "cat-000002.safetensors", ("cat-000001.safetensors",)),
        (9, "cat-step00000009.safetensors", ("cat-step00000003.safetensors",)),
        (12, "cat-step00000012.safetensors", ("cat-step00000006.safetensors",)),
        (12, "cat.safetensors", ()),
    ]
    on_disk = {path.name for path in run.folder.glob("*.safetensors")}
    assert on_disk == {path for _, path, _ in saved} - {name for _, _, removed in saved for name in removed}
    assert same(run.weights("cat-step00000012.safetensors"), run.weights("cat.safetensors"))


@pytest.fixture(scope="module")
def one_step(tmp_path_factory):
    """A single step, to compare other saves of the same with."""
    return go(tmp_path_factory.mktemp("one"), max_train_steps=1).weights()


@pytest.mark.parametrize("precision", ["float", "fp16", "bf16"])
@pytest.mark.parametrize("kind", ["ckpt", "safetensors", "diffusers", "diffusers_safetensors"])
def test_every_save_opens_again_in_diffusers(tmp_path, one_step, kind, precision):
    """Each format in each precision, offline, with the UNet that was trained."""
    from diffusers import UNet2DConditionModel

    run = go(tmp_path, max_train_steps=1, save_model_as=kind, save_precision=precision)
    path = run.folder / run.of("saved")[0].path

    if kind.startswith("diffusers"):
        unet = UNet2DConditionModel.from_pretrained(path, subfolder="unet", torch_dtype="auto")
    else:
        unet = UNet2DConditionModel.from_single_file(
            str(path), config=str(tiny_model()), subfolder="unet", torch_dtype=None
        )
    dtype = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    trained = one_step[f"{UNET}input_blocks.0.0.weight"]
    assert torch.equal(unet.conv_in.weight.to(dtype), trained.to(dtype))
    assert main(["verify", str(path)]) == 0


def test_a_saved_ckpt_trains_again_with_another_vae(tmp_path, base):
    """A .ckpt comes in; the VAE of another file is used and saved."""
    ckpt = tmp_path / "model.ckpt"
    vae = load_file(tiny_model() / "vae" / "diffusion_pytorch_model.safetensors")
    folder = tmp_path / "vae"
    shutil.copytree(tiny_model() / "vae", folder)
    from safetensors.torch import save_file

    save_file({name: value * 0.9 for name, value in vae.items()}, folder / "diffusion_pytorch_model.safetensors")
    assert main(["convert", str(tiny_model()), str(ckpt)]) == 0

    run = go(tmp_path / "a", model=ckpt, max_train_steps=6)
    other = go(tmp_path / "b", model=ckpt, vae=str(folder), max_train_steps=6)

    # Weights stay mapped where their file has them, and some processors round by a tensor's place in memory.
    assert run.losses[0] == pytest.approx(base.losses[0], rel=1e-6)
    assert run.losses == pytest.approx(base.losses, rel=1e-4)
    assert other.losses != pytest.approx(base.losses, rel=1e-4)
    weights = other.weights()["first_stage_model.encoder.conv_in.weight"]
    torch.testing.assert_close(weights, vae["encoder.conv_in.weight"] * 0.9)


def test_samples_are_drawn_when_they_are_due(tmp_path):
    """Before the first step and by steps, each prompt with its seed; by epochs when that is asked."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat --w 64 --h 64 --s 2 --d 1\na dog --w 64 --h 64 --s 2 --d 2\n")
    values = {"sample_prompts": str(prompts), "max_train_steps": BATCHES}

    by_steps = go(tmp_path / "a", sample_every_n_steps=3, sample_at_first=True, **values)
    by_epochs = go(tmp_path / "b", sample_every_n_steps=3, sample_every_n_epochs=1, **values)

    assert [(event.step, event.index, event.seed) for event in by_steps.of("sampled")] == [
        (0, 0, 1), (0, 1, 2), (3, 0, 1), (3, 1, 2)
    ]  # fmt: skip
    assert [(event.step, event.epoch) for event in by_epochs.of("sampled")] == [(4, 1), (4, 1)]
    for event in by_steps.of("sampled"):
        with Image.open(by_steps.folder / event.path) as image:
            assert image.size == (64, 64)
            assert event.prompt in str(image.info)
    assert by_steps.losses == by_epochs.losses


def test_tensorboard_gets_loss_and_rate(tmp_path):
    """Under sd-scripts' names, one value a step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = go(tmp_path, max_train_steps=BATCHES, logging_dir=str(tmp_path / "logs"), log_prefix="x-")

    (log,) = (tmp_path / "logs").glob("x-*/finetuning")
    events = EventAccumulator(str(log)).Reload()
    assert [scalar.value for scalar in events.Scalars("loss")] == pytest.approx(run.losses)
    assert [scalar.step for scalar in events.Scalars("lr/unet")] == [1, 2, 3, 4]
    assert len(events.Scalars("loss/epoch")) == 1


def test_training_leaves_the_source_model_alone(tmp_path):
    """Weights are trained in mapped memory: the file must not change with them."""
    path = tiny_model() / "unet" / "diffusion_pytorch_model.safetensors"
    before = path.read_bytes()

    go(tmp_path, max_train_steps=1)

    assert path.read_bytes() == before

"""Runs that go wrong end in one sentence, and what was saved before stays whole."""

import math
import shutil

import pytest
from safetensors.torch import load_file

from engine.cli import main
from engine.errors import EngineError
from engine.events import Step

from .run_support import go, loaded_run, tiny_model


class Poison:
    """A listener that spoils the weights after a step, as a rate that is far too high would."""

    def __init__(self, after):
        self.after = after

    def emit(self, event):
        if isinstance(event, Step) and event.step == self.after:
            import gc

            from engine.denoiser import Denoiser

            (denoiser,) = [item for item in gc.get_objects() if type(item) is Denoiser and item.training]
            denoiser.unet.conv_in.weight.data[0] = math.nan

    def close(self):
        pass


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path):
    """Exit 1, pictures named, `failed` last, and the model saved before is whole."""
    run = go(tmp_path, max_train_steps=6, save_every_n_steps=2, listeners=[Poison(after=3)])

    last = run.events[-1]
    assert run.code == 1
    assert (last.kind, last.step) == ("failed", 3)
    assert "the loss of step 4 is not finite" in last.message
    assert ".png" in last.message
    assert main(["verify", str(run.folder / "last-step00000002.safetensors")]) == 0
    assert not (run.folder / "last.safetensors").exists()


def test_latents_that_are_not_finite_are_refused_before_the_first_step(tmp_path):
    """A broken VAE is named before anything is trained."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model(), model)
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import save_file

    save_file({name: value * math.nan for name, value in load_file(path).items()}, path)

    with pytest.raises(EngineError, match=r"\.png"):
        go(tmp_path, model=model)
    assert not (tmp_path / "out").exists()


def test_a_rate_that_is_far_too_high_ends_in_a_sentence(tmp_path):
    """The weights overflow within a few steps."""
    run = go(tmp_path, max_train_steps=8, learning_rate=10.0, optimizer_type="SGDNesterov", max_grad_norm=0.0)

    assert run.code == 1
    assert "not finite" in run.events[-1].message


def test_a_run_of_wrong_settings_leaves_nothing(tmp_path):
    """Checked before the folder is made."""
    with pytest.raises(EngineError, match="sample_prompts"):
        go(tmp_path, sample_at_first=True)

    assert not (tmp_path / "out").exists()
    assert loaded_run(tmp_path).settings.saving.output_dir == str(tmp_path / "out")

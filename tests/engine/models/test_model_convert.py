"""Conversion and verification read back every value, overwrite nothing and believe nothing."""

import json

import pytest
import torch
from safetensors.torch import load_file

from engine.errors import EngineError
from engine.models.convert import convert, is_equal
from engine.models.lazy import lazy
from engine.models.sd import StableDiffusion
from engine.models.verify import verify

from .models_support import TINY_SD1, output_of, shared_model, write_tensors


def test_folder_to_file_and_back_changes_nothing(tmp_path, tiny_sd2):
    """Both families, through .safetensors, .ckpt and folders, every tensor compared by the conversion itself."""
    for name, source in (("sd1", TINY_SD1), ("sd2", tiny_sd2)):
        there = convert(source, tmp_path / f"{name}.safetensors")
        convert(tmp_path / f"{name}.safetensors", tmp_path / f"{name}.ckpt")
        back = convert(tmp_path / f"{name}.ckpt", tmp_path / name)
        convert(source, tmp_path / f"{name}-bin", save_model_as="diffusers")

        assert there.save_model_as == "safetensors"
        assert there.tensors == {"sd1": 996, "sd2": 982}[name]
        assert back.save_model_as == "diffusers_safetensors"
        for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
            before, after = (
                load_file(source / f"{part}.safetensors"),
                load_file(tmp_path / name / f"{part}.safetensors"),
            )
            assert before.keys() == after.keys()
            assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
        reloaded = StableDiffusion.load(str(tmp_path / f"{name}-bin"))
        assert torch.equal(output_of(shared_model(source)), output_of(reloaded))


def test_precision_is_converted_too(tmp_path):
    """The report says how large the result is."""
    report = convert(TINY_SD1, tmp_path / "x.safetensors", save_precision="float")

    assert verify(tmp_path / "x.safetensors").dtypes == {"F32": 996}
    assert "996 tensors read back and equal" in str(report)
    assert report.num_bytes == (tmp_path / "x.safetensors").stat().st_size


def test_what_a_folder_has_no_place_for_is_told(tmp_path):
    """Nothing is dropped in silence; a file-to-file conversion keeps it, with the file's own metadata."""
    convert(TINY_SD1, tmp_path / "a.safetensors")
    tensors = {**load_file(tmp_path / "a.safetensors"), "model_ema.decay": torch.ones(())}
    source = write_tensors(tmp_path / "b.safetensors", tensors, {"modelspec.title": "mine"})
    kept = convert(source, tmp_path / "c.safetensors")
    lost = convert(source, tmp_path / "folder")

    assert kept.left_out == ()
    assert "model_ema.decay" in load_file(tmp_path / "c.safetensors")
    assert lost.left_out == ("model_ema.decay",)
    assert "left out, having no place there: model_ema.decay" in str(lost)


@pytest.mark.parametrize("is_folder", [True, False])
def test_nothing_is_overwritten(tmp_path, is_folder):
    """Not even an empty folder."""
    path = tmp_path / "there"
    if is_folder:
        path.mkdir()
    else:
        path.write_text("precious")

    with pytest.raises(EngineError, match="is there already and is not overwritten"):
        convert(TINY_SD1, path)
    assert path.is_dir() or path.read_text() == "precious"


def test_an_sd2_file_that_does_not_tell_needs_to_be_told(tmp_path, tiny_sd2):
    """The folder's scheduler states the prediction type, so it can't be left open."""
    convert(tiny_sd2, tmp_path / "a.safetensors")
    bare = write_tensors(tmp_path / "bare.safetensors", load_file(tmp_path / "a.safetensors"))

    with pytest.raises(EngineError, match="set v_parameterization"):
        convert(bare, tmp_path / "folder")
    convert(bare, tmp_path / "folder", v_parameterization=False)
    scheduler = json.loads((tmp_path / "folder" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "epsilon"
    assert scheduler["_class_name"] == "DDIMScheduler"


def test_equality_is_of_bits_after_the_conversion():
    """-0.0 differs from 0.0, NaN equals NaN, and a missing value is no equality."""
    one = lazy(torch.tensor([1.0, float("nan")]))

    assert is_equal(one, one)
    assert is_equal(one, lazy(torch.tensor([1.0, float("nan")]).half()))
    assert not is_equal(lazy(torch.zeros(1)), lazy(-torch.zeros(1)))
    assert not is_equal(lazy(torch.zeros(1)), lazy(torch.zeros(2)))


def test_a_sound_model_is_certified(tiny_sd2):
    """For people and for programs."""
    report = verify(tiny_sd2)

    assert report.ok
    assert report.as_json()["ok"] is True
    assert report.as_json()["parameters"]["unet"] == 2424260
    assert json.loads(json.dumps(report.as_json()))["family"] == "sd2"
    assert "sound: names, shapes and types fit" in str(report)


@pytest.mark.parametrize(
    ("key", "tensor", "words"),
    [
        ("model.diffusion_model.out.2.bias", torch.tensor([0, float("nan"), 0, 0]), "unet: conv_out.bias holds NaN"),
        ("first_stage_model.quant_conv.bias", torch.full((8,), float("inf")), "vae: quant_conv.bias holds NaN"),
        ("model.diffusion_model.out.2.bias", torch.zeros(4, dtype=torch.int64), "has the type I64"),
        ("model.diffusion_model.out.2.bias", torch.zeros(5), "has shape [5] instead of [4]"),
        ("model.diffusion_model.out.9.bias", torch.zeros(5), ""),
    ],
)
def test_every_defect_is_named(tmp_path, key, tensor, words):
    """One line for each; what no part needs is no defect."""
    convert(TINY_SD1, tmp_path / "a.safetensors")
    tensors = {**load_file(tmp_path / "a.safetensors"), key: tensor}
    report = verify(write_tensors(tmp_path / "b.safetensors", tensors))

    assert report.ok is not bool(words)
    assert words in str(report)


def test_doubts_about_what_is_carried_along_are_warnings(tmp_path, tiny_sd2):
    """NaN in EMA weights of the source, and a prediction type that nothing tells."""
    convert(tiny_sd2, tmp_path / "a.safetensors")
    tensors = {**load_file(tmp_path / "a.safetensors"), "model_ema.x": torch.tensor([float("nan")])}
    report = verify(write_tensors(tmp_path / "b.safetensors", tensors))

    assert report.ok
    assert len(report.warnings) == 3
    assert "model_ema.x" in str(report)

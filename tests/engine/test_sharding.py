"""What FSDP and DeepSpeed can't do is refused, gathered weights reach the file. Neither runs without a card."""

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from engine.errors import EngineError
from engine.models.sd import StableDiffusion
from engine.sharding import GatheredModel, by_part, refuse_what_needs_all

from .run_support import UNET, loaded_run, tiny_model


@pytest.mark.parametrize(
    ("kind", "values", "named"),
    [
        (DistributedType.FSDP, {"use_ema": True}, "use_ema"),
        (DistributedType.FSDP, {"sample_prompts": "prompts.txt", "sample_at_first": True}, "sample_prompts"),
        (DistributedType.DEEPSPEED, {"use_ema": True}, "use_ema"),
        (DistributedType.DEEPSPEED, {"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
    ],
)
def test_what_needs_the_whole_state_is_refused_by_name(tmp_path, kind, values, named):
    """Before anything is encoded, with the configuration that can do it; DDP itself does."""
    settings = loaded_run(tmp_path, **values).settings

    with pytest.raises(EngineError, match=f"{named}.*ddp.yaml"):
        refuse_what_needs_all(settings, kind)
    refuse_what_needs_all(settings, DistributedType.MULTI_GPU)
    refuse_what_needs_all(loaded_run(tmp_path).settings, kind)


def test_a_gathered_model_is_saved_with_the_weights_of_all(tmp_path):
    """Named as the wrapped denoiser names them: part, then parameter."""
    model = StableDiffusion.load(str(tiny_model()))
    weights = by_part({f"unet.{name}": value + 1 for name, value in model.unet.state_dict().items()})

    GatheredModel(model=model, weights=weights).save(tmp_path / "model.safetensors", "safetensors", counts=(1, 2))

    saved = load_file(tmp_path / "model.safetensors")[f"{UNET}input_blocks.0.0.weight"]
    torch.testing.assert_close(saved, model.unet.conv_in.weight.detach() + 1)

"""Puts a state back into a run that has been prepared, so that it goes on as if it had never stopped."""

from pathlib import Path
from typing import Any

from engine.envelope import differences, envelope
from engine.errors import EngineError, safe_text
from engine.models.safetensors_io import open_safetensors
from engine.optim import parse_arguments
from engine.parts import Parts
from engine.snapshot import load_history, load_optimizer, load_weights, names_of, state_tensors
from engine.states import MANIFEST, read_json
from engine.telling import Teller


def restore(parts: Parts, state: Path, *, tell: Teller) -> None:
    """Load everything a state holds and tell what keeps the run from going on bit for bit.

    Raises:
        EngineError: The state does not fit the model or the settings.
    """
    record = read_json(state)
    denoiser: Any = parts.accelerator.unwrap_model(parts.denoiser)
    raw: Any = getattr(parts.optimizer, "optimizer", parts.optimizer)
    _check_base(parts, record, tell)
    load_weights(state, denoiser.parts())
    load_optimizer(
        raw,
        names_of(denoiser.parts()),
        state_tensors(state, "optimizer"),
        record["optimizer"],
        new_arguments=_changed_arguments(parts, record),
    )
    _restore_ema(parts, state, record)
    _restore_scaler(parts, record, tell)
    parts.history.take(load_history(state))
    parts.history.models += record["models"]
    tell.go_on(record["step"], parts.history.loss)
    here = envelope(parts.accelerator.device, world=parts.ranks.world)
    if differing := differences(read_json(state, MANIFEST)["envelope"], here):
        tell.warn("not-exact", f"the run goes on, but not bit for bit, because {', '.join(differing)}")


def restore_weights(parts: Parts, source: Path, *, tell: Teller) -> None:
    """Load the weights alone, of one of our states or of a `-state` folder of sd-scripts; the run starts at step 0.

    Raises:
        EngineError: They are of another model, or not there.
    """
    denoiser: Any = parts.accelerator.unwrap_model(parts.denoiser)
    if (source / MANIFEST).exists():
        load_weights(source, denoiser.parts())
        left = "optimizer, average weights and step count"
    else:
        load_weights(source, denoiser.parts(), files=_accelerate_files(source, [name for name, _ in denoiser.parts()]))
        left = "optimizer (its order of parameters is not told), schedule, step count and generators"
    tell.warn("weights-only", f"only the weights of {safe_text(source.name)} are taken; left behind: {left}")


def is_accelerate_state(folder: Path) -> bool:
    """Tell whether a folder was written by accelerate's `save_state`, as sd-scripts' `-state` folders are."""
    return (folder / "model.safetensors").exists() and not (folder / MANIFEST).exists()


def _accelerate_files(source: Path, parts: list[str]) -> dict[str, Path]:
    """Return the file of each trained part: accelerate numbers them in the order they were prepared."""
    return {part: source / f"model{f'_{number}' if number else ''}.safetensors" for number, part in enumerate(parts)}


def _check_base(parts: Parts, record: dict[str, Any], tell: Teller) -> None:
    for part, identity in record["base"].items():
        now = parts.base.get(part)
        if now is None:
            continue
        if now != identity:
            is_own = part == "hypernetwork"
            names = "hypernetwork_weights" if is_own else "pretrained_model_name_or_path and vae"
            raise EngineError(
                f"the {part.replace('_', ' ')} is not the one that the state was trained with: set {names} as before, "
                "or start a new run with resume_weights_only"
            )
    missing = parts.base.keys() - record["base"].keys()
    if missing:
        tell.warn("not-exact", f"the state does not say which {', '.join(sorted(missing))} it was trained with")


def _changed_arguments(parts: Parts, record: dict[str, Any]) -> frozenset[str]:
    before = parse_arguments(record["settings"].get("optimizer_args") or ())
    now = parse_arguments(parts.settings.optimizer.optimizer_args)
    return frozenset(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _restore_ema(parts: Parts, state: Path, record: dict[str, Any]) -> None:
    if parts.ema is None:
        return
    if not (state / "ema.safetensors").exists():
        raise EngineError("use_ema = true, but the state holds no average weights: remove use_ema")
    averages = {name: tensor.tensor() for name, tensor in open_safetensors(state / "ema.safetensors").tensors.items()}
    parts.ema.load_state_dict(averages, record["ema_updates"])


def _restore_scaler(parts: Parts, record: dict[str, Any], tell: Teller) -> None:
    scaler = parts.accelerator.scaler
    if scaler is None:
        return
    if record["scaler"] is None:
        tell.warn("not-exact", "the state holds no loss scale for fp16; it starts anew and is found within some steps")
    else:
        scaler.load_state_dict(record["scaler"])

"""Which probes a run needs: known answers from the cache, the others measured. Torch is loaded only to measure."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.errors import EngineError
from engine.hardware import share_cores
from engine.plan import Plan, make_plan
from engine.preflight import completed, look_at_model
from engine.probe_results import ProbeName, ProbeResult, asked, content_key, known_results, remember_results
from engine.settings import Settings
from engine.settings_io import LoadedSettings
from engine.speed import Point, Speed, device_name, key_of, remember_speed


def probe_run(
    loaded: LoadedSettings, names: Sequence[str], *, cache_dir: Path, anew: bool = False
) -> Iterator[ProbeResult]:
    """Yield the results of the probes named, all where none is; what is known for this content is not measured again.

    Raises:
        EngineError: The model is on a hub and not here, or model, pictures or settings are wrong.
    """
    chosen = loaded.settings.model
    source, info = look_at_model(chosen.pretrained_model_name_or_path, chosen.vae)
    if source is None or info is None:
        raise EngineError("a probe needs the model on this machine: fetch it, and name its file or folder")
    info.require_trainable()
    settings = completed(loaded.settings, info)
    device, wanted = device_name(), asked(names)
    known = {} if anew else {result.name: result for result in known_results(cache_dir, source, settings, device)}
    missing = [name for name in wanted if name not in known]
    yield from (known[name] for name in wanted if name in known)
    if not missing:
        return
    plan = make_plan(settings, cache_dir=cache_dir)
    for result in _measured(settings, plan, missing, cache_dir=cache_dir):
        remember_results(cache_dir, {content_key(source, result.name, settings, device): result})
        if result.verdict == "works":
            _remember_speed(cache_dir, key_of(settings, info, device), result)
        yield result


def _measured(settings: Settings, plan: Plan, names: Sequence[ProbeName], *, cache_dir: Path) -> Iterator[ProbeResult]:
    share_cores()
    from engine.probes import measure_step, probe_model

    if {"prediction", "vae"} & {*names}:
        yield from probe_model(settings, plan, names)
    if "step" in names:
        if settings.model.v2 and settings.model.v_parameterization is None:
            settings = settings.replace(v_parameterization=False)  # It takes the same time and memory.
        yield measure_step(settings, plan, cache_dir=cache_dir)


def _remember_speed(cache_dir: Path, key: str, result: ProbeResult) -> None:
    width, height = result.evidence["bucket"]
    point = Point(bucket=(width, height), images=result.evidence["images"], seconds=result.evidence["seconds"])
    remember_speed(cache_dir, key, Speed(points=(point,)))

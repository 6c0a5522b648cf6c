"""What a run will write, before it does: its models and its caches. Torch-free."""

from collections.abc import Iterator
from pathlib import Path

from engine.outlay import disk_bytes
from engine.plan import Plan
from engine.preflight import look_at_files
from engine.settings_io import LoadedSettings
from engine.space import Need


def needs_of(loaded: LoadedSettings, plan: Plan, *, cache_dir: Path) -> Iterator[Need]:
    """Yield what the run writes to each place.

    A save stands beside the one it replaces until it is whole, so there should be room for two models at least.
    """
    files = look_at_files(loaded)
    disk = disk_bytes(plan, files.info, files.source)
    model_bytes, count = disk["one_model"] or 0, disk["num_models"] or 1
    folder = Path(loaded.settings.saving.output_dir)
    state_bytes, states = disk["one_state"] or 0, disk["num_states"] or 0
    if states:
        yield Need(what="states", path=folder, least_bytes=state_bytes, most_bytes=(states + 1) * state_bytes)
    yield Need(what="models", path=folder, least_bytes=model_bytes, most_bytes=max(2, count) * model_bytes)
    caches = (disk["latents"] or 0) + (disk["text"] or 0)
    yield Need(what="caches", path=cache_dir, least_bytes=0, most_bytes=caches)

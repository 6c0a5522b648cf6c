"""The modelspec metadata is what sd-scripts writes, but for the name of the program."""

import time

import pytest

from engine.models.metadata import ModelSpec, modelspec

from .models_support import golden_json

ROWS = golden_json("metadata.json")
OURS = "sdtui/1.2.3"


def spec_for(args):
    """Read the classic flags of a golden row."""
    given, names = {}, [*args, ""]
    for position, flag in enumerate(args):
        if flag.startswith("--"):
            given[flag[2:]] = (
                True if names[position + 1].startswith("--") or not names[position + 1] else names[position + 1]
            )
    size = [int(side) for side in given.get("resolution", "").split(",") if side]
    return ModelSpec(
        family="sd2" if given.get("v2") else "sd1",
        prediction_type="v_prediction" if given.get("v_parameterization") else "epsilon",
        timestamp=ROWS["timestamp_used_in_variants"],
        implementation_version=OURS,
        output_name=given.get("output_name", ""),
        resolution=(size[0], size[-1]) if size else None,
        clip_skip=int(given["clip_skip"]) if "clip_skip" in given else None,
        min_timestep=int(given["min_timestep"]) if "min_timestep" in given else None,
        max_timestep=int(given["max_timestep"]) if "max_timestep" in given else None,
        words={name.removeprefix("metadata_"): text for name, text in given.items() if name.startswith("metadata_")},
    )


@pytest.fixture(autouse=True)
def _utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.mark.parametrize("row", ROWS["variants"], ids=lambda row: " ".join(row["args"]) or "none")
def test_metadata_agrees_with_every_golden_row(row):
    """Keys and values, for each combination of flags."""
    expected = {**row["metadata"], "modelspec.implementation_version": OURS}

    assert expected == modelspec(spec_for(row["args"]))


def test_empty_words_are_left_out():
    """A setting that was not made is no metadata."""
    spec = ModelSpec(
        family="sd1",
        prediction_type="epsilon",
        timestamp=0,
        implementation_version=OURS,
        words={"author": None, "tags": ""},
    )

    assert not {"modelspec.author", "modelspec.tags"} & modelspec(spec).keys()
    assert modelspec(spec)["modelspec.title"] == "Checkpoint@0"

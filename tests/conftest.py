"""Fixtures every test may use; no test reads the network or writes outside its temporary folder."""

import os
from pathlib import Path

import pytest

# Set before torch is imported by any test: two workers on two cores, one thread each, so results repeat.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's cache folder out of every test."""
    monkeypatch.setenv("SDTUI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def golden() -> Path:
    """The folder of numbers obtained by running sd-scripts itself."""
    return GOLDEN

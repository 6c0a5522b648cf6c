"""What the engine's tests share: the memory of a tests' model is traced once, not by every test with its own cache."""

import json
from functools import cache

import pytest

from engine.memory import own_table

_trace = own_table.traced


@cache
def _traced_once(config, case):
    return _trace(json.loads(config), case)


@pytest.fixture(autouse=True)
def _remember_traces(monkeypatch):
    """A trace depends on nothing but the UNet's config and the case."""
    monkeypatch.setattr(own_table, "traced", lambda config, case: _traced_once(json.dumps(config), case))

"""Fixtures of the model tests."""

import socket

import pytest

from .models_support import make_tiny_sd2


@pytest.fixture(scope="session")
def tiny_sd2(tmp_path_factory):
    """A diffusers folder of the tiny SD 2.x model, v-prediction."""
    return make_tiny_sd2(tmp_path_factory.mktemp("models") / "tiny_sd2")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, request):
    """Refuse every connection: local models need none."""
    if "network" in request.fixturenames:
        return

    def refuse(*_args, **_kwargs):
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

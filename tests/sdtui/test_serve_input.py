"""What a browser may send to `sdtui serve`, and a machine that lacks what others have."""

import getpass
from unittest.mock import Mock

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from sdtui.browser.access import Access
from sdtui.browser.serve import _announce
from sdtui.browser.server import BrowserServer
from sdtui.browser.session import Session


@pytest.mark.parametrize("message", ['["stdin", 5]', "[" * 20_000, '["resize", 5]', "{}"])
async def test_what_is_no_message_closes_its_tab_alone(monkeypatch, message):
    """One sentence; nothing is raised."""
    said, sent = [], []
    monkeypatch.setattr("sdtui.browser.session.APP", ("cat",))
    monkeypatch.setattr("sdtui.browser.session.CLOSE_SECONDS", 0.05)
    server = BrowserServer(Access(host="127.0.0.1"), said.append)
    async with TestClient(TestServer(server.application())) as client:
        key = server._access.key
        origin = f"http://{client.host}:{client.port}"
        async with client.ws_connect(f"/{key}/ws", headers={"Origin": origin}) as websocket:
            await websocket.send_str(message)
            sent.append(await websocket.receive())
    assert sent[0].type is aiohttp.WSMsgType.CLOSE
    assert said == ["a browser sent what sdtui does not understand; its tab was closed"]


async def test_sizes_from_the_browser_are_cells(monkeypatch):
    """Whole numbers, kept within bounds; others are no size."""
    session, sent = Session("", write_bytes=None, write_str=None, close=None, download_manager=None), []

    async def keep(data):
        sent.append((data["width"], data["height"]))

    monkeypatch.setattr(session, "send_meta", keep)
    for size in ((70, 20), (10**30, -1), ("70", 20), (70.5, 20), (True, 20), (None, 20), ([], {})):
        await session.set_terminal_size(*size)
    assert sent == [(70, 20), (1000, 1)]


def test_a_user_without_a_name_gets_the_address_all_the_same(monkeypatch, capsys):
    """As in a container whose uid no file names."""
    for error in (KeyError("uid not found"), OSError("no name"), ImportError("pwd")):
        monkeypatch.setattr(getpass, "getuser", Mock(side_effect=error))
        _announce(Access(host="127.0.0.1"), 1)
        assert "ssh -L 1:127.0.0.1:1 you@" in capsys.readouterr().err

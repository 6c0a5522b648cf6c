"""What a browser may send to `sdtui serve`, and a machine that lacks what others have."""

import getpass
import logging
from unittest.mock import AsyncMock, Mock

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from engine.run import RunFolder
from sdtui.app import SdtuiApp
from sdtui.browser.access import Access
from sdtui.browser.serve import _announce
from sdtui.browser.server import BrowserServer, ErrorLine
from sdtui.browser.session import Session
from sdtui.guard import log_path
from sdtui.terminal import browser_terminal


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


async def test_a_training_is_told_before_it_begins(monkeypatch, tmp_path):
    """Else a tab that is closed at that moment could end it."""
    order = []
    app = SdtuiApp(terminal=browser_terminal())
    async with app.run_test():
        app.tty = Mock(tell_training=lambda *, goes_on: order.append(goes_on))
        engine = Mock(folder=RunFolder(tmp_path))
        monkeypatch.setattr("engine.headless.start_in_thread", lambda *_a, **_k: order.append("begun") or engine)
        monkeypatch.setattr(app, "open_screen", Mock())
        app.start_here(Mock(**{"settings.saving.output_dir": str(tmp_path)}))
    assert order == [True, "begun"]


async def test_what_the_app_says_of_a_training_outlives_the_socket():
    """The last word is read although the browser is gone, and what was to be drawn fails."""
    gone = AsyncMock(side_effect=ConnectionResetError)
    session = Session("", write_bytes=gone, write_str=gone, close=gone, download_manager=None)
    await session.on_data(b"x")
    await session.on_meta(b'{"type": "exit"}')
    await session.on_meta(b'{"type": "training", "goes_on": true}')
    assert session.is_training


def test_an_error_of_the_server_is_one_line():
    """Its traceback is in the log."""
    said = []
    record = logging.makeLogRecord({"exc_info": (KeyError, KeyError("x"), None)})
    ErrorLine(said.append).emit(record)
    assert said == [f"the server failed at a request (KeyError); details in {log_path()}"]
    assert "KeyError: 'x'" in log_path().read_text()

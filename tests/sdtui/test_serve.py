"""`sdtui serve`: the app in a browser, reached by its owner alone; proved over HTTP against the real server."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import aiohttp
import pytest

from engine.cli import main as headless
from sdtui.__main__ import main
from sdtui.app import SdtuiApp
from sdtui.browser.access import Access, is_loopback
from sdtui.browser.driver import PacketPipe
from sdtui.browser.serve import serve
from sdtui.checkup import findings
from sdtui.terminal import browser_terminal
from tests.sdtui.pty_support import REPOSITORY, training_app

SECONDS = 15
PLAIN = "import sys; from sdtui.__main__ import main; sys.exit(main(['serve', '--port', '0']))"
# The server with an app whose engine only counts.
TRAINING = """
import sys
from sdtui.browser import session
from sdtui.browser.serve import serve
session.APP = (sys.executable, "-c", {script!r})
session.LINGER_SECONDS = session.END_SECONDS = 0.3
sys.exit(serve(["--port", "0"]))
"""


class ServerProcess:
    """A server in a process of its own, and what it said."""

    def __init__(self, script, folder):
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", script], cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "SDTUI_DATA_DIR": str(folder / "data")},
        )  # fmt: skip
        self.said = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.url = self.saying(r"http://\S+")[0]
        self.saying("trainings go on")
        self.origin, _, key = self.url.rstrip("/").rpartition("/")
        self.key, self.port = key, int(self.origin.rpartition(":")[2])

    def _read(self):
        with self.process.stderr as lines:
            for line in lines:
                self.said += line

    def saying(self, pattern):
        """Wait until it has said something; return the match."""
        wait_for(lambda: re.search(pattern, self.said))
        return re.search(pattern, self.said)

    def end(self, number=signal.SIGINT):
        """Send it a signal; return its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        return code

    def close(self):
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait()
        self._reader.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The server as the console script starts it."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "textual.py").write_text("raise SystemExit('a file of the current folder was run')")
    started = ServerProcess(PLAIN, folder)
    yield started
    started.close()


@pytest.fixture
def training(tmp_path):
    """Start a server whose app trains for some steps; `calm` keeps its end from waiting for imports."""
    started = []

    def start(steps, calm="app._warm_up = lambda: None"):
        app = training_app(tmp_path, app="terminal=browser_terminal()", extra=calm, steps=steps)
        started.append(ServerProcess(TRAINING.format(script=app), tmp_path))
        return started[0]

    yield start
    for process in started:
        process.close()


@contextlib.asynccontextmanager
async def tab(server, **headers):
    """A websocket as the page opens it."""
    async with (
        aiohttp.ClientSession() as client,
        client.ws_connect(
            f"{server.url}ws?width=100&height=30", headers={"Origin": server.origin, **headers}
        ) as websocket,
    ):
        yield websocket


async def read_until(websocket, wanted):
    """Read what is drawn until some bytes appear, or without any, until the server closes the socket."""
    drawn = b""
    async with asyncio.timeout(SECONDS):
        async for message in websocket:
            drawn += message.data if isinstance(message.data, bytes) else b""
            if wanted and wanted in drawn:
                return drawn
    assert not wanted, f"{wanted!r} was not drawn: {drawn[-2000:]!r}"
    return drawn


async def status(server, path="", **headers):
    """The status of one request."""
    async with aiohttp.ClientSession() as client, client.get(f"{server.origin}{path}", headers=headers) as answer:
        return answer.status


def wait_for(condition):
    """Wait until something holds."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_it_says_where_and_how_to_get_there_through_ssh(server):
    """The address with its key, and the line to type on one's own machine."""
    assert re.search(r"http://127\.0\.0\.1:\d+/[\w-]{32}/\n", server.said)
    assert f"ssh -L {server.port}:127.0.0.1:{server.port} " in server.said


async def test_the_page_and_all_it_loads_come_from_the_server(server):
    """No address of elsewhere, nor leave to load from one: it works on a machine without a network."""
    async with aiohttp.ClientSession() as client:
        async with client.get(server.url) as answer:
            page, policy = await answer.text(), answer.headers["Content-Security-Policy"]
        names = re.findall(r'(?:src|href)="([^":]+)"', page)
        assert {"page/page.css", "static/css/xterm.css", "static/js/textual.js", "page/page.js"} <= set(names)
        loaded = []
        for name in names:
            async with client.get(server.url + name) as answer:
                assert answer.status == 200
                loaded.append(await answer.text())
        for name in re.findall(r'url\("\.\./([^"]+)"', loaded[names.index("page/page.css")]):
            async with client.get(server.url + name) as answer:
                assert answer.status == 200

    own = [page, *(text for name, text in zip(names, loaded, strict=True) if name.startswith("page/"))]
    assert not re.search(r"https?:", "".join(own))
    assert "default-src 'none'; script-src 'self'" in policy
    assert f"connect-src 'self' ws://127.0.0.1:{server.port}" in policy
    assert f'"ws://127.0.0.1:{server.port}/{server.key}/ws"' in page


async def test_without_the_key_everything_is_refused(server):
    """Other users of the machine find the port, but not the key."""
    wrong = "x" * len(server.key)
    for path in ("/", "/ws", "/static/js/textual.js", f"/{wrong}/", f"/{wrong}/ws", f"/{server.key}x/", "/favicon.ico"):
        assert await status(server, path) == 403, path
    assert await status(server, "/download/unknown") == 404


async def test_a_page_of_another_name_is_refused(server):
    """DNS rebinding: the attacker's name leads here, and the browser says so; a forwarded port is no other name."""
    page = f"/{server.key}/"
    for host in ("attacker.example", f"attacker.example:{server.port}", "127.0.0.1.attacker.example", "x@127.0.0.1"):
        assert await status(server, page, Host=host) == 403, host
    for host in ("127.0.0.1:9999", "localhost:9999", f"[::1]:{server.port}"):
        assert await status(server, page, Host=host) == 200, host


@pytest.mark.parametrize("origin", ["http://attacker.example", "http://127.0.0.1:1", "https://127.0.0.1", "null", ""])
async def test_a_websocket_of_another_page_is_refused(server, origin):
    """Even with the key, and even from another port of this machine."""
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with tab(server, Origin=origin):
            pass
    assert refused.value.status == 403


def test_nobody_else_listens_in(server):
    """It listens on one address: another of the same machine is not answered."""
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.2", server.port)) != 0


async def test_the_screen_is_drawn_and_keys_reach_it(server):
    """Home, help, home, whatever modules lie in the server's folder; leaving closes the socket."""
    async with tab(server) as websocket:
        drawn = await read_until(websocket, b"Recent")
        assert b"\x1b[?1049h" in drawn
        await websocket.send_json(["stdin", "?"])
        await read_until(websocket, b"Everywhere")
        await websocket.send_json(["resize", {"width": 70, "height": 20}])
        await websocket.send_json(["stdin", "\x11"])
        await read_until(websocket, b"")


async def test_a_process_that_hangs_without_a_training_is_ended(training):
    """It is not called a training: the app told that there is none."""
    hanging = "app._warm_up = lambda: None; app.engine = None; threading.Thread(target=time.sleep, args=(60,)).start()"
    served = training(steps=0, calm=hanging)
    async with tab(served) as websocket:
        await read_until(websocket, b"Recent")
    served.saying("without a training, did not end and was ended")
    assert "goes on with" not in served.said


def test_a_bad_request_prints_nothing(server):
    """Anybody on the machine can send one."""
    said = server.said
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        assert b" 400 " in client.recv(4096)
    assert server.process.poll() is None
    assert server.said == said


async def test_a_closed_tab_never_ends_a_training(training, tmp_path):
    """The socket is gone, then everything that belongs to the server's terminal: every step is done all the same."""
    served = training(steps=25)
    async with tab(served) as websocket:
        await read_until(websocket, b"Recent")
    os.killpg(served.process.pid, signal.SIGKILL)

    wait_for(lambda: (tmp_path / "steps.txt").read_text() == "25")
    assert not (tmp_path / "stopped.txt").exists()


async def test_the_end_of_the_server_never_ends_a_training(training, tmp_path):
    """Ctrl+C closes the tab and says which process goes on; SIGTERM to that saves and ends it, as in a terminal."""
    served = training(steps=1000)
    async with tab(served) as websocket:
        await read_until(websocket, b"Recent")
        os.killpg(served.process.pid, signal.SIGINT)
        await read_until(websocket, b"")
    process = int(served.saying(r"process (\d+) goes on with its training")[1])
    assert served.process.wait(SECONDS) == 130
    assert not (tmp_path / "stopped.txt").exists()

    os.kill(process, signal.SIGTERM)
    wait_for((tmp_path / "stopped.txt").exists)
    assert (tmp_path / "stopped.txt").read_text() == "SIGTERM"


async def test_leaving_asks_and_detaching_goes_on(training, tmp_path):
    """As in a terminal; the server stays, ready for the next tab."""
    served = training(steps=1000)
    async with tab(served) as websocket:
        await read_until(websocket, b"Recent")
        await websocket.send_json(["stdin", "\x11"])
        await read_until(websocket, b"Detach")
        await websocket.send_json(["stdin", "\r"])
        await read_until(websocket, b"")

    process = int(served.saying(r"process (\d+) goes on")[1])
    assert await status(served, f"/{served.key}/") == 200
    os.kill(process, signal.SIGINT)
    wait_for((tmp_path / "stopped.txt").exists)
    assert served.end(signal.SIGTERM) == 143


def test_a_port_that_is_taken_and_a_host_for_everybody_are_refused(server, capsys):
    """One sentence and exit code 2; nothing was started."""
    cases = {
        ("--port", str(server.port)): "already in use",
        ("--host", "0.0.0.0"): "--allow-network",
        ("--host", "192.0.2.1", "--allow-network"): "can't be used",
        ("--host", "no.such.host.invalid", "--allow-network"): "no address of this machine",
    }
    for words, reason in cases.items():
        assert serve(words) == 2
        said = capsys.readouterr().err
        assert reason in said
        assert said.count("\n") == 1
    with pytest.raises(SystemExit) as ended:
        serve(["--port", "70000"])
    assert ended.value.code == 2


def test_access_of_a_server_that_the_network_reaches():
    """Addresses and its own name; never a name that somebody else may point at it."""
    access = Access(host="0.0.0.0")

    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "LOCALHOST", "0.0.0.0", "box")] == [True] * 3 + [
        False
    ] * 2
    assert access.knows_host("192.168.1.5:8765")
    assert access.knows_host(socket.gethostname())
    assert not access.knows_host("attacker.example")
    assert not Access(host="127.0.0.1").knows_host("192.168.1.5:8765")
    assert access.key not in repr(access)


def test_a_stalled_server_gets_whole_packets_only():
    """What doesn't pass is dropped as a whole and painted again later, but for the word that a training runs."""
    reader, writer = os.pipe()
    pipe = PacketPipe(writer)
    resumed = []
    pipe.on_resumed = lambda: resumed.append(True)
    packet = b"D" + (50_000).to_bytes(4, "big") + b"x" * 50_000
    start = time.monotonic()
    for _ in range(50):
        pipe.send(packet)
    assert time.monotonic() - start < 3
    pipe.tell_training(goes_on=True)
    read = b""
    while not resumed:
        read += os.read(reader, 1_000_000)
        pipe.check()
    read += os.read(reader, 1_000_000)
    pipe.send(packet)
    read += os.read(reader, 1_000_000)

    told = b'M\0\0\0\x25{"type": "training", "goes_on": true}'
    assert read.count(told) == 1
    read = read.replace(told, b"")
    assert read == packet * (len(read) // len(packet))
    os.close(reader)
    lost = []
    pipe.on_lost = lambda: lost.append(True)
    pipe.check()
    assert lost == [True]
    pipe.end()
    os.close(writer)
    os.close(pipe.fileno())


def test_a_browser_draws_half_blocks_whatever_terminal_started_the_server(monkeypatch):
    """Kitty's and tmux's ways are the server's terminal's, not the browser's."""
    for name, value in {"KITTY_WINDOW_ID": "1", "TMUX": "x", "TERM": "dumb", "SSH_TTY": "x"}.items():
        monkeypatch.setenv(name, value)
    terminal = browser_terminal()

    assert (terminal.graphics, terminal.multiplexer, terminal.colors) == ("", "", "truecolor")
    assert terminal.is_browser
    assert terminal.is_utf8
    facts = {found.topic: found.fact for found in findings(terminal)}
    assert (facts["Pictures"], facts["Connection"]) == ("half blocks", "browser (sdtui serve)")


async def test_copying_goes_to_the_browser_and_to_a_file(monkeypatch):
    """xterm.js takes the same sequence as terminals do; a browser may forbid it, so the line names the file."""
    app = SdtuiApp(terminal=browser_terminal())
    async with app.run_test():
        written = []
        monkeypatch.setattr(app, "write_raw", written.append)
        said = app.copy_text("sdtui train run.toml")

    assert said.startswith("copied, if your browser allows it; also in ")
    assert written[0].startswith("\x1b]52;c;")


def test_help_names_it_and_the_engine_alone_points_to_it(capsys):
    """The engine has no screens."""
    assert main(["--help"]) == 0
    assert "serve       Show the wizard in a browser" in capsys.readouterr().out
    assert headless(["serve"]) == 2
    assert "`sdtui serve`" in capsys.readouterr().err

"""The verb `sdtui serve`."""

import argparse
import asyncio
import contextlib
import getpass
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence

from engine.errors import EngineError, safe_text
from sdtui.browser.access import Access, is_loopback

DEFAULT_PORT = 8765
DESCRIPTION = """Show sdtui in a browser. Only this machine can reach it, and only with the address it prints: through
SSH, forward the port first. Ctrl+C ends the server; trainings go on."""


def serve(words: Sequence[str]) -> int:
    """Serve until a signal; return the exit code."""
    parsed = _parser().parse_args(list(words))
    if os.name != "posix":
        return _say("sdtui serve needs Linux or macOS: run sdtui in a terminal instead", code=2)
    if not is_loopback(parsed.host) and not parsed.allow_network:
        shown = safe_text(parsed.host)
        return _say(
            f"--host {shown} would let the network in, and whoever gets the address can train and delete as you: "
            "keep 127.0.0.1 and use ssh -L, or add --allow-network",
            code=2,
        )
    try:
        listener = _listen(parsed.host, parsed.port)
    except EngineError as error:
        return _say(str(error), code=2)
    with listener:
        return asyncio.run(_run(Access(host=parsed.host), listener))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sdtui serve", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--port", type=_port, help=f"default {DEFAULT_PORT}, or a free one where that is taken")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; default 127.0.0.1")
    parser.add_argument(
        "--allow-network", action="store_true", help="let --host be an address that other machines reach, unencrypted"
    )
    return parser


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError("a port is a number from 0 (any free one) to 65535")
    return int(text)


def _listen(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens; without a wished port, on a free one where the usual one is taken.

    Raises:
        EngineError: The port is taken or the host is none of this machine.
    """
    try:
        family, kind, _protocol, _name, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise EngineError(f"--host {safe_text(host)} is no address of this machine ({error.strerror})") from error
    tries = [port] if port is not None else [DEFAULT_PORT, 0]
    for number in tries:
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address[0], number, *address[2:]))
            listener.listen(128)
        except (OSError, OverflowError) as error:
            listener.close()
            if number == tries[-1]:
                reason = getattr(error, "strerror", None) or str(error)
                raise EngineError(
                    f"--port {number} on {safe_text(host)} can't be used ({reason.lower()}): "
                    "name another one, or leave --port out for a free one"
                ) from error
        else:
            if number != tries[0]:
                _say(f"port {tries[0]} is taken, so another one")
            return listener
    raise AssertionError(tries)


async def _run(access: Access, listener: socket.socket) -> int:
    from aiohttp import web

    from sdtui.browser.server import BrowserServer, ErrorLine

    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    server = BrowserServer(access, _say)
    logger = logging.getLogger("aiohttp")
    logger.addHandler(ErrorLine(_say))
    logger.propagate = False
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=10.0)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    _announce(access, listener.getsockname()[1])
    stopped_by = await signals.get()
    await server.close_tabs()
    await runner.cleanup()
    return 128 + stopped_by


def _announce(access: Access, port: int) -> None:
    name = f"[{access.host}]" if ":" in access.host else access.host
    if name in ("0.0.0.0", "[::]"):  # noqa: S104 - said, not bound
        name = socket.gethostname()
    user, here = _user(), socket.gethostname()
    if not is_loopback(access.host):
        _say("the network can reach this server, and nothing it sends is encrypted")
    _say(f"sdtui in a browser: http://{name}:{port}/{access.key}/")
    if is_loopback(access.host):
        _say(f"from your own machine, first: ssh -L {port}:{name}:{port} {user}@{here}")
    _say("the address is the key: who has it can train and delete as you; Ctrl+C ends the server, trainings go on")


def _user() -> str:
    """Return the user's name, or a stand-in where no file knows the uid, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # Python's own reasons, one after another release.
        return "you"


def _say(line: str, *, code: int = 0) -> int:
    with contextlib.suppress(OSError):  # Nobody reads it any more.
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    return code

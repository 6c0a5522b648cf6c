"""The web server: one page, its static files, and a websocket for each tab."""

import html
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from string import Template

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler
from textual_serve.server import Server, to_int

from sdtui.browser.access import Access, headers
from sdtui.browser.session import Session, cells
from sdtui.guard import log_error, log_path

_PAGE = Path(__file__).parent / "page"


class BrowserServer(Server):
    """textual-serve's server with a page, a door and processes of our own."""

    def __init__(self, access: Access, say: Callable[[str], object]) -> None:
        super().__init__("sdtui", host=access.host)
        self._access = access
        self._say = say
        self._sessions: dict[Session, web.WebSocketResponse] = {}

    def application(self) -> web.Application:
        """Return what aiohttp serves."""
        app = web.Application(middlewares=[self._admit])
        root = f"/{self._access.key}"
        app.add_routes(
            [
                web.get(f"{root}/", self._show_page),
                web.get(f"{root}/ws", self.handle_websocket),
                web.static(f"{root}/page", _PAGE),
                web.static(f"{root}/static", self.statics_path),
                # textual.js knows nothing of our key here; the file's own is as long, and good for one file once.
                web.get("/download/{key}", self.handle_download),
            ]
        )
        app.on_response_prepare.append(_add_headers)
        return app

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse whoever has not the key, and pages that are not ours."""
        if not self._access.knows_host(request.host):
            raise web.HTTPForbidden(text="sdtui answers to this machine's own names and addresses only\n")
        if not self._access.has_key(request.path) and not request.path.startswith("/download/"):
            raise web.HTTPForbidden(text="open the whole address that `sdtui serve` printed, its key included\n")
        origin = request.headers.get("Origin", "")
        if (origin or request.path.endswith("/ws")) and not self._access.knows_origin(origin, request.host):
            raise web.HTTPForbidden(text="only the page that sdtui serves may do that\n")
        return await handler(request)

    async def _show_page(self, request: web.Request) -> web.Response:
        page = Template((_PAGE / "page.html").read_text(encoding="utf-8"))
        websocket = f"ws://{request.host}/{self._access.key}/ws"
        text = page.substitute(host=html.escape(socket.gethostname()), websocket=html.escape(websocket))
        return web.Response(text=text, content_type="text/html")

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        """Run the app for one tab until the tab or the app is closed."""
        websocket = web.WebSocketResponse(heartbeat=15)

        async def close() -> None:
            await websocket.close()

        await websocket.prepare(request)
        session = Session(
            "sdtui",
            write_bytes=websocket.send_bytes,
            write_str=websocket.send_str,
            close=close,
            download_manager=self.download_manager,
        )
        self._sessions[session] = websocket
        try:
            await session.open(_cells(request, "width", 80), _cells(request, "height", 24), close)
            await self._process_messages(websocket, session)
        except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError):
            self._say("a browser sent what sdtui does not understand; its tab was closed")
        finally:
            await session.stop()
            del self._sessions[session]
            await websocket.close()
            self._tell_end(session)
        return websocket

    def _tell_end(self, session: Session) -> None:
        if session.trains_on:
            self._say(f"a tab was closed; process {session.trains_on} goes on with its training")
        elif session.was_ended:
            self._say("an app in the browser, without a training, did not end and was ended")
        elif session.exit_code:
            self._say(f"an app in the browser failed (exit code {session.exit_code}); details in {log_path()}")

    async def close_tabs(self) -> None:
        """Close every tab, which ends its app; what trains goes on."""
        for websocket in list(self._sessions.values()):
            await websocket.close(code=1001)


class ErrorLine(logging.Handler):
    """Takes aiohttp's tracebacks from the terminal: one sentence each, none for requests that were no HTTP."""

    def __init__(self, say: Callable[[str], object]) -> None:
        super().__init__(logging.ERROR)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Say that the server failed; whoever sent a malformed request has been told already."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            return
        if error is not None:
            log_error(error)
        self._say(f"the server failed at a request ({type(error).__name__}); details in {log_path()}")


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(headers(request.host))


def _cells(request: web.Request, name: str, default: int) -> int:
    return cells(to_int(request.query.get(name, ""), default))

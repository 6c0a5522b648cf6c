"""Who may speak to the server: those with its key, through a name of this machine, from the page it served. Pure.

The key keeps out other users of the machine; the Host header, foreign web pages whose name was pointed at this
machine; the Origin header, every other page.
"""

import hmac
import ipaddress
import re
import secrets
import socket
from dataclasses import dataclass, field

_AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::\d{1,5})?")


def is_loopback(host: str) -> bool:
    """Return whether a host name or address, as somebody typed it, means this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def headers(authority: str) -> dict[str, str]:
    """Return what keeps a page from loading anything from elsewhere, and other pages from showing or reading it."""
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; font-src 'self'; "
        f"img-src 'self' data:; connect-src 'self' ws://{authority}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The rules of one server."""

    host: str
    """What it listens on."""
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    def has_key(self, path: str) -> bool:
        """Return whether the first part of a path is the key, in a time that tells nothing about it."""
        first = path.lstrip("/").partition("/")[0]
        return hmac.compare_digest(first.encode(), self.key.encode())

    def knows_host(self, authority: str) -> bool:
        """Return whether a Host header names this machine; the port may be another one, as behind `ssh -L`."""
        found = _AUTHORITY.fullmatch(authority.lower())
        if found is None:
            return False
        name = found[1] or found[2]
        if is_loopback(name) or name == self.host.lower():
            return True
        # Where the network may come in: a name can be pointed anywhere by whoever owns it, an address can't.
        return not is_loopback(self.host) and (_is_address(name) or name == socket.gethostname().lower())

    def knows_origin(self, origin: str, authority: str) -> bool:
        """Return whether a page comes from this server, under the very name and port it was asked by."""
        return origin.lower() == f"http://{authority.lower()}"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

"""Who may talk to the demo: its own page, in a browser that was told its address. And what browsers must not do.

A page of another site can make a visitor's browser send requests to 127.0.0.1, and with a name of its own that it lets
point there (DNS rebinding) it could read the answers, too. The first is told by Origin, the second by Host.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuses requests under a foreign Host or from a foreign page, and adds `HEADERS` to every answer.

    Args:
        app: what is guarded.
        names: lower-case host names, beside numeric addresses, that are the demo's own.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self.app = app
        self.names = frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no websocket, nothing to start or to end
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        problem = self._problem(scope["method"], Headers(scope=scope))
        answer = self.app if problem is None else JSONResponse({"error": problem}, status_code=403)
        await answer(scope, receive, send_guarded)

    def _problem(self, method: str, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if not is_own(host, self.names):
            return "this address is not the demo's; open the one that it printed"
        if method in ("GET", "HEAD"):
            return None
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if foreign or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return "expected a request of the demo's own page, got one of another site"
        return None


def is_own(host: str, names: Collection[str]) -> bool:
    """Whether a Host header names the demo: one of `names`, or a numeric address, which no DNS can rebind."""
    try:
        name = urlsplit("//" + host).hostname or ""
        if name in names:
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

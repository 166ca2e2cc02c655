"""Who may see the console: this machine without a token, others with the token of the environment.

Without a token, a page of another site could point its own host name at this machine and read the console through the
browser that shows it (DNS rebinding). Its requests then name that host, so requests for any host but this machine are
refused. With a token, any host name is served, such as that of a proxy or a cluster: the browser sends the cookie with
the token only to the name that it was set for.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from armillary.recipe import UsageError, is_loopback

TOKEN = "ARMILLARY_CONSOLE_TOKEN"
COOKIE = "armillary-console"
SHORTEST = 16

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def check_token(host: str, token: str | None) -> str | None:
    """The token that requests must carry, or None.

    Raises:
        UsageError: no token although the host can be reached from other machines, or a token that is too short.
    """
    if not token:
        if is_loopback(host):
            return None
        raise UsageError(
            f"--host {host}: other machines could read everything; set {TOKEN} to a secret of {SHORTEST} characters or "
            f"more, such as the output of `openssl rand -hex 16`, or leave --host out and use an SSH tunnel"
        )
    if len(token) < SHORTEST:
        raise UsageError(f"{TOKEN} has {len(token)} characters; give {SHORTEST} or more")
    return token


class Guard:
    """The middleware in front of every page: checks host, method and token, and sets the response headers."""

    def __init__(self, app: App, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no websockets here

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower() for name, _ in message["headers"]}
                message["headers"] += [
                    (name.lower().encode(), value.encode())
                    for name, value in HEADERS.items()
                    if name.lower().encode() not in own
                ]
            await send(message)

        refused = await self._refused(Request(scope, receive))
        await (refused or self.app)(scope, receive, with_headers)

    async def _refused(self, request: Request) -> Response | None:
        """The answer to a request that is not served; None for one that is."""
        if self.token is None and not _is_here(request.headers.get("host", "")):
            return PlainTextResponse("this host name is not served; open the address that the console printed\n", 421)
        if self.token is None or request.url.path.startswith("/static/"):
            return None if request.method in ("GET", "HEAD") else PlainTextResponse("only GET\n", 405)
        known = request.cookies.get(COOKIE, "")
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if _same(known, _cookie(self.token)) or _same(bearer, self.token):
            return None if request.method in ("GET", "HEAD") else PlainTextResponse("only GET\n", 405)
        fields = parse_qsl(request.url.query, keep_blank_values=True)
        shown = next((value for name, value in fields if name == "token"), "")
        if request.method == "POST" and request.url.path == "/token":
            body = (await request.body())[:4096].decode("utf-8", "replace")
            shown = dict(parse_qsl(body)).get("token", "")
        if shown and _same(shown, self.token):
            left = urlencode([(name, value) for name, value in fields if name != "token"])
            path = "/" if request.method == "POST" else request.url.path
            answer: Response = RedirectResponse(_local(path) + (f"?{left}" if left else ""), 303)
            answer.set_cookie(
                COOKIE, _cookie(self.token), httponly=True, samesite="strict", secure=request.url.scheme == "https"
            )
            return answer
        return None if request.url.path == "/token" and request.method == "GET" else RedirectResponse("/token", 303)


def _is_here(host: str) -> bool:
    """Whether the host of a request, with or without a port, is this machine alone."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    return is_loopback(name)


def _cookie(token: str) -> str:
    """The cookie that the browser stores instead of the token."""
    return hmac.new(token.encode(), b"armillary console", hashlib.sha256).hexdigest()


def _same(shown: str, right: str) -> bool:
    return hmac.compare_digest(shown.encode("utf-8", "surrogatepass"), right.encode("utf-8", "surrogatepass"))


def _local(path: str) -> str:
    """A path on this host: no second slash at the beginning, which a browser would read as another host."""
    return "/" + path.lstrip("/\\")

"""The routes of the server, and the checks on every request: token, host, size, and whether the server is draining."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from armillary.recipe import is_loopback
from armillary.serve.bodies import ChatBody, CompletionBody, read_body, read_object
from armillary.serve.engine import Engine, Live
from armillary.serve.errors import ApiError, DrainingError
from armillary.serve.formats import ChatFormat, CompletionFormat, Format
from armillary.serve.tools import check_template

LARGEST_BODY = 8 * 2**20  # bytes
# Bytes of a body without a grammar that is tokenized in the event loop: a thread would take longer.
_SHORT = 20_000
_PATHS = frozenset({"/v1/models", "/v1/completions", "/v1/chat/completions", "/tokenize", "/health", "/metrics"})
_OPEN = "/health"  # the path that needs no token


@dataclass
class Serving:
    """State shared by the routes: the engine, the model's name and fingerprint, and whether the server is draining."""

    engine: Engine
    model: str
    fingerprint: str
    token: str | None
    created: int
    draining: bool = False


def build_app(serving: Serving) -> ASGIApp:
    """The application."""
    routes = _Routes(serving)
    app = Starlette(
        routes=[
            Route("/v1/models", routes.models),
            Route("/v1/models/{name:path}", routes.model),
            Route("/v1/completions", routes.completions, methods=["POST"]),
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/tokenize", routes.tokenize, methods=["POST"]),
            Route("/health", routes.health),
            Route("/metrics", routes.metrics),
        ],
        exception_handlers={
            ApiError: _refused,
            HTTPException: _no_route,
            ClientDisconnect: _gone,
            Exception: _fault,
        },
    )
    return _Gate(app, serving)


class _Gate:
    """Middleware that checks the token of a request and counts it."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self._app, self._serving = app, serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begun, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = scope["path"] if scope["path"] in _PATHS else "other"
        metrics = self._serving.engine.metrics
        try:
            problem = self._problem(scope)
            if problem is not None:
                await _response(problem)(scope, receive, sending)
            else:
                await self._app(scope, receive, sending)
        finally:
            metrics.requests.labels(path, str(status)).inc()
            metrics.seconds.labels(path).observe(time.monotonic() - begun)

    def _problem(self, scope: Scope) -> ApiError | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        token = self._serving.token
        if token is None:
            # Otherwise a web page in a browser could reach this port under its own host name (DNS rebinding).
            host = headers.get(b"host", b"localhost").decode("latin-1")
            name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
            if not is_loopback(name):
                return ApiError(403, f"the host {name!r} is not this machine; without a token only loopback is served")
            return None
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scope["path"] != _OPEN and not (
            kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), token.encode())
        ):
            return ApiError(401, "this server needs its token: Authorization: Bearer …", code="invalid_api_key")
        return None


class _Routes:
    """The handlers of the paths."""

    def __init__(self, serving: Serving) -> None:
        self._serving, self._engine = serving, serving.engine

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        serving = self._serving
        return {
            "id": serving.model,
            "object": "model",
            "created": serving.created,
            "owned_by": "armillary",
            "max_model_len": self._engine.context,
        }

    async def health(self, _: Request) -> Response:
        engine, draining = self._engine, self._serving.draining
        body = {"status": "draining" if draining else "ok", "running": engine.running, "waiting": engine.waiting}
        return JSONResponse(body, 503 if draining else 200)

    async def metrics(self, _: Request) -> Response:
        return Response(self._engine.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def tokenize(self, request: Request) -> Response:
        document = read_object(await _body(request))
        text, special = document.get("prompt", document.get("content")), document.get("add_special_tokens", True)
        if not isinstance(text, str):
            raise ApiError(400, "prompt is missing; give a text", "prompt")
        tokens = await asyncio.to_thread(self._engine.tokenize, text, bool(special))
        return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": self._engine.context})

    async def completions(self, request: Request) -> Response:
        data = await _body(request)
        body = read_body(data, CompletionBody)
        live = await self._begin(body, len(data))
        form = CompletionFormat(self._serving.model, live, self._serving.fingerprint)
        return await self._answer(request, body, live, form)

    async def chat(self, request: Request) -> Response:
        data = await _body(request)
        body = read_body(data, ChatBody)
        assert isinstance(body, ChatBody), "as asked"
        if body.tool_names:
            problem = check_template(*self._engine.template())
            if problem is not None:
                raise ApiError(400, f"tools: {problem}", "tools")
        live = await self._begin(body, len(data))
        serving = self._serving
        one = body.parallel_tool_calls is False
        form = ChatFormat(serving.model, live, serving.fingerprint, body.tool_names, one)
        return await self._answer(request, body, live, form)

    async def _begin(self, body: CompletionBody | ChatBody, size: int) -> Live:
        """Submit the request to the engine."""
        if self._serving.draining:
            raise DrainingError
        if body.model is not None:
            self._check_model(body.model)
        ask = body.ask(self._engine.context)
        if size <= _SHORT and ask.grammar is None:
            live = self._engine.prepare(ask)
        else:
            live = await asyncio.to_thread(self._engine.prepare, ask)
        self._engine.submit(live)
        return live

    def _check_model(self, name: str) -> None:
        if name != self._serving.model:
            raise ApiError(
                404,
                f"model {name!r} is not served here; this server has {self._serving.model!r}",
                "model",
                "model_not_found",
            )

    async def _answer(self, request: Request, body: CompletionBody | ChatBody, live: Live, form: Format) -> Response:
        if body.stream:
            return StreamingResponse(
                self._events(live, form, body.with_usage),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            )
        whole = asyncio.ensure_future(form.whole())
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((whole, gone), return_when=asyncio.FIRST_COMPLETED)
            if not whole.done():
                raise ClientDisconnect
            return JSONResponse(whole.result())
        finally:
            self._engine.cancel(live)
            for task in (whole, gone):
                task.cancel()

    async def _events(self, live: Live, form: Format, with_usage: bool) -> AsyncIterator[bytes]:
        try:
            async for event in form.events(with_usage):
                yield event
        finally:
            self._engine.cancel(live)


async def _disconnected(request: Request) -> None:
    """Return when the client has disconnected; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
    """The body of a request.

    Raises:
        ApiError: its content type is not JSON, or it is too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # web pages may send other types without a preflight request
        raise ApiError(415, f"the content type is {kind or 'missing'}; send application/json")
    large = ApiError(413, f"the body is larger than {LARGEST_BODY >> 20} MiB", code="body_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > LARGEST_BODY:
        raise large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise large
    return bytes(body)


def _response(error: ApiError) -> Response:
    headers = {} if error.wait_s is None else {"Retry-After": str(error.wait_s)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.to_json(), error.status, headers)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError), "registered for it"
    return _response(error)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for it"
    path, method = request.url.path, request.method
    message = {404: f"there is no {path}", 405: f"{path} does not support {method}"}.get(
        error.status_code, str(error.detail)
    )
    return _response(ApiError(error.status_code, message))


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # the client has disconnected


async def _fault(_: Request, __: Exception) -> Response:
    return _response(ApiError(500, "a bug in the server; its log has the traceback"))

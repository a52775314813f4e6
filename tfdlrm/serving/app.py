"""The REST contract over HTTP: bodies in and out, limits, and the thread pool that keeps the event loop free."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tfdlrm.serving.codec import encode_error
from tfdlrm.serving.errors import StatusError
from tfdlrm.serving.rest import Answer, Rest
from tfdlrm.serving.store import ModelStore

MAX_BODY_BYTES = 64 << 20

_V1 = re.compile(r"/v1/.*", re.IGNORECASE)


def create_app(models: Mapping[str, ModelStore], *, max_body_bytes: int = MAX_BODY_BYTES, threads: int = 8) -> FastAPI:
    """Return the application that serves models over HTTP.

    Everything under `/v1/` is TensorFlow Serving's contract; `GET /healthz` answers 200 when every model has a version
    to serve, else 503.

    Args:
        models: The started stores by model name.
        max_body_bytes: Larger bodies, as sent or after decompression, are answered with 413.
        threads: Requests computed at a time; further ones wait their turn.
    """
    app = FastAPI(title="tfdlrm serving", openapi_url=None)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="predict")
    app.add_middleware(_RestTransport, rest=Rest(models), pool=pool, max_body_bytes=max_body_bytes)

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        versions: dict[str, str | None] = {}
        for name, store in models.items():
            try:
                versions[name] = str(store.servable().version)
            except StatusError:
                versions[name] = None
        ready = None not in versions.values()
        return JSONResponse({"status": "ok" if ready else "unavailable", "models": versions}, 200 if ready else 503)

    @app.exception_handler(404)
    async def not_found(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse("Not Found", 404)

    return app


class _RestTransport:
    """Takes `/v1/` requests out of the way of the router.

    TensorFlow Serving matches the path as it was sent, query string included, and answers its own JSON to any method;
    a router decodes paths first and answers 405. It also saves the router's share of a sub-millisecond answer.
    """

    def __init__(self, app: ASGIApp, rest: Rest, pool: ThreadPoolExecutor, max_body_bytes: int) -> None:
        self._app = app
        self._rest = rest
        self._pool = pool
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _V1.match(scope["path"]):
            await self._app(scope, receive, send)
            return
        answer = await self._answer(scope, receive)
        if answer is None:
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer.body)).encode())]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})

    async def _answer(self, scope: Scope, receive: Receive) -> Answer | None:
        """Return what to send, or None if the client has gone."""
        headers = dict(scope["headers"])
        too_large = Answer(413, encode_error(f"The body must be at most {self._max_body_bytes} bytes"))
        declared = headers.get(b"content-length", b"0")
        if int(declared) > self._max_body_bytes and headers.get(b"expect", b"").lower() == b"100-continue":
            return too_large
        parts: list[bytes] = []
        size = 0
        more = True
        # A client reads its answer only after it has sent its body, so the excess is taken and dropped, within reason.
        while more and size <= 2 * self._max_body_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size <= self._max_body_bytes:
                parts.append(part)
            else:
                parts.clear()
            more = message.get("more_body", False)
        if size > self._max_body_bytes:
            return too_large
        target = scope["raw_path"].decode("latin-1")
        if scope["query_string"]:
            target += "?" + scope["query_string"].decode("latin-1")
        body = b"".join(parts)
        compressed = headers.get(b"content-encoding", b"").lower() == b"gzip"

        def work() -> Answer:
            if not compressed:
                return self._rest.answer(scope["method"], target, body)
            try:
                plain = _gunzip(body, self._max_body_bytes)
            except zlib.error as error:
                return Answer(400, encode_error(f"The body must be gzip as `content-encoding` says. Received: {error}"))
            return too_large if plain is None else self._rest.answer(scope["method"], target, plain)

        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _gunzip(body: bytes, limit: int) -> bytes | None:
    """Decompress, or return None if more than `limit` bytes would come out."""
    stream: Any = zlib.decompressobj(wbits=31)
    plain: bytes = stream.decompress(body, limit)
    if not stream.eof and not stream.unconsumed_tail:
        raise zlib.error("a stream cut short")
    return plain if stream.eof else None

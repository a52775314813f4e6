"""The REST contract over HTTP: bodies in and out, limits, and the thread pool that keeps the event loop free."""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import re
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tfdlrm.serving.budget import Budget, Share, parsed_bytes
from tfdlrm.serving.codec import encode_error
from tfdlrm.serving.deadline import deadline
from tfdlrm.serving.drain import Drain
from tfdlrm.serving.errors import Code, StatusError
from tfdlrm.serving.limits import BODY_BYTES_PER_SECOND, Limits, default_threads
from tfdlrm.serving.note import Note, Observer, current
from tfdlrm.serving.openapi import describe, page
from tfdlrm.serving.rest import Answer, Rest
from tfdlrm.serving.store import ModelStore

_V1 = re.compile(r"/v1/.*", re.IGNORECASE)
_TARGET = re.compile(r"/v1/models/([^/:]+)(?:/(?:versions|labels)/[^/:]+)?(?::(.*)|(/metadata))?", re.IGNORECASE)
_VERBS = ("predict", "classify", "regress")
_REQUEST_ID = re.compile(r"[\w.:/=+@-]{1,128}", re.ASCII)
_PIECE_BYTES = 1 << 20
# The canonical code of an answer of which only the HTTP status is known.
_CODES = {code.http_status: code for code in reversed(Code) if code.http_status != 500} | {
    400: Code.INVALID_ARGUMENT,
    408: Code.DEADLINE_EXCEEDED,
    409: Code.ABORTED,
    413: Code.RESOURCE_EXHAUSTED,
}


@dataclasses.dataclass(frozen=True)
class Carriage:
    """How requests are carried.

    Attributes:
        limits: What one client may ask.
        threads: Requests computed at a time.
        drain: Says when the server is about to end.
        token: What `authorization: Bearer ...` must carry; None for no such rule.
        observers: Told of every request answered.
        metrics_path: Where metrics are shown; None for nowhere.
        metrics_page: Returns them, in Prometheus' text format.
    """

    limits: Limits = dataclasses.field(default_factory=Limits)
    threads: int = dataclasses.field(default_factory=default_threads)
    drain: Drain = dataclasses.field(default_factory=Drain)
    token: bytes | None = None
    observers: Sequence[Observer] = ()
    metrics_path: str | None = None
    metrics_page: Callable[[], bytes] = bytes


def create_app(models: Mapping[str, ModelStore], carriage: Carriage | None = None) -> FastAPI:
    """Return the application that serves models over HTTP.

    Everything under `/v1/` is TensorFlow Serving's contract; `GET /healthz` answers 200 when every model has a version
    to serve and the server is not about to end, else 503. `/openapi.json` and `/docs` describe what can be asked.

    Args:
        models: The started stores by model name.
        carriage: How requests are carried; without limits of its own, the defaults.
    """
    carriage = carriage or Carriage()
    app = FastAPI(title="tfdlrm serving", openapi_url=None, docs_url=None, redoc_url=None)
    work = _Work(carriage.threads, carriage.limits.queued_requests)
    app.add_middleware(_Transport, rest=Rest(models), work=work, carriage=carriage)

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        versions: dict[str, str | None] = {}
        for name, store in models.items():
            try:
                versions[name] = str(store.servable().version)
            except StatusError:
                versions[name] = None
        status = "draining" if carriage.drain.begun else "unavailable" if None in versions.values() else "ok"
        return JSONResponse({"status": status, "models": versions}, 200 if status == "ok" else 503)

    @app.get("/openapi.json")
    def document() -> JSONResponse:
        return JSONResponse(describe(models))

    @app.get("/docs")
    def docs() -> HTMLResponse:
        return HTMLResponse(page(describe(models)))

    if carriage.metrics_path is not None:

        @app.get(carriage.metrics_path)
        def metrics() -> Response:
            return Response(carriage.metrics_page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.exception_handler(404)
    async def not_found(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse("Not Found", 404)

    return app


class _Work:
    """The threads that compute, behind a queue of a size that does not grow."""

    def __init__(self, threads: int, queued: int) -> None:
        self.queued = queued
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="predict")
        self._slots = threading.Semaphore(queued)

    def submit(self, function: Callable[[], Answer]) -> asyncio.Future[Answer] | None:
        """Have a function called by a thread; None where the queue is full."""
        if not self._slots.acquire(blocking=False):
            return None
        outcome: Future[Answer] = Future()

        # Its place is free when a thread has taken it out of the queue and the work has ended, which may be after the
        # client was told that it took too long. The pool's own future would free it where it is cancelled in the queue.
        def run() -> None:
            try:
                if outcome.set_running_or_notify_cancel():
                    outcome.set_result(function())
            except BaseException as error:
                outcome.set_exception(error)
            finally:
                self._slots.release()

        self._pool.submit(run)
        return asyncio.wrap_future(outcome)


class _Transport:
    """Takes `/v1/` requests out of the way of the router.

    TensorFlow Serving matches the path as it was sent, query string included, and answers its own JSON to any method;
    a router decodes paths first and answers 405. It also saves the router's share of a sub-millisecond answer.
    """

    def __init__(self, app: ASGIApp, rest: Rest, work: _Work, carriage: Carriage) -> None:
        self._app = app
        self._rest = rest
        self._work = work
        self._carriage = carriage
        self._limits = carriage.limits
        self._budget = Budget(carriage.limits.queued_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        admitted = self._admits(scope["path"], headers)
        if admitted and not _V1.match(scope["path"]):
            await self._app(scope, receive, send)
            return
        target = scope["raw_path"].decode("latin-1")
        if scope["query_string"]:
            target += "?" + scope["query_string"].decode("latin-1")
        note = _note(scope["method"], target, headers)
        extra: list[tuple[bytes, bytes]] = []
        answer: Answer | None
        if admitted:
            answer = await self._answer(scope["method"], target, headers, receive, note)
        else:
            answer = _refusal(401, "A bearer token is needed")
            extra.append((b"www-authenticate", b"Bearer"))
        if answer is None:
            return
        if note.request_id:
            extra.append((b"x-request-id", note.request_id.encode()))
        code = _CODES.get(answer.status, Code.INTERNAL).name
        for observer in self._carriage.observers:
            observer.answered(note, code, answer.status, time.perf_counter() - started)
        if answer.status == 503:
            extra.append((b"retry-after", b"1"))
        if self._carriage.drain.begun or answer.status in (401, 408):  # a body may be left unread: no second request
            extra.append((b"connection", b"close"))
        head = [(b"content-type", b"application/json"), (b"content-length", str(len(answer.body)).encode()), *extra]
        await send({"type": "http.response.start", "status": answer.status, "headers": head})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})

    def _admits(self, path: str, headers: Mapping[bytes, bytes]) -> bool:
        token = self._carriage.token
        if token is None or path == "/healthz":  # probes carry no secrets, and learn none
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        return hmac.compare_digest(given.strip(), token) and scheme.lower() == b"bearer"

    async def _answer(
        self, method: str, target: str, headers: Mapping[bytes, bytes], receive: Receive, note: Note
    ) -> Answer | None:
        """Return what to send, or None if the client has gone."""
        share = Share(self._budget)
        box: list[bytes] = []  # the body is in here until a thread takes it out: none waits in the queue for nobody
        shared = False
        try:
            received = await self._receive(headers, receive, share)
            if not isinstance(received, bytes):
                return received
            box.append(received)
            del received
            compressed = headers.get(b"content-encoding", b"").lower() == b"gzip"
            seconds = self._limits.answer_seconds
            at = time.monotonic() + seconds if seconds else None
            future = self._work.submit(lambda: self._compute(method, target, box, share, compressed, note, at))
            if future is None:
                return _refusal(503, f"{self._work.queued} requests are waiting already, the most there may be")
            shared = True
            try:
                async with asyncio.timeout(seconds or None):
                    return await future
            except TimeoutError:
                return _refusal(504, f"Timed out after {1000 * seconds:g} ms")
        except asyncio.CancelledError:
            if not self._carriage.drain.begun:
                raise
            return _refusal(503, "The server is ending, and could not wait for this request")
        finally:
            if _taken(box) is not None or not shared:  # else the thread that has the body releases what it takes
                share.release()

    async def _receive(self, headers: Mapping[bytes, bytes], receive: Receive, share: Share) -> bytes | Answer | None:
        """Return the body, or the answer to one that is too large or too slow, or None if the client has gone."""
        limit = self._limits.body_bytes
        declared = headers.get(b"content-length", b"0")
        if int(declared) > limit and headers.get(b"expect", b"").lower() == b"100-continue":
            return self._too_large()
        parts: list[bytes] = []
        size = 0
        more = crowded = False
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(self._limits.receive_seconds) as patience:
                more = True
                # A client reads its answer only after it has sent its body: the excess is taken and dropped, within
                # reason.
                while more and size <= 2 * limit:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    size += len(part)
                    crowded = crowded or not share.add(len(part))
                    if size > limit or crowded:
                        parts.clear()
                        share.release()
                    else:
                        parts.append(part)
                    more = message.get("more_body", False)
                    patience.reschedule(started + self._limits.receive_seconds + size / BODY_BYTES_PER_SECOND)
        except TimeoutError:
            return _refusal(408, f"The body did not come within {self._limits.receive_seconds:g} s")
        if size > limit:
            return self._too_large()
        if crowded:
            return _refusal(503, self._crowded().message)
        return b"".join(parts)

    def _compute(
        self,
        method: str,
        target: str,
        box: list[bytes],
        share: Share,
        compressed: bool,
        note: Note,
        at: float | None,
    ) -> Answer:
        """Run in a thread of the pool."""
        body = _taken(box)
        if body is None:  # given up
            return _refusal(504, "Timed out before the request was computed")
        current.set(note)
        try:
            with deadline(at):
                if compressed:
                    plain = self._gunzip(body, share)
                    if plain is None:
                        return self._too_large()
                    body = plain
                values = sum(body.count(sign) for sign in (b",", b"{", b"["))
                if values > self._limits.body_values:
                    return _refusal(413, f"The body must hold at most {self._limits.body_values} values")
                wanted = parsed_bytes(body)
                if wanted > self._budget.most:
                    return _refusal(413, f"The body would take {wanted} bytes of memory, of {self._budget.most}")
                if not share.add(max(0, wanted - share.size)):
                    raise self._crowded()
                return self._rest.answer(method, target, body)
        except zlib.error as error:
            return _refusal(400, f"The body must be gzip as `content-encoding` says. Received: {error}")
        except StatusError as error:
            return _refusal(error.code.http_status, error.message)
        finally:
            share.release()

    def _gunzip(self, body: bytes, share: Share) -> bytes | None:
        """Decompress, a piece at a time so that memory is asked for before it is taken; None if it is too large."""
        stream: Any = zlib.decompressobj(wbits=31)
        parts: list[bytes] = []
        size = 0
        while not stream.eof:
            part = stream.decompress(body, _PIECE_BYTES)
            body = stream.unconsumed_tail
            if not part and not body and not stream.eof:
                raise zlib.error("a stream cut short")
            size += len(part)
            if size > self._limits.body_bytes:
                return None
            if not share.add(len(part)):
                raise self._crowded()
            parts.append(part)
        return b"".join(parts)

    def _crowded(self) -> StatusError:
        most = self._limits.queued_bytes
        return StatusError(Code.UNAVAILABLE, f"Bodies of {most} bytes are held already, the most there may be")

    def _too_large(self) -> Answer:
        return _refusal(413, f"The body must be at most {self._limits.body_bytes} bytes")


def _taken(box: list[bytes]) -> bytes | None:
    """Return the body that lies in a box and leave the box empty; None where another was first."""
    try:
        return box.pop()
    except IndexError:
        return None


def _refusal(status: int, message: str) -> Answer:
    return Answer(status, encode_error(message))


def _note(method: str, target: str, headers: Mapping[bytes, bytes]) -> Note:
    request_id = headers.get(b"x-request-id", b"").decode("latin-1")
    note = Note("REST", request_id=request_id if _REQUEST_ID.fullmatch(request_id) else "")
    match = _TARGET.fullmatch(target)
    if match is not None:
        model, verb, metadata = match.groups()
        note.model = unquote(model)
        if method == "POST":
            note.verb = verb if verb in _VERBS else ""
        elif method == "GET":
            note.verb = "metadata" if metadata else "status"
    return note

"""Carries gRPC requests as HTTP ones are carried: token, deadline, metrics, log line."""

from __future__ import annotations

import contextlib
import hmac
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from tfdlrm.serving.deadline import deadline
from tfdlrm.serving.errors import StatusError, shown
from tfdlrm.serving.note import Note, Observer, current

_VERBS = {"GetModelMetadata": "metadata", "GetModelStatus": "status", "HandleReloadConfigRequest": "reload"}


class Interceptor(grpc.ServerInterceptor):
    """Wraps every unary call of a `grpc.server(..., interceptors=[Interceptor(...)])`.

    A call is admitted by its headers alone. Its message is read by the thread that computes it, so a client that sends
    none would hold that thread: the wait has an end.
    """

    def __init__(
        self,
        token: bytes | None = None,
        observers: Sequence[Observer] = (),
        most_requests: int | None = None,
        receive_seconds: float = 20.0,
    ) -> None:
        """Take what is carried.

        Args:
            token: What the metadata `authorization: Bearer ...` must carry; None for no such rule.
            observers: Told of every call answered.
            most_requests: Calls in computation or waiting for it; further ones get UNAVAILABLE. None for no bound.
            receive_seconds: A call whose message has not come whole by then, from when its turn came, is cancelled.
        """
        self._token = token
        self._observers = observers
        self._most_requests = most_requests
        self._requests = 0
        self._counting = threading.Lock()
        self._patience = _Patience(receive_seconds)
        self._refusing = ThreadPoolExecutor(1, thread_name_prefix="grpc refusals")

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Return the handler of a call, wrapped."""
        handler = continuation(details)
        if handler is None:
            return None
        metadata = {name: value for name, value in details.invocation_metadata or () if isinstance(value, str)}
        method = details.method.rpartition("/")[2]
        note = Note("GRPC", "", _VERBS.get(method, method.lower()), metadata.get("x-request-id", "")[:128])
        if not self._admits(metadata):
            return self._refusal(note, grpc.StatusCode.UNAUTHENTICATED, "A bearer token is needed")
        if handler.unary_unary is None:
            return handler
        with self._counting:
            full = self._most_requests is not None and self._requests >= self._most_requests
            self._requests += not full
        if full:
            why = f"{self._most_requests} requests are waiting already, the most there may be"
            return self._refusal(note, grpc.StatusCode.UNAVAILABLE, why)

        # As a stream of one message, which is thus read here and not before: also when the client has gone meanwhile,
        # so that every call that was counted is counted off.
        def answer(messages: Iterator[bytes], context: Any) -> Any:
            try:
                return self._answer(handler, note, messages, context)
            finally:
                with self._counting:
                    self._requests -= 1

        return grpc.stream_unary_rpc_method_handler(answer, None, handler.response_serializer)

    def _answer(self, handler: Any, note: Note, messages: Iterator[bytes], context: Any) -> Any:
        started = time.perf_counter()
        token = current.set(note)
        code = grpc.StatusCode.CANCELLED
        try:
            request = self._receive(handler, messages, context)
            code = grpc.StatusCode.UNKNOWN
            note.model = _model(request)
            left = context.time_remaining()
            try:
                with deadline(time.monotonic() + left if left is not None else None):
                    answer = handler.unary_unary(request, context)
            except StatusError as error:
                context.abort(grpc.StatusCode[error.code.name], shown(error.message))
            code = grpc.StatusCode.OK
            return answer
        finally:
            current.reset(token)
            self._tell(note, context.code() or code, started)

    def _receive(self, handler: Any, messages: Iterator[bytes], context: Any) -> Any:
        """Return the message of a call, or end the call."""
        with self._patience.with_call(context):
            sent = next(messages, None)
        if sent is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The call must send a message")
        try:
            return handler.request_deserializer(sent)
        except Exception:  # what protobuf raises differs from one of its implementations to the next
            context.abort(grpc.StatusCode.INTERNAL, "Exception deserializing request!")

    def _refusal(self, note: Note, code: grpc.StatusCode, message: str) -> Any:
        """Return a handler that ends a call and never reads its message."""

        def refuse(messages: Iterator[bytes], context: Any) -> None:
            started = time.perf_counter()
            self._tell(note, code, started)
            context.abort(code, message)

        # Refused at once, not after those that were admitted; a gRPC without this attribute lets the call wait for it.
        refuse.experimental_thread_pool = self._refusing  # type: ignore[attr-defined]
        return grpc.stream_unary_rpc_method_handler(refuse)

    def _tell(self, note: Note, code: grpc.StatusCode, started: float) -> None:
        for observer in self._observers:
            observer.answered(note, code.name, 0, time.perf_counter() - started)

    def _admits(self, metadata: dict[str, str]) -> bool:
        if self._token is None:
            return True
        scheme, _, given = metadata.get("authorization", "").partition(" ")
        return hmac.compare_digest(given.strip().encode(), self._token) and scheme.lower() == "bearer"


class _Patience:
    """Cancels calls whose message does not come; one thread for all of them, as a timer each would be a thread each."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: dict[Any, float] = {}  # calls and when their time is over, the next one first
        self._changing = threading.Lock()
        threading.Thread(target=self._watch, name="grpc patience", daemon=True).start()

    @contextlib.contextmanager
    def with_call(self, call: Any) -> Iterator[None]:
        with self._changing:
            self._waiting[call] = time.monotonic() + self._seconds
        try:
            yield
        finally:
            with self._changing:
                self._waiting.pop(call, None)

    def _watch(self) -> None:
        while True:
            time.sleep(max(self._seconds / 10, 0.01))
            with self._changing:
                late = list(itertools.takewhile(lambda call: self._waiting[call] <= time.monotonic(), self._waiting))
                for call in late:
                    del self._waiting[call]
            for call in late:
                call.cancel()


def _model(request: Any) -> str:
    """Return the name of the model a request asks for; of several, the first."""
    tasks = getattr(request, "tasks", None)
    spec = getattr(tasks[0] if tasks else request, "model_spec", None)
    return str(spec.name) if spec is not None else ""

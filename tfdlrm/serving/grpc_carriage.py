"""Carries gRPC requests as HTTP ones are carried: token, deadline, metrics, log line."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from tfdlrm.serving.deadline import deadline
from tfdlrm.serving.errors import StatusError
from tfdlrm.serving.note import Note, Observer, current

_VERBS = {"GetModelMetadata": "metadata", "GetModelStatus": "status", "HandleReloadConfigRequest": "reload"}


class Interceptor(grpc.ServerInterceptor):
    """Wraps every unary call of a `grpc.server(..., interceptors=[Interceptor(...)])`."""

    def __init__(self, token: bytes | None = None, observers: Sequence[Observer] = ()) -> None:
        """Take what is carried.

        Args:
            token: What the metadata `authorization: Bearer ...` must carry; None for no such rule.
            observers: Told of every call answered.
        """
        self._token = token
        self._observers = observers

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Return the handler of a call, wrapped."""
        handler = continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        metadata = {name: value for name, value in details.invocation_metadata or () if isinstance(value, str)}
        method = details.method.rpartition("/")[2]

        def answer(request: Any, context: Any) -> Any:
            return self._answer(handler.unary_unary, method, metadata, request, context)

        return grpc.unary_unary_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)

    def _answer(
        self, inner: Callable[..., Any], method: str, metadata: dict[str, str], request: Any, context: Any
    ) -> Any:
        started = time.perf_counter()
        note = Note("GRPC", _model(request), _VERBS.get(method, method.lower()), metadata.get("x-request-id", "")[:128])
        left = context.time_remaining()
        token = current.set(note)
        code = grpc.StatusCode.UNKNOWN
        try:
            if not self._admits(metadata):
                code = grpc.StatusCode.UNAUTHENTICATED
                context.abort(code, "A bearer token is needed")
            try:
                with deadline(time.monotonic() + left if left is not None else None):
                    answer = inner(request, context)
            except StatusError as error:
                code = grpc.StatusCode[error.code.name]
                context.abort(code, error.message)
            code = grpc.StatusCode.OK
            return answer
        finally:
            current.reset(token)
            code = context.code() or code
            for observer in self._observers:
                observer.answered(note, code.name, 0, time.perf_counter() - started)

    def _admits(self, metadata: dict[str, str]) -> bool:
        if self._token is None:
            return True
        scheme, _, given = metadata.get("authorization", "").partition(" ")
        return hmac.compare_digest(given.strip().encode(), self._token) and scheme.lower() == "bearer"


def _model(request: Any) -> str:
    """Return the name of the model a request asks for; of several, the first."""
    tasks = getattr(request, "tasks", None)
    spec = getattr(tasks[0] if tasks else request, "model_spec", None)
    return str(spec.name) if spec is not None else ""

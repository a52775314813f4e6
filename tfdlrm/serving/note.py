"""What is known about the request at hand, gathered where it becomes known, for metrics and logs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Protocol

from tfdlrm.serving.servable import Servable, Signature
from tfdlrm.serving.tensors import Array


@dataclasses.dataclass
class Note:
    """One request.

    Attributes:
        entrypoint: "REST" or "GRPC".
        model: The name asked for.
        verb: "predict", "classify", "regress", "multiinference", "metadata" or "status".
        request_id: What the client calls the request, from the header `x-request-id`.
        version: The version that answered; None where none was called.
        rows: Rows computed.
        runtime_seconds: Time in the signature, waiting for a batch included; None where none was called.
    """

    entrypoint: str
    model: str = ""
    verb: str = ""
    request_id: str = ""
    version: int | None = None
    rows: int = 0
    runtime_seconds: float | None = None


class Observer(Protocol):
    """What is told of every request when it has been answered."""

    def answered(self, note: Note, status: str, http_status: int, seconds: float) -> None:
        """Take note.

        Args:
            note: The request.
            status: Name of the canonical code, such as "OK".
            http_status: The HTTP status; 0 over gRPC.
            seconds: From its headers to its answer.
        """


current: ContextVar[Note | None] = ContextVar("note", default=None)


def noted(servable: Servable) -> Servable:
    """Return a servable whose signatures tell the note of the request at hand what they computed."""
    signatures = {name: _NotedSignature(inner, servable.version) for name, inner in servable.signatures.items()}
    return dataclasses.replace(servable, signatures=signatures)


class _NotedSignature(Signature):
    def __init__(self, inner: Signature, version: int) -> None:
        self.__dict__.update(vars(inner))
        self._inner = inner
        self._version = version

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        note = current.get()
        if note is None:
            return self._inner(arrays)
        note.version = self._version
        note.rows += next((len(array) for array in arrays.values() if array.ndim), 0)
        started = time.perf_counter()
        try:
            return self._inner(arrays)
        finally:
            note.runtime_seconds = (note.runtime_seconds or 0.0) + time.perf_counter() - started

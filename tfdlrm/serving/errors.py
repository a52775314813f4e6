"""The status codes of TensorFlow Serving, and the one exception that carries them to either transport."""

from __future__ import annotations

import enum


class Code(enum.IntEnum):
    """Canonical status codes: numbers and names as in gRPC, TensorFlow and the model status messages."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16

    @property
    def http_status(self) -> int:
        """The HTTP status TensorFlow Serving answers with for this code; 500 where it names none."""
        return _HTTP.get(self, 500)


_HTTP = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.FAILED_PRECONDITION: 400,
    Code.OUT_OF_RANGE: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.ABORTED: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}

_SHOWN_BYTES = 1024


class StatusError(Exception):
    """A request that cannot be answered: a code for the machine, a message for the caller."""

    def __init__(self, code: Code, message: str) -> None:
        """Keep both parts.

        Args:
            code: What kind of failure; decides the HTTP status.
            message: What the caller reads.
        """
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message


def invalid(message: str) -> StatusError:
    """Return the error for a request the caller must change (HTTP 400)."""
    return StatusError(Code.INVALID_ARGUMENT, message)


def shown(message: str) -> str:
    """Return what of a message a gRPC status can carry: headers bear a few kilobytes, escapes included.

    >>> len(shown("x" * 20_000))
    1024
    """
    return message.encode("utf-8", "replace")[:_SHOWN_BYTES].decode("utf-8", "ignore")

"""The time by which the request at hand must be answered, known to whatever computes it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar

from tfdlrm.serving.errors import Code, StatusError

_LONGEST = 3600.0 * 24 * 365  # gRPC has a number for "no deadline" that no clock can wait for

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextlib.contextmanager
def deadline(at: float | None) -> Iterator[None]:
    """Compute the body of the `with` by a time.

    Args:
        at: A time of `time.monotonic()`, in seconds; None for no end.

    Raises:
        StatusError: The time has passed already; the body is not run.
    """
    if at is not None and time.monotonic() >= at:
        raise exceeded()
    token = _deadline.set(at)
    try:
        yield
    finally:
        _deadline.reset(token)


def seconds_left() -> float | None:
    """Return how long the request may still take, in seconds; None for as long as it needs."""
    at = _deadline.get()
    left = None if at is None else max(0.0, at - time.monotonic())
    return None if left is None or left > _LONGEST else left


def exceeded() -> StatusError:
    """Return the error of a request whose time has passed (HTTP 504)."""
    return StatusError(Code.DEADLINE_EXCEEDED, "Timed out before the request was computed")

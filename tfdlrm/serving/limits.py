"""What one client may ask of the server: bytes, values, time, and a place in the queue."""

from __future__ import annotations

import dataclasses
import os


def default_threads() -> int:
    """Return how many requests are computed at a time where no flag says: four for each core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 4 * cores


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of the server.

    Attributes:
        body_bytes: Larger bodies, as sent or after decompression, are answered with 413.
        body_values: Bodies with more commas, `{` and `[` together are answered with 413 before they are parsed.
        queued_requests: Requests in computation or waiting for it; further ones are answered with 503.
        queued_bytes: Bytes held at a time, over all requests: of bodies, and while they are computed of what they hold
            uncompressed and parsed, as `parsed_bytes` estimates it: up to thirty times the text. Those that would go
            beyond get 503, those that would alone 413.
        answer_seconds: A request not answered by then gets 504; 0 for no such time.
        receive_seconds: Seconds for the headers of a request, and again for its body, plus one for each 100,000 bytes.
        idle_seconds: Seconds a connection may rest between two requests; more than clients keep idle ones (5 s is
            usual), or a request may meet a connection that is just being closed.
        connections: Open connections; further ones get 503 and are closed.
    """

    body_bytes: int = 63_999_999  # 64 MB are too many
    body_values: int = 10_000_000
    queued_requests: int = 1000
    queued_bytes: int = 512 << 20
    answer_seconds: float = 30.0
    receive_seconds: float = 20.0
    idle_seconds: float = 30.0
    connections: int = 4096


BODY_BYTES_PER_SECOND = 100_000


def open_files(connections: int) -> None:
    """Let the process hold that many connections open, as far as the system allows it."""
    try:
        import resource
    except ModuleNotFoundError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 512  # a model's files, listeners, the pipes of the loop
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

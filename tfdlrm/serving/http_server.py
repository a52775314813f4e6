"""The HTTP server: uvicorn with clocks on slow clients, a bound on connections, and an end in three steps."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tfdlrm.serving.drain import Drain
from tfdlrm.serving.limits import BODY_BYTES_PER_SECOND, Limits, open_files

_LOG = logging.getLogger(__name__)
_LAST_REQUESTS_SECONDS = 2.0
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class _Connection(H11Protocol):
    """One connection; headers that do not arrive or an answer that is not read in time end it.

    Either would hold it for ever otherwise.
    """

    def __init__(self, *args: Any, limits: Limits, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits = limits
        self._patience: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._begun = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Whatever the client has not yet taken pauses the writing, so that the clock runs; also after `close`, which
        # waits for it without end.
        transport.set_write_buffer_limits(high=1, low=0)
        if len(self.connections) > self._limits.connections:
            transport.write(_TOO_MANY)
            transport.close()
            return
        self._start_clock()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        self._begun = True
        if before is None or before.response_complete:
            self._start_clock()
        super().data_received(data)
        if self.cycle is not before:
            self._stop_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        self._stop_reading()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reading is None:
            left = self.transport.get_write_buffer_size()
            seconds = self._limits.receive_seconds + left / BODY_BYTES_PER_SECOND
            self._reading = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_reading()
        super().resume_writing()

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _start_clock(self) -> None:
        if self._patience is None:  # a byte now and then does not wind it up again
            self._patience = self.loop.call_later(self._limits.receive_seconds, self._give_up)

    def _stop_clock(self) -> None:
        self._begun = False
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            if self._begun:
                self.transport.write(_TOO_SLOW)
            self.transport.close()


class HttpServer(uvicorn.Server):
    """Serves an application until SIGTERM or SIGINT; `run(sockets=[listener])` does the whole of it."""

    def __init__(self, app: Any, limits: Limits, drain: Drain, ready: Callable[[], None], **options: Any) -> None:
        """Take what it needs.

        Args:
            app: The ASGI application.
            limits: Those of connections are kept here.
            drain: How to end.
            ready: Called when connections are accepted.
            options: Further ones of `uvicorn.Config`, such as those of TLS.
        """
        protocol: Any = functools.partial(_Connection, limits=limits)
        open_files(limits.connections)
        config = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_keep_alive=limits.idle_seconds,  # type: ignore[arg-type]  # handed on to the loop's clock
            timeout_graceful_shutdown=drain.seconds,  # type: ignore[arg-type]  # likewise
            **options,
        )
        super().__init__(config)
        self._drain = drain
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: `/healthz` says 503, then nothing new is taken, then what was accepted is finished."""
        self._drain.begun = True
        await asyncio.sleep(self._drain.delay_seconds)
        end = time.monotonic() + self._drain.seconds
        for server in self.servers:
            server.close()
        others: list[threading.Event] = [stop(self._drain.seconds) for stop in self._drain.stops]
        # A client may just have sent its next request on a connection that looks idle from here. Answers now close
        # their connection, so those of busy clients are soon gone; the others are closed after a moment.
        moment = time.monotonic() + min(_LAST_REQUESTS_SECONDS, self._drain.seconds)
        while self.server_state.connections and time.monotonic() < moment:
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)
        for other in others:
            await asyncio.to_thread(other.wait, max(0.0, end - time.monotonic()))

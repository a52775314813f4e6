"""The flags that say how the server carries requests; those that TensorFlow Serving has bear its names."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdlrm.serving import flag_types, security
from tfdlrm.serving.drain import Drain
from tfdlrm.serving.limits import Limits, default_threads
from tfdlrm.spec import arguments
from tfdlrm.spec.errors import ConfigError

if TYPE_CHECKING:  # reading flags needs no TensorFlow
    from tfdlrm.serving.app import Carriage
    from tfdlrm.serving.note import Observer
    from tfdlrm.serving.servable import Servable

_LOG = logging.getLogger(__name__)
_BATCHING_THREADS = 64

Loader = Callable[[Path, int], "Servable"]


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags to the parser of the server."""
    limits, drain = Limits(), Drain()

    def switch(group: Any, name: str, text: str) -> None:
        group.add_argument(
            name, type=flag_types.switch, nargs="?", const=True, default=False, metavar="true|false", help=text
        )

    batching = parser.add_argument_group("batching")
    switch(batching, "--enable_batching", "compute the rows of requests that wait together")
    batching.add_argument(
        "--batching_parameters_file", type=Path, metavar="FILE", help="BatchingParameters in protobuf text form"
    )

    add = parser.add_argument_group("limits").add_argument
    add(
        "--rest_api_num_threads",
        type=arguments.positive,
        metavar="N",
        help="HTTP requests computed at a time (default: 4 a core)",
    )
    add(
        "--rest_api_timeout_in_ms",
        type=arguments.natural,
        default=int(1000 * limits.answer_seconds),
        metavar="MS",
        help="a request not answered by then gets 504; 0 for no such time (default: %(default)s)",
    )
    for flag, name, text in (
        ("--max_body_bytes", "body_bytes", "larger bodies get 413"),
        ("--max_body_values", "body_values", "bodies of more commas and brackets get 413"),
        ("--max_queued_requests", "queued_requests", "requests in computation or waiting; further ones get 503"),
        (
            "--max_queued_bytes",
            "queued_bytes",
            "bytes of bodies held at a time, parsed ones by an estimate; beyond them 503",
        ),
        ("--max_connections", "connections", "open connections; further ones get 503"),
    ):
        add(
            flag,
            type=arguments.positive,
            default=getattr(limits, name),
            metavar="N",
            help=f"{text} (default: %(default)s)",
        )
    add(
        "--receive_timeout_seconds",
        type=flag_types.seconds,
        default=limits.receive_seconds,
        metavar="S",
        help="for the headers of a request, again for its body, again for reading the answer (default: %(default)s)",
    )
    add(
        "--idle_timeout_seconds",
        type=flag_types.seconds,
        default=limits.idle_seconds,
        metavar="S",
        help="an idle connection is closed (default: %(default)s)",
    )
    add(
        "--drain_delay_seconds",
        type=flag_types.seconds,
        default=drain.delay_seconds,
        metavar="S",
        help="at the end, /healthz says 503 for so long before new requests are refused (default: %(default)s)",
    )
    add(
        "--drain_seconds",
        type=flag_types.seconds,
        default=drain.seconds,
        metavar="S",
        help="at the end, time for accepted requests (default: %(default)s)",
    )

    add = parser.add_argument_group("security").add_argument
    add("--auth_token_file", type=Path, metavar="FILE", help="holds the bearer token every request must carry")
    add("--rest_tls_cert_file", type=Path, metavar="FILE", help="PEM certificate: HTTPS instead of HTTP")
    add("--rest_tls_key_file", type=Path, metavar="FILE", help="its PEM key")
    add("--ssl_config_file", type=Path, metavar="FILE", help="SSLConfig in protobuf text form: TLS for gRPC")

    watching = parser.add_argument_group("metrics and logs")
    add = watching.add_argument
    add("--monitoring_config_file", type=Path, metavar="FILE", help="MonitoringConfig in protobuf text form")
    switch(watching, "--json_logs", "log lines are JSON objects")
    switch(watching, "--access_log", "a log line for each request")
    add(
        "--access_log_share",
        type=flag_types.share,
        default=1.0,
        metavar="F",
        help="share of requests that get a line (default: %(default)s)",
    )


class Transport:
    """How the server carries requests, read from the flags before any model is.

    Attributes:
        limits: What one client may ask.
        drain: How the server ends; a gRPC server joins with `drain.add(server.stop)`.
        token: The bearer token, or None.
        tls: uvicorn's options for HTTPS.
        grpc_tls: Key and certificate for gRPC, or None for a plain port.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        """Read flags and the files they name.

        Raises:
            ConfigError: Flags that do not go together, or a file that holds what it should not.
        """
        if args.batching_parameters_file is not None and not args.enable_batching:
            raise ConfigError(
                "`batching_parameters_file` must come with --enable_batching. "
                f"Received: {args.batching_parameters_file} alone"
            )
        self.limits = Limits(
            body_bytes=args.max_body_bytes,
            body_values=args.max_body_values,
            queued_requests=args.max_queued_requests,
            queued_bytes=args.max_queued_bytes,
            answer_seconds=args.rest_api_timeout_in_ms / 1000,
            receive_seconds=args.receive_timeout_seconds,
            idle_seconds=args.idle_timeout_seconds,
            connections=args.max_connections,
        )
        self.drain = Drain(args.drain_delay_seconds, args.drain_seconds)
        self.token = security.read_token(args.auth_token_file) if args.auth_token_file else None
        self.tls = security.rest_tls(args.rest_tls_cert_file, args.rest_tls_key_file)
        self.grpc_tls = security.read_ssl_config(args.ssl_config_file) if args.ssl_config_file else None
        self._args = args
        self._metrics_path: str | None = None
        if args.monitoring_config_file is not None:
            try:
                from tfdlrm.serving.metrics import read_monitoring_config
            except ModuleNotFoundError as error:
                needs = "`monitoring_config_file` needs `pip install tfdlrm[serving]`"
                raise ConfigError(f"{needs}. Received: {error}") from error
            self._metrics_path = read_monitoring_config(args.monitoring_config_file)
        self._metrics: Any = None
        self._observers: list[Observer] = []

    @property
    def scheme(self) -> str:
        """What the address of the HTTP server begins with."""
        return "https" if self.tls else "http"

    def warn(self, address: str) -> None:
        """Say so where a server that anyone may ask is about to listen beyond this machine."""
        if self.token is None and not security.is_loopback(address):
            _LOG.warning("listening on %s, beyond this machine, without --auth_token_file: anyone may ask", address)

    def prepare(self, load: Loader, models: Container[str]) -> tuple[Loader, Carriage]:
        """Return the loader of versions and what carries requests to them.

        Args:
            load: Loads a plain servable from a version directory and its number.
            models: The models' names; asked once requests come.

        Raises:
            ConfigError: The batching parameters are wrong.
        """
        from tfdlrm.serving.app import Carriage
        from tfdlrm.serving.batching import Batcher, BatchingParameters, read_parameters
        from tfdlrm.serving.note import noted

        args = self._args
        parameters = None
        if args.enable_batching:
            file = args.batching_parameters_file
            parameters = read_parameters(file) if file is not None else BatchingParameters()
        if self._metrics_path is not None:
            from tfdlrm.serving.metrics import Metrics

            self._metrics = Metrics(models.__contains__, parameters.thread_pool_name if parameters is not None else "")
            self._observers.append(self._metrics)
        if args.access_log:
            from tfdlrm.serving.logs import AccessLog

            self._observers.append(AccessLog(args.access_log_share))
        batcher = Batcher(parameters, self._metrics) if parameters is not None else None

        def load_carried(path: Path, version: int) -> Servable:
            servable = load(path, version)
            if batcher is not None:
                servable = batcher.batched(servable)
            return noted(servable) if self._observers else servable

        # A request that waits for a batch holds a thread: with few of them there would be nothing to gather.
        usual = default_threads() if batcher is None else max(_BATCHING_THREADS, default_threads())
        carriage = Carriage(
            limits=self.limits,
            threads=args.rest_api_num_threads or usual,
            drain=self.drain,
            token=self.token,
            observers=self._observers,
            metrics_path=self._metrics_path,
            metrics_page=self._metrics.page if self._metrics is not None else bytes,
        )
        return load_carried, carriage

    def grpc_interceptors(self) -> list[Any]:
        """Return what a `grpc.server` takes as `interceptors`; to be called after `prepare`."""
        from tfdlrm.serving.grpc_carriage import Interceptor

        limits = self.limits
        return [Interceptor(self.token, self._observers, limits.queued_requests, limits.receive_seconds)]

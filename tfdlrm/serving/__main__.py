"""`python -m tfdlrm.serving --model_name N --model_base_path P`: serve a model as TensorFlow Serving would."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from urllib.parse import quote

from tfdlrm.serving import logs, transport_flags
from tfdlrm.serving.store import ModelStore, require_versions
from tfdlrm.spec.errors import ConfigError, UserError

_LAST_SECONDS = 2.0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; flags that TensorFlow Serving has too carry its names and mean the same."""
    parser = argparse.ArgumentParser("python -m tfdlrm.serving", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--model_name", type=_name, default="default", help="name in request paths (default: %(default)s)"
    )
    parser.add_argument(
        "--model_base_path", type=Path, required=True, help="directory that holds the versions: <path>/<number>/"
    )
    parser.add_argument("--rest_api_port", type=_port, default=8501, help="HTTP port (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument(
        "--file_system_poll_wait_seconds",
        type=_seconds,
        default=1.0,
        help="seconds between two looks for new versions; 0 looks once, at the start (default: %(default)s)",
    )
    transport_flags.add(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until SIGTERM or SIGINT; requests already accepted are answered first.

    Args:
        argv: The arguments; those of the process where None.

    Returns:
        0 after an orderly end, 2 where the cause lies with the arguments.
    """
    args = build_parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    logs.set_up(args.json_logs)
    try:
        _serve(args)
    except UserError as error:
        print(f"tfdlrm.serving: {error}", file=sys.stderr)
        return 2
    return 0


def _serve(args: argparse.Namespace) -> None:
    transport = transport_flags.Transport(args)
    listener = _bind(args.host, args.rest_api_port)
    transport.warn(listener.getsockname()[0])
    require_versions(args.model_base_path)  # said before TensorFlow takes its seconds to import
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        from tfdlrm.serving.app import create_app
        from tfdlrm.serving.http_server import HttpServer
        from tfdlrm.serving.servable import load_servable
    except ModuleNotFoundError as error:
        raise ConfigError(f"the server needs `pip install tfdlrm[serving]`. Received: {error}") from error
    # What was imported lives as long as the process: collections for replaced versions need not look at it again.
    gc.collect()
    gc.freeze()
    stores: dict[str, ModelStore] = {}
    load, carriage = transport.prepare(load_servable, stores)
    store = ModelStore(args.model_name, args.model_base_path, load, args.file_system_poll_wait_seconds)
    store.start()
    stores[args.model_name] = store
    app = create_app(stores, carriage)

    def ready() -> None:
        host = f"[{args.host}]" if ":" in args.host else args.host
        path = f"/v1/models/{quote(args.model_name, safe='')}"
        print(f"tfdlrm.serving: REST on {transport.scheme}://{host}:{args.rest_api_port}{path}", flush=True)

    server = HttpServer(app, carriage.limits, carriage.drain, ready, **transport.tls)
    try:
        server.run(sockets=[listener])
    except OSError as error:
        if server.started:
            raise
        # Another process began to listen while the model was loaded.
        raise _taken(args.host, args.rest_api_port, error) from error
    finally:
        store.stop()


def _bind(host: str, port: int) -> socket.socket:
    """Take the port before the model is loaded; connections are refused until the server listens."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise _taken(host, port, error) from error
    return listener


def _taken(host: str, port: int, error: OSError) -> ConfigError:
    reason = error.strerror or str(error)
    return ConfigError(f"`host` and `rest_api_port` must be free to listen on: {reason}. Received: {host}:{port}")


def _leave(number: int, frame: FrameType | None) -> None:
    """End in order: an orderly end is no failure, so the status is 0 and not that of a killed process."""
    raise SystemExit(0)


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"must be from 1 to 65535. Received: {text}")
    return port


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 0. Received: {text}")
    return seconds


def _run() -> int:
    """Return the exit code of the process, and see to it that the process ends with it.

    A thread may still compute a request that was given up; Python would wait for it for ever.
    """
    try:
        code = main()
    except SystemExit as end:  # from a signal, or from wrong arguments
        code = int(end.code or 0)
    timer = threading.Timer(_LAST_SECONDS, os._exit, [code])
    timer.daemon = True
    timer.start()
    return code


if __name__ == "__main__":
    sys.exit(_run())

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
from importlib.util import find_spec
from types import FrameType
from typing import TYPE_CHECKING
from urllib.parse import quote

from tfdlrm.serving import flag_types, logs, model_flags, transport_flags
from tfdlrm.spec.errors import ConfigError, UserError
from tfdlrm.spec.quiet_import import import_quietly, quieten_tensorflow

if TYPE_CHECKING:
    from tfdlrm.serving.app import Carriage
    from tfdlrm.serving.models import Models

_LAST_SECONDS = 2.0
_EXAMPLES = """examples:
  # the versions of one model, REST on 8501 and gRPC on 8500
  {0} --model_name demo --model_base_path saved_models/demo
  # several models, with metrics, and rows that wait together computed together
  {0} --model_config_file models.config --monitoring_config_file monitoring.config --enable_batching
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; flags that TensorFlow Serving has too carry its names and mean the same."""
    program = "tfdlrm serve" if os.environ.get("TFDLRM_PROGRAM") else "python -m tfdlrm.serving"
    parser = argparse.ArgumentParser(
        program,
        description=__doc__,
        epilog=_EXAMPLES.format(program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    model_flags.add(parser)
    parser.add_argument("--rest_api_port", type=flag_types.port, default=8501, help="HTTP port (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
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
    listener = _bind("rest_api_port", args.host, args.rest_api_port)
    transport.warn(listener.getsockname()[0])
    if args.port:
        if find_spec("tensorflow_serving") is None:
            raise ConfigError(f"`port` needs `pip install tfdlrm[serving]`: without it no gRPC. Received: {args.port}")
        _bind("port", args.host, args.port).close()  # gRPC takes it again, and says less about why it cannot
    settings = model_flags.settings_of(args)  # what is wrong there is said before TensorFlow takes its seconds
    quieten_tensorflow()
    # TensorFlow imports Keras where it finds it, a fifth of the time that the import takes; no SavedModel needs it.
    sys.modules.setdefault("tf_keras", None)  # type: ignore[arg-type]
    import_quietly("tensorflow")
    from tfdlrm.serving.app import create_app
    from tfdlrm.serving.http_server import HttpServer
    from tfdlrm.serving.servable import load_servable
    from tfdlrm.serving.warmup import warmed

    # What was imported lives as long as the process: collections for replaced versions need not look at it again.
    gc.collect()
    gc.freeze()
    models = model_flags.make_models(args)
    iterations = max(args.num_request_iterations_for_warmup, 1)
    load = warmed(load_servable, iterations) if args.enable_model_warmup else load_servable
    load, carriage = transport.prepare(load, models)
    model_flags.start_models(args, models, settings, load)
    app = create_app(models, carriage)
    address = f"[{args.host}]" if ":" in args.host else args.host
    if args.port:
        _start_grpc(args, transport, carriage, models, address)

    def ready() -> None:
        names = [quote(one.name, safe="") for one in settings]
        path = f"/v1/models/{names[0] if len(names) == 1 else '{' + ','.join(names) + '}'}"
        print(f"tfdlrm.serving: REST on {transport.scheme}://{address}:{args.rest_api_port}{path}", flush=True)
        if args.port:
            print(f"tfdlrm.serving: gRPC on {address}:{args.port}", flush=True)

    server = HttpServer(app, carriage.limits, carriage.drain, ready, **transport.tls)
    try:
        server.run(sockets=[listener])
    except OSError as error:
        if server.started:
            raise
        # Another process began to listen while the model was loaded.
        raise _taken("rest_api_port", args.host, args.rest_api_port, error) from error
    finally:
        models.stop()


def _start_grpc(
    args: argparse.Namespace, transport: transport_flags.Transport, carriage: Carriage, models: Models, address: str
) -> None:
    from tfdlrm.serving.grpc_api import create_grpc_server

    # A request that waits for a batch holds a thread.
    threads = max(args.grpc_max_threads, carriage.threads) if args.enable_batching else args.grpc_max_threads
    try:
        server = create_grpc_server(
            models,
            f"{address}:{args.port}",
            threads=threads,
            credentials=transport.grpc_tls.credentials() if transport.grpc_tls is not None else None,
            interceptors=transport.grpc_interceptors(),
        )
    except RuntimeError as error:  # another process took the port while the model was loaded
        raise ConfigError(f"`port` must be free to listen on. Received: {address}:{args.port}") from error
    server.start()
    carriage.drain.add(server.stop)


def _bind(flag: str, host: str, port: int) -> socket.socket:
    """Take the port before the model is loaded; connections are refused until the server listens."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise _taken(flag, host, port, error) from error
    return listener


def _taken(flag: str, host: str, port: int, error: OSError) -> ConfigError:
    reason = error.strerror or str(error)
    return ConfigError(f"`host` and `{flag}` must be free to listen on: {reason}. Received: {host}:{port}")


def _leave(number: int, frame: FrameType | None) -> None:
    """End in order: an orderly end is no failure, so the status is 0 and not that of a killed process."""
    raise SystemExit(0)


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

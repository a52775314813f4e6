"""`python -m tfdlrm.serving` as a process of its own, on a free port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO

from tfdlrm.distribute.processes import tied
from tfdlrm.serving.client import PredictClient
from tfdlrm.spec.errors import MachineError

_ROOT = Path(__file__).resolve().parents[2]
_STOP_SECONDS = 40


class ServerStartError(MachineError):
    """A server that has not come up: nothing is known of what it would have answered."""


class LocalServer:
    """A server for the versions of one model; it runs inside the `with` block.

    Args:
        model_name: Name in request paths.
        base: Folder of the versions.
        log_file: Where its output goes.
        flags: More flags of the server.
        grpc: Whether it speaks gRPC, too. Defaults to `False`.

    Attributes:
        url: Scheme, host and port of REST.
        grpc_target: Host and port of gRPC.
    """

    def __init__(
        self, model_name: str, base: Path, log_file: Path, flags: Sequence[str] = (), grpc: bool = False
    ) -> None:
        port, grpc_port = _free_ports(2)
        self.url, self.grpc_target = f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}"
        self._log_file = log_file
        self._command = [
            *(sys.executable, "-m", "tfdlrm.serving", "--model_name", model_name),
            *("--model_base_path", str(base), "--rest_api_port", str(port), "--file_system_poll_wait_seconds", "0"),
            *("--port", str(grpc_port if grpc else 0)),
            *flags,
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> LocalServer:
        paths = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "-1"}
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        self._log = self._log_file.open("wb")
        self._process = subprocess.Popen(
            tied(self._command, signal.SIGTERM),  # no server is left behind, however this process dies
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._log is not None:
            self._log.close()

    def wait_until_ready(self, client: PredictClient, timeout: float = 600) -> None:
        """Return as soon as the model can be asked.

        Raises:
            ServerStartError: the server has ended, or is not ready in time.
        """
        end = time.monotonic() + timeout
        while True:
            try:
                client.wait_until_ready(timeout=0.5)
                return
            except TimeoutError as error:
                if self._process is None or self._process.poll() is not None:
                    raise ServerStartError(f"the server has ended; its output is in {self._log_file}.") from None
                if time.monotonic() > end:
                    raise ServerStartError(
                        f"the server is not ready: {error}. Its output is in {self._log_file}."
                    ) from None


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]

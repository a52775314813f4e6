"""Small SavedModels and a real server process for the serving tests."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from tests.forks import Forks
from tests.serving.fixtures import write_model

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`python -m tfdlrm.serving` in a process of its own, ready when constructed."""

    def __init__(self, forks: Forks, base_path: Path | None, log: Path, *flags: str) -> None:
        self.port = free_port()
        self.grpc_port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.grpc_address = f"127.0.0.1:{self.grpc_port}"
        served = [] if base_path is None else ["--model_base_path", base_path]
        self.log = log
        out = log.with_name(f"{log.stem}-out.txt")
        out.write_bytes(b"")
        self.process = forks.start(
            *("-m", "tfdlrm.serving", "--model_name", "m", *served),
            *("--rest_api_port", self.port, "--port", self.grpc_port, *flags),
            env={"TF_CPP_MIN_LOG_LEVEL": "3"},
            log=log,
            out=out,
        )
        while "\n" not in (said := out.read_text()):
            if self.process.poll() is not None:
                pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")
            time.sleep(0.01)
        self.ready_line = said[: said.index("\n") + 1]
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def terminate(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()


@dataclasses.dataclass(frozen=True)
class OtherServer:
    """A server that runs already and holds the fixture models."""

    url: str
    grpc_address: str | None


@pytest.fixture(scope="session")
def other_server() -> OtherServer | None:
    """The server named by `make serve-check`; None where the tests start their own."""
    url = os.environ.get("TFDLRM_SERVE_URL")
    return OtherServer(url, os.environ.get("TFDLRM_SERVE_GRPC") or None) if url else None


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture model as version 1 of a model."""
    path = tmp_path_factory.mktemp("models") / "m" / "1"
    write_model(path)
    return path


@pytest.fixture(scope="session")
def make_model() -> Callable[..., None]:
    return write_model


@pytest.fixture(scope="session")
def server(model_path: Path, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the fixture model for every test that changes nothing."""
    server = Server(forks, model_path.parent, tmp_path_factory.mktemp("server") / "log.txt")
    yield server
    server.close()


@pytest.fixture
def start_server(tmp_path: Path, forks: Forks, other_server: OtherServer | None) -> Iterator[Callable[..., Server]]:
    """Return a function that starts a server for one test."""
    if other_server is not None:
        pytest.skip("needs a server of its own, not the one that was named")
    started: list[Server] = []

    def start(base_path: Path | None, *flags: str) -> Server:
        started.append(Server(forks, base_path, tmp_path / f"log{len(started)}.txt", *flags))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    """Return a channel to the server of the fixture model."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.grpc_address, options) as channel:
        yield channel


@pytest.fixture(scope="module")
def service(channel: grpc.Channel) -> prediction_service_pb2_grpc.PredictionServiceStub:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def models(channel: grpc.Channel) -> model_service_pb2_grpc.ModelServiceStub:
    return model_service_pb2_grpc.ModelServiceStub(channel)

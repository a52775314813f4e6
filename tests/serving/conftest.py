"""Small SavedModels and a real server process for the serving tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]


def write_model(path: Path, offset: float = 2.0) -> None:
    """Write a SavedModel with a signature for each shape of the contract; `offset` tells versions apart."""
    import tensorflow as tf

    class Fixture(tf.Module):
        def __init__(self) -> None:
            self.offset = tf.Variable(offset)

    model = Fixture()
    signatures = {}

    def signature(name: str, **inputs: tf.TensorSpec) -> Callable[[Callable], None]:
        def add(function: Callable) -> None:
            specs = {key: tf.TensorSpec(spec.shape, spec.dtype, key) for key, spec in inputs.items()}
            signatures[name] = tf.function(function).get_concrete_function(**specs)

        return add

    floats, ints, strings = (tf.TensorSpec([None], dtype) for dtype in (tf.float32, tf.int64, tf.string))

    @signature("serving_default", x=floats)
    def half_plus_offset(x):
        return {"y": x * 0.5 + model.offset}

    @signature("matrix", x=tf.TensorSpec([None, 2], tf.float32))
    def matrix(x):
        return {"y": x * 2.0}

    @signature("anything", x=tf.TensorSpec(None, tf.float32))
    def anything(x):
        return {"y": tf.identity(x)}

    @signature(
        "mixed",
        age=floats,
        price=floats,
        city=strings,
        country=strings,
        clicks=ints,
        member=tf.TensorSpec([None], tf.bool),
        level=tf.TensorSpec([None], tf.int32),
    )
    def mixed(age, price, city, country, clicks, member, level):
        total = age + 10.0 * price + 100.0 * tf.cast(clicks, tf.float32) + 1000.0 * tf.cast(level, tf.float32)
        return {
            "total": tf.where(member, total, -total),
            "place": tf.strings.join([city, country], ", "),
        }

    @signature("two", x=floats)
    def two(x):
        return {"twice": x * 2.0, "whole": tf.cast(x, tf.int64)}

    @signature("scalar", x=floats)
    def scalar(x):
        return {"sum": tf.reduce_sum(x)}

    @signature("none_left", x=floats)
    def none_left(x):
        return {"y": x[:0]}

    @signature("uneven", x=floats)
    def uneven(x):
        return {"a": x, "b": x[1:]}

    @signature("count", i=ints)
    def count(i):
        return {"i": i}

    @signature("text", s=strings)
    def text(s):
        return {"s": s}

    @signature("binary", s=strings)
    def binary(s):
        return {"s_bytes": s}

    @signature("pick", i=tf.TensorSpec([None], tf.int32))
    def pick(i):
        return {"y": tf.gather(tf.constant([10.0, 20.0, 30.0]), i)}

    @signature("half", x=tf.TensorSpec([None], tf.float16))
    def half(x):
        return {"y": tf.cast(x, tf.float32)}

    @signature("to_half", x=floats)
    def to_half(x):
        return {"y": tf.cast(x, tf.float16)}

    @signature("slow", steps=tf.TensorSpec([None], tf.int32))
    def slow(steps):
        """A matrix product after another, so that the time it takes can be chosen."""
        one = tf.eye(64)
        product = tf.while_loop(
            lambda i, m: i < steps[0], lambda i, m: (i + 1, tf.linalg.matmul(m, one)), [tf.constant(0), one]
        )[1]
        return {"y": tf.reshape(product[0, 0], [1])}

    path.parent.mkdir(parents=True, exist_ok=True)
    tf.saved_model.save(model, str(path), signatures=signatures)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`python -m tfdlrm.serving` in a process of its own, ready when constructed."""

    def __init__(self, base_path: Path, log: Path, *flags: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "tfdlrm.serving", "--model_name", "m", "--model_base_path", str(base_path)]
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [*command, "--rest_api_port", str(self.port), *flags],
                cwd=ROOT,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.ready_line = self.process.stdout.readline()
        if not self.ready_line:
            pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def terminate(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


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
def server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the fixture model for every test that changes nothing."""
    server = Server(model_path.parent, tmp_path_factory.mktemp("server") / "log.txt")
    yield server
    server.close()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Return a function that starts a server for one test."""
    started: list[Server] = []

    def start(base_path: Path, *flags: str) -> Server:
        started.append(Server(base_path, tmp_path / f"log{len(started)}.txt", *flags))
        return started[-1]

    yield start
    for server in started:
        server.close()

"""Versions that come while a server runs, and requests that are on their way while it does something else."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest


def publish(base: Path, source: Path, version: int) -> None:
    shutil.copytree(source, base / f".{version}.tmp")
    (base / f".{version}.tmp").rename(base / str(version))


def wait_for(server, version: int, state: str) -> dict:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for status in server.client.get("/v1/models/m").json()["model_version_status"]:
            if (status["version"], status["state"]) == (str(version), state):
                return status
        time.sleep(0.05)
    pytest.fail(f"version {version} did not become {state}")


def ask_slow(server, sent: threading.Event) -> httpx.Response:
    """Ask for what takes long; `sent` is set once the whole body is on its way."""

    def body() -> Iterator[bytes]:
        yield b'{"signature_name": "slow", '
        yield b'"instances": [100000]}'
        sent.set()

    return httpx.post(f"{server.url}/v1/models/m:predict", content=body(), timeout=60)


@contextmanager
def taken_port() -> Iterator[int]:
    """Yield a port that something else listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]

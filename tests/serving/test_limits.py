"""What one client may ask of a real server: bytes, values, depth, time, connections, a place in the queue."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

PREDICT = "/v1/models/m:predict"
ONE = {"instances": [1.0]}
HEAD = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\n"


def slow(steps: int) -> dict:
    """Return a body that takes a while: about a second for 100,000 steps."""
    return {"signature_name": "slow", "instances": [steps]}


def rss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("no VmRSS")


@pytest.fixture(scope="module")
def limited(model_path, forks, tmp_path_factory) -> Iterator:
    """A server with tight limits, for every test that leaves it as it was."""
    from tests.serving.conftest import Server

    flags = {
        "--max_body_bytes": 4_000_000,
        "--max_body_values": 1000,
        "--max_connections": 20,
        "--receive_timeout_seconds": 1,
        "--idle_timeout_seconds": 1,
        "--rest_api_timeout_in_ms": 1500,
        "--rest_api_num_threads": 2,
        "--max_queued_requests": 4,
        "--max_queued_bytes": 8_000_000,
    }
    words = [str(word) for pair in flags.items() for word in pair]
    server = Server(forks, model_path.parent, tmp_path_factory.mktemp("limited") / "log.txt", *words)
    yield server
    server.close()


@pytest.fixture
def dial(limited) -> Iterator[Callable[[], socket.socket]]:
    """Return a function that opens a connection of bytes."""
    opened = []

    def connect() -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", limited.port), timeout=20))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()
    wait_until_idle(limited)


def wait_until_idle(server) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            if httpx.post(f"{server.url}{PREDICT}", json=ONE, timeout=20).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail("the server did not come to rest")


def read_all(connection: socket.socket) -> bytes:
    """Return what comes until the server closes the connection."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def test_a_body_of_too_many_bytes(limited):
    response = limited.client.post(PREDICT, content=b" " * 4_000_001)
    assert (response.status_code, response.json()["error"]) == (413, "The body must be at most 4000000 bytes")
    assert limited.client.post(PREDICT, json=ONE).status_code == 200


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_body_of_too_many_values(limited, pack):
    headers = {"content-encoding": "gzip"} if pack is gzip.compress else {}

    def status(count: int) -> int:
        body = pack(json.dumps({"instances": [1.0] * count}).encode())
        return limited.client.post(PREDICT, content=body, headers=headers).status_code

    assert status(1001) == 200
    assert status(1002) == 413


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"instances":[', b'{"instances":[{"x":'])
def test_a_body_nested_too_deep(limited, opening):
    response = limited.client.post(PREDICT, content=opening * 100_000)
    assert response.status_code == 400
    assert "error" in response.json()
    assert limited.client.post(PREDICT, json=ONE).status_code == 200


def test_the_time_of_a_request(limited):
    started = time.monotonic()
    response = limited.client.post(PREDICT, json=slow(400_000))
    assert (response.status_code, response.json()["error"]) == (504, "Timed out after 1500 ms")
    assert time.monotonic() - started < 10
    wait_until_idle(limited)


def test_a_connection_that_says_nothing_is_closed(dial):
    connection = dial()
    started = time.monotonic()
    assert read_all(connection) == b""
    assert 0.5 < time.monotonic() - started < 10


@pytest.mark.parametrize("before", [b"", HEAD])
def test_headers_that_trickle(dial, before):
    connection = dial()
    connection.sendall(before)
    started = time.monotonic()
    connection.settimeout(0.1)
    found = b""
    while time.monotonic() - started < 15:
        try:
            connection.sendall(b"X" if not found else b"")
            part = connection.recv(65536)
        except TimeoutError:
            continue
        except OSError:
            break
        if not part:
            break
        found += part
    assert time.monotonic() - started < 10
    assert found.startswith(b"HTTP/1.1 408 ")


def test_headers_that_trickle_after_an_answer(dial):
    connection = dial()
    body = json.dumps(ONE).encode()
    connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    answer = b""
    while not answer.endswith(b"}"):  # headers and body may come apart
        answer += connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200 ")
    connection.sendall(HEAD)
    assert read_all(connection).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_trickles(dial):
    connection = dial()
    connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
    answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'{"error": "The body did not come within 1 s"}' in answer


def test_expect_100_continue(dial):
    connection = dial()
    body = json.dumps(ONE).encode()
    connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
    assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
    connection.sendall(body)
    assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_too_many_connections(limited, dial):
    with httpx.Client(base_url=limited.url, timeout=20) as client:
        assert client.post(PREDICT, json=ONE).status_code == 200
        held = [dial() for _ in range(40)]
        time.sleep(0.2)
        assert client.post(PREDICT, json=ONE).status_code == 200  # who is connected is not put out by who comes
    refused = [answer for answer in map(read_all, held) if answer.startswith(b"HTTP/1.1 503 ")]
    assert len(refused) >= 20
    wait_until_idle(limited)


def test_a_full_queue(limited):
    """Four requests that take long fill the queue; those that come meanwhile are refused at once, and none is lost."""
    wait_until_idle(limited)

    def ask(_: int) -> tuple[int, float]:
        started = time.monotonic()
        with httpx.Client(base_url=limited.url, timeout=60) as client:
            response = client.post(PREDICT, json=slow(40_000))
            if response.status_code == 503:
                assert response.headers["retry-after"] == "1"
                assert response.json()["error"] == "4 requests are waiting already, the most there may be"
            return response.status_code, time.monotonic() - started

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(16)))
    statuses = [status for status, _ in answers]
    assert set(statuses) <= {200, 503, 504}
    assert statuses.count(503) >= 8
    wait_until_idle(limited)


def test_a_full_queue_has_bounded_memory(limited):
    """16 bodies of 3 MB at a time are 48 MB; what the server holds of them stays near its bound of 8 MB."""
    wait_until_idle(limited)
    body = b'{"instances": [1.0]}' + b" " * 3_000_000
    assert httpx.post(f"{limited.url}{PREDICT}", content=body, timeout=20).status_code == 200
    before = rss_bytes(limited.process.pid)
    peak = before
    blocker = ThreadPoolExecutor(4)
    held = [blocker.submit(limited.client.post, PREDICT, json=slow(40_000)) for _ in range(4)]

    def ask(_: int) -> int:
        try:
            return httpx.post(f"{limited.url}{PREDICT}", content=body, timeout=20).status_code
        except httpx.TransportError:  # the connections are limited too
            return 0

    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(ask, n) for n in range(64)]
        while not all(future.done() for future in asked):
            peak = max(peak, rss_bytes(limited.process.pid))
            time.sleep(0.02)
    blocker.shutdown()
    assert {future.result() for future in asked} <= {0, 200, 408, 503, 504}
    assert 503 in {future.result() for future in asked}
    assert all(future.result().status_code in (200, 503, 504) for future in held)
    assert peak - before < 64 << 20, f"{(peak - before) >> 20} MB"
    wait_until_idle(limited)


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "%2e%2e",
        "..%2f..%2fetc%2fpasswd",
        "m%00",
        "%2e%2e%2fm",
        "m%2f1",
        "\\..\\m",
        "m%0d%0aX:1",
        "%ff",
        "m%20",
    ],
)
def test_path_tricks_in_model_names(limited, name):
    """Names are looked up, never joined to a path: they find nothing."""
    for tail in (":predict", "", "/metadata", "/versions/1:predict"):
        method = "POST" if tail.endswith("predict") else "GET"
        with socket.create_connection(("127.0.0.1", limited.port), timeout=20) as connection:
            body = json.dumps(ONE).encode() if method == "POST" else b""
            head = f"{method} /v1/models/{name}{tail} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            answer = read_all(connection)
        assert answer.split(b" ")[1] in (b"400", b"404"), answer
        assert b"root:" not in answer

"""What one client may ask of a real server: bytes, values, depth, time, connections, a place in the queue."""

from __future__ import annotations

import gzip
import json
import os
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tfdlrm.serving.budget import parsed_bytes
from tfdlrm.serving.codec import parse_predict

MODEL = "/v1/models/m"
PREDICT = f"{MODEL}:predict"
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
def dial(limited, dial_to) -> Iterator[Callable[[], socket.socket]]:
    """Return a function that opens a connection of bytes."""
    yield lambda: dial_to(limited)
    wait_until_idle(limited)


@pytest.fixture
def dial_to() -> Iterator[Callable[..., socket.socket]]:
    """Return a function that opens a connection of bytes to a server."""
    opened = []

    def connect(server) -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", server.port), timeout=20))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


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

    # The commas between the values, one bracket and one brace.
    assert status(999) == 200
    assert status(1000) == 413


def test_a_body_of_too_many_objects_or_lists(limited):
    for one in ("{}", "[]"):
        body = '{"instances": [' + ",".join([one] * 600) + "]}"
        assert limited.client.post(PREDICT, content=body).status_code == 413
        body = '{"instances": [' + ",".join([one] * 400) + "]}"
        assert limited.client.post(PREDICT, content=body).status_code == 400


def test_the_largest_body_by_default(server):
    """One of 64 MB is too large, and one byte less is not."""
    body = json.dumps(ONE).encode()
    response = server.client.post(PREDICT, content=body.ljust(64_000_000))
    assert (response.status_code, response.json()["error"]) == (413, "The body must be at most 63999999 bytes")
    assert server.client.post(PREDICT, content=body.ljust(63_999_999)).json() == {"predictions": [2.5]}


ROW = {"age": 1, "price": 2.5, "city": "ab", "country": "cd", "clicks": 3, "member": True, "level": 4}


@pytest.mark.parametrize(
    "value",
    [
        [{"a": 1}] * 20_000,
        [{}] * 20_000,
        [[]] * 20_000,
        [[[[1]]]] * 20_000,
        [0.5] * 50_000,
        [12345678901] * 50_000,
        ["ab"] * 50_000,
        [ROW] * 10_000,
        [{"b64": "aGk="}] * 10_000,
        [{f"feature{i}": 0.25 for i in range(39)}] * 1000,
    ],
    ids=["dicts", "empty_dicts", "empty_lists", "nested", "floats", "ints", "strings", "rows", "bytes", "wide"],
)
def test_the_memory_of_a_parsed_body_is_not_underestimated(value):
    body = json.dumps({"instances": value}, separators=(",", ":")).encode()
    tracemalloc.start()
    try:
        kept = parse_predict(body)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept.document["instances"] == value
    assert taken <= parsed_bytes(body) <= 6 * taken + 1000


def test_what_a_compressed_body_becomes_counts(start_server, model_path, dial_to):
    server = start_server(model_path.parent, "--max_queued_bytes", "2000000", "--receive_timeout_seconds", "10")

    def ask(size: int) -> httpx.Response:
        body = gzip.compress(json.dumps(ONE).encode().ljust(size))
        assert len(body) < 10_000
        return server.client.post(PREDICT, content=body, headers={"content-encoding": "gzip"})

    assert ask(1_500_000).status_code == 200
    assert ask(3_000_000).status_code == 503  # beyond the bound before it is whole
    many = server.client.post(PREDICT, content=json.dumps({"instances": [{}] * 10_000}))
    assert (many.status_code, "of memory" in many.json()["error"]) == (413, True)
    held = dial_to(server)
    held.sendall(HEAD + b"Content-Length: 1000001\r\n\r\n" + b" " * 1_000_000)
    time.sleep(0.3)
    crowded = ask(1_500_000)
    assert (crowded.status_code, crowded.headers["retry-after"]) == (503, "1")
    assert crowded.json()["error"] == "Bodies of 2000000 bytes are held already, the most there may be"
    held.close()
    time.sleep(0.3)
    assert ask(1_500_000).status_code == 200  # what was held has been given back


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"instances":[', b'{"instances":[{"x":'])
def test_a_body_nested_too_deep(server, opening):
    response = server.client.post(PREDICT, content=opening * 100_000)
    assert response.status_code == 400
    assert "error" in response.json()
    assert server.client.post(PREDICT, json=ONE).status_code == 200


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


@pytest.fixture
def busy(start_server, model_path) -> Iterator[Callable[..., object]]:
    """Return a function that starts a server whose one thread is busy until the end of the test."""
    pools = []

    def start(*flags: str) -> object:
        server = start_server(model_path.parent, "--rest_api_num_threads", "1", "--max_body_bytes", "4000000", *flags)
        warm = json.dumps(ONE).encode().ljust(4_000_000)
        assert server.client.post(PREDICT, content=warm).status_code == 200
        pools.append(ThreadPoolExecutor(1))
        pools[-1].submit(httpx.post, f"{server.url}{PREDICT}", json=slow(1_000_000_000), timeout=60)
        time.sleep(0.3)
        return server

    yield start
    for pool in pools:
        pool.shutdown(wait=False, cancel_futures=True)


def test_a_full_queue(busy):
    """What comes while the queue is full is refused at once: nothing that is in it will end during this test."""
    server = busy("--max_queued_requests", "1", "--rest_api_timeout_in_ms", "0")
    for _ in range(12):
        response = server.client.post(PREDICT, json=ONE)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.json()["error"] == "1 requests are waiting already, the most there may be"


def flood(server, clients: int, requests: int) -> tuple[set[int], int]:
    """Send bodies of 4 MB; return the statuses of the answers and by how many bytes the server grew."""
    body = json.dumps(ONE).encode().ljust(4_000_000)
    peak = before = rss_bytes(server.process.pid)

    def ask(_: int) -> int:
        return client.post(f"{server.url}{PREDICT}", content=body).status_code

    limits = httpx.Limits(max_connections=clients)
    with httpx.Client(timeout=30, limits=limits) as client, ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(ask, n) for n in range(requests)]
        while not all(future.done() for future in asked):
            peak = max(peak, rss_bytes(server.process.pid))
            time.sleep(0.02)
    return {future.result() for future in asked}, peak - before


def test_a_full_queue_has_bounded_memory(busy):
    """50 bodies of 4 MB at a time are 200 MB; what the server holds of them stays near its bound of 16 MB."""
    server = busy("--max_queued_bytes", "16000000", "--rest_api_timeout_in_ms", "4000")
    statuses, grown = flood(server, 50, 50)
    assert statuses == {503, 504}
    assert grown < 100 << 20, f"{grown >> 20} MB"


def test_requests_that_were_given_up_keep_no_memory(busy):
    """60 bodies of 4 MB, 5 at a time, all given up while they wait for a thread: 240 MB that nobody asks for."""
    server = busy("--max_queued_bytes", "24000000", "--rest_api_timeout_in_ms", "200")
    statuses, grown = flood(server, 5, 60)
    assert statuses == {504}
    assert grown < 100 << 20, f"{grown >> 20} MB"


def test_a_client_that_does_not_read_its_answers(start_server, model_path):
    """It is cut off; one that reads gets everything."""
    server = start_server(model_path.parent, "--receive_timeout_seconds", "1")
    # More than the system's buffers hold: the last of them is told to close.
    size = len(server.client.get(f"{MODEL}/metadata").content)
    count = 16_000_000 // size
    get = f"GET {MODEL}/metadata HTTP/1.1\r\nHost: x\r\n"
    server.client.close()

    def ask() -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        connection.sendall((get + "\r\n").encode() * (count - 1) + (get + "Connection: close\r\n\r\n").encode())
        return connection

    with ask() as connection:
        assert len(read_all(connection)) > count * size
    with ask() as connection:
        time.sleep(0.2)
        assert len(connections_of(server)) == 1
        end = time.monotonic() + 15
        while connections_of(server):
            assert time.monotonic() < end
            time.sleep(0.1)
        assert len(read_all(connection)) < count * size


def connections_of(server) -> list[str]:
    """Return the server's ends of the connections to its HTTP port that its process still holds."""
    sockets = {os.readlink(file) for file in Path(f"/proc/{server.process.pid}/fd").iterdir() if file.is_symlink()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    end = f":{server.port:04X}"
    return [row[9] for row in rows if row[1].endswith(end) and row[3] != "0A" and f"socket:[{row[9]}]" in sockets]


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

"""A client that asks again: of a server that refuses, hangs up, is not there, and within its budget."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tfdlrm.serving import PredictClient, PredictError, Retries
from tfdlrm.serving.retries import Budget

QUICK = Retries(first_seconds=0.001, longest_seconds=0.002)


class Moody(ThreadingHTTPServer):
    """Does to each question in turn what `moods` says: a status, or `"hang up"`; 200 once they are used up."""

    daemon_threads = True

    def __init__(self) -> None:
        self.moods: list[int | str] = []
        self.asked: list[dict[str, str]] = []
        self.retry_after: str | None = None
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Moody

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append({name.lower(): value for name, value in self.headers.items()})
        mood = self.server.moods.pop(0) if self.server.moods else 200
        if mood == "hang up":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = json.dumps({"outputs": [1.5]} if mood == 200 else {"error": f"mood {mood}"}).encode()
        self.send_response(int(mood))
        self.send_header("content-length", str(len(body)))
        if self.server.retry_after is not None:
            self.send_header("retry-after", self.server.retry_after)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def moody() -> Iterator[Moody]:
    server = Moody()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def client(moody: Moody, **arguments: Any) -> PredictClient:
    return PredictClient(f"http://127.0.0.1:{moody.server_address[1]}", "m", **{"retries": QUICK, **arguments})


@pytest.mark.parametrize("moods", [[503], [429, 503, 503], ["hang up"], ["hang up", 503]], ids=str)
def test_a_question_is_asked_again(moody: Moody, moods: list[int | str]) -> None:
    moody.moods = list(moods)
    with client(moody) as asking:
        assert asking.predict(columns=[1.0]).tolist() == [1.5]
    assert len(moody.asked) == len(moods) + 1


@pytest.mark.parametrize("status", [400, 404, 413, 500, 501, 504])
def test_other_refusals_are_final(moody: Moody, status: int) -> None:
    moody.moods = [status]
    with client(moody) as asking, pytest.raises(PredictError, match=f"{status}: mood {status}"):
        asking.predict(columns=[1.0])
    assert len(moody.asked) == 1


def test_the_last_refusal_is_told(moody: Moody) -> None:
    moody.moods = [503] * 9
    with client(moody) as asking, pytest.raises(PredictError, match="503: mood 503"):
        asking.predict(columns=[1.0])
    assert len(moody.asked) == 4
    with client(moody, retries=Retries(attempts=1)) as asking, pytest.raises(PredictError):
        asking.predict(columns=[1.0])
    assert len(moody.asked) == 5


def test_a_server_that_is_down_uses_up_the_budget(moody: Moody) -> None:
    moody.moods = [503] * 100
    with client(moody, retries=Retries(first_seconds=1e-4, longest_seconds=1e-4, tokens=8)) as asking:
        for _ in range(10):
            with pytest.raises(PredictError):
                asking.predict(columns=[1.0])
    # Four tokens of eight are gone after one question; from then on each is asked once.
    assert len(moody.asked) == 4 + 9


def test_nobody_there(moody: Moody) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with PredictClient(f"http://127.0.0.1:{port}", "m", retries=QUICK) as asking, pytest.raises(httpx.ConnectError):
        asking.predict(columns=[1.0])


def test_a_question_that_timed_out_is_not_asked_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connections: list[socket.socket] = []
        accepting = threading.Thread(target=lambda: connections.append(silent.accept()[0]), daemon=True)
        accepting.start()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with PredictClient(url, "m", timeout=0.2, retries=QUICK) as asking, pytest.raises(httpx.ReadTimeout):
            asking.predict(columns=[1.0])
        accepting.join()
        silent.settimeout(0.1)
        with pytest.raises(TimeoutError):
            silent.accept()
        for connection in connections:
            connection.close()


def test_the_server_says_how_long_to_wait(moody: Moody) -> None:
    moody.moods, moody.retry_after = [503], "1"
    with client(moody, retries=Retries(first_seconds=0.001, longest_seconds=0.3)) as asking:
        begun = time.monotonic()
        asking.predict(columns=[1.0])
    assert time.monotonic() - begun >= 0.3


def test_the_token_is_sent(moody: Moody) -> None:
    with client(moody, token="secret") as asking:
        asking.predict(columns=[1.0])
    with client(moody) as asking:
        asking.predict(columns=[1.0])
    assert [headers.get("authorization") for headers in moody.asked] == ["Bearer secret", None]


def test_answers_fill_the_budget_again() -> None:
    budget = Budget(Retries(tokens=4, token_ratio=0.5))
    assert [budget.failed() for _ in range(3)] == [True, False, False]
    for _ in range(4):
        budget.answered()
    assert [budget.failed() for _ in range(2)] == [False, False]
    for _ in range(100):
        budget.answered()
    assert budget.failed()


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"attempts": 6}, {"first_seconds": 0.0}, {"tokens": -1}], ids=str)
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        Retries(**wrong)


def test_grpc_takes_the_same_settings() -> None:
    config = json.loads(Retries().service_config())
    assert config["retryThrottling"] == {"maxTokens": 20, "tokenRatio": 0.1}
    (method,) = config["methodConfig"]
    assert method["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert "methodConfig" not in json.loads(Retries(attempts=1).service_config())

"""How a real server ends: what was accepted is answered, nothing new is taken, health says so first."""

from __future__ import annotations

import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.serving.published import ask_slow

PREDICT = "/v1/models/m:predict"


def slow(steps: int) -> dict:
    return {"signature_name": "slow", "instances": [steps]}


def refuses(port: int) -> bool:
    """Whether nothing listens on a port any more."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_sigterm_under_load(model_path, start_server):
    """Sixteen clients ask without a pause; each request that the server took is answered, and well."""
    server = start_server(model_path.parent)
    wrong: list[object] = []
    answered = []
    lock = threading.Lock()

    def ask(number: int) -> None:
        count = 0
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while True:
                events: list[str] = []
                trace = {"trace": lambda name, _, seen=events: seen.append(name)}
                try:
                    response = client.post(PREDICT, json={"instances": [float(number)]}, extensions=trace)
                except (httpx.ConnectError, httpx.ReadError) as error:
                    # Refused; or the system had taken a new connection that the server did not take before it ceased to
                    # listen. On a connection that the server had taken, no request that was sent may be lost.
                    new = "connection.connect_tcp.started" in events
                    sent = "http11.send_request_headers.started" in events
                    if not terminated.is_set() or (sent and not (new and refuses(server.port))):
                        wrong.append((error, events))
                    break
                except httpx.TransportError as error:
                    wrong.append((error, events))
                    break
                if (response.status_code, response.text) != (200, f'{{"predictions": [{number * 0.5 + 2.0}]}}'):
                    wrong.append(response.text)
                count += 1
        with lock:
            answered.append(count)

    terminated, sent = threading.Event(), threading.Event()

    with ThreadPoolExecutor(17) as pool:
        clients = [pool.submit(ask, number) for number in range(16)]
        late = pool.submit(ask_slow, server, sent)
        assert sent.wait(30)
        time.sleep(0.5)
        assert not late.done()
        terminated.set()
        assert server.terminate() == 0
        for client in clients:
            client.result(30)
        assert late.result().json() == {"predictions": [1.0]}
    assert wrong == []
    assert len(answered) == 16
    assert sum(answered) > 16


def test_a_client_just_answered_may_ask_once_more(model_path, start_server):
    """On its own connection, which the server does not close at once: it cannot know what is on its way."""
    server = start_server(model_path.parent)
    question = {"instances": [2.0]}
    with httpx.Client(base_url=server.url, timeout=30) as client:
        assert client.post(PREDICT, json=question).headers.get("connection") != "close"
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.9)
        assert refuses(server.port)
        last = client.post(PREDICT, json=question)
    assert (last.json(), last.headers["connection"]) == ({"predictions": [3.0]}, "close")
    assert server.process.wait(30) == 0


def test_health_turns_first_and_new_connections_are_refused(model_path, start_server):
    server = start_server(model_path.parent, "--drain_delay_seconds", "1.5")
    assert server.client.get("/healthz").json()["status"] == "ok"
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(httpx.post, f"{server.url}{PREDICT}", json=slow(200_000), timeout=60)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 1
        while (health := httpx.get(f"{server.url}/healthz")).status_code == 200:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        answer = httpx.post(f"{server.url}{PREDICT}", json={"instances": [2.0]})
        assert answer.json() == {"predictions": [3.0]}
        assert answer.headers["connection"] == "close"
        end = time.monotonic() + 5
        while True:
            try:
                socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
            except ConnectionRefusedError:
                break
            assert time.monotonic() < end
            time.sleep(0.02)
        assert not late.done()  # refused while what was accepted is still being computed
        assert late.result().json() == {"predictions": [1.0]}
    assert server.process.wait(30) == 0


def test_the_time_to_end_is_bounded(model_path, start_server):
    server = start_server(model_path.parent, "--drain_seconds", "1", "--rest_api_timeout_in_ms", "0")
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(httpx.post, f"{server.url}{PREDICT}", json=slow(1_000_000_000), timeout=60)
        time.sleep(0.5)
        started = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - started < 8
        assert late.result().status_code == 503
        assert "is ending" in late.result().json()["error"]

"""Many clients and many versions at a real server: every answer its own, none mixed, none lost.

With TFDLRM_SOAK set: 1,000 clients instead of 50, 20 versions instead of 5.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from tests.serving.published import publish, wait_for

SOAK = bool(os.environ.get("TFDLRM_SOAK"))
CLIENTS = int(os.environ.get("TFDLRM_CLIENTS", 1000 if SOAK else 50))
VERSIONS = int(os.environ.get("TFDLRM_VERSIONS", 20 if SOAK else 5))
PREDICT = "/v1/models/m:predict"


def body_of(client: int, number: int) -> dict:
    """Return a body that no other client sends; it has one to seven rows."""
    rows = 1 + (client + number) % 7
    return {"instances": [client + number / 16 + row / 256 for row in range(rows)]}


def is_answer(response: httpx.Response, body: dict) -> bool:
    """Whether these are the values the model gives, as 32-bit floats."""
    expected = np.float32(body["instances"]) * np.float32(0.5) + np.float32(2.0)
    return response.status_code == 200 and np.array_equal(np.float32(response.json()["predictions"]), expected)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("batching", [False, True], ids=["plain", "batching"])
def test_every_client_gets_its_own_answers(batching, model_path, start_server, tmp_path):
    """All clients are connected at the same time, each sends one request after another; serial answers are known."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2 * CLIENTS + 512)), hard))
    # A thousand clients share one process and two cores with the server: a pause between two requests may be long.
    flags = ["--max_queued_requests", str(2 * CLIENTS), "--idle_timeout_seconds", "120"]
    flags += ["--receive_timeout_seconds", "120"]
    if batching:
        (tmp_path / "batching").write_text(
            "max_batch_size { value: 32 } allowed_batch_sizes: [8, 32] max_enqueued_batches { value: 10000 }"
        )
        flags += ["--enable_batching", "--batching_parameters_file", str(tmp_path / "batching")]
    server = start_server(model_path.parent, *flags)
    assert is_answer(server.client.post(PREDICT, json=body_of(3, 4)), body_of(3, 4))
    connected = 0

    async def run() -> None:
        nonlocal connected
        together = asyncio.Barrier(CLIENTS)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as http:

            async def client(number: int) -> None:
                nonlocal connected
                await together.wait()
                connected += 1
                for turn in range(5):
                    body = body_of(number, turn)
                    response = await http.post(PREDICT, json=body)
                    assert is_answer(response, body), response.text

            async with asyncio.TaskGroup() as group:
                for number in range(CLIENTS):
                    group.create_task(client(number))

    asyncio.run(run())
    assert connected == CLIENTS


@pytest.mark.timeout(900)
def test_versions_change_under_load(model_path, make_model, start_server, tmp_path):
    """Each answer is wholly that of one version, and nobody sees an error, not even of a version half written."""
    base, other = tmp_path / "m", tmp_path / "other"
    make_model(other, offset=100.0)
    shutil.copytree(model_path, base / "1")
    server = start_server(base, "--file_system_poll_wait_seconds", "0.1", "--enable_batching")
    stop = threading.Event()
    numbers = range(3, VERSIONS + 3)

    def ask(number: int) -> list[tuple[int, str]]:
        seen: list[tuple[int, str]] = []
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not stop.is_set():
                response = client.post(PREDICT, content=b'{"instances": [0.0, 2.0, 4.0]}')
                found = (response.status_code, response.text)
                if not seen or seen[-1] != found:
                    seen.append(found)
        return seen

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, number) for number in range(4)]
        try:
            shutil.copytree(other, base / ".half")
            whole = (base / ".half" / "saved_model.pb").read_bytes()
            (base / ".half" / "saved_model.pb").write_bytes(whole[: len(whole) // 2])
            (base / ".half").rename(base / "2")
            assert wait_for(server, 2, "END")["status"]["error_code"] != "OK"
            for version in numbers:
                publish(base, other if version % 2 else model_path, version)
                wait_for(server, version, "AVAILABLE")
        finally:
            stop.set()
        histories = [future.result(60) for future in asking]
    texts = ['{"predictions": [2.0, 3.0, 4.0]}', '{"predictions": [100.0, 101.0, 102.0]}']
    order = [(200, texts[0])] + [(200, texts[version % 2]) for version in numbers]
    for history in histories:
        assert set(history) <= set(order)
        assert len(history) <= len(order)  # a version that has been replaced does not come back
        assert history[-1] == order[-1]

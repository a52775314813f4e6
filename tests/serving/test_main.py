"""The command: its life from the first line to the exit code, and what it says to wrong arguments."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.serving.published import ask_slow, publish, taken_port, wait_for
from tfdlrm.serving.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


def test_ready_line(server):
    assert server.ready_line == f"tfdlrm.serving: REST on {server.url}/v1/models/m\n"


def test_new_versions_under_load_and_an_orderly_end(model_path, make_model, start_server, tmp_path):
    """One server through its life: a broken version, new ones under load, and SIGTERM with a request on its way."""
    base = tmp_path / "m"
    publish(base, model_path, 1)
    other = tmp_path / "other"
    make_model(other, offset=100.0)
    server = start_server(base, "--file_system_poll_wait_seconds", "0.1")
    stop = threading.Event()

    def ask() -> set[tuple[int, str]]:
        """Return every different answer; a reply mixed from two versions would be one of its own."""
        answers = set()
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not stop.is_set():
                response = client.post("/v1/models/m:predict", content=b'{"instances": [0.0, 2.0]}')
                answers.add((response.status_code, response.text))
        return answers

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        (base / "2").mkdir()
        assert wait_for(server, 2, "END")["status"]["error_code"] == "NOT_FOUND"
        assert server.client.get("/healthz").json()["models"] == {"m": "1"}
        for version, source in ((3, other), (4, model_path), (5, other)):
            publish(base, source, version)
            wait_for(server, version, "AVAILABLE")
        stop.set()
        seen = set().union(*(future.result() for future in asking))
    assert seen == {(200, '{"predictions": [2.0, 3.0]}'), (200, '{"predictions": [100.0, 101.0]}')}
    assert server.client.post("/v1/models/m:predict", content=b'{"instances": [0.0]}').json() == {
        "predictions": [100.0]
    }

    with ThreadPoolExecutor(1) as pool:
        sent = threading.Event()

        slow = pool.submit(ask_slow, server, sent)
        assert sent.wait(30)
        time.sleep(0.3)
        assert not slow.done()
        assert server.terminate() == 0
        assert slow.result().json() == {"predictions": [1.0]}
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/healthz")


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tfdlrm.serving", "--port", "0", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def one_line(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_a_missing_path_is_one_line(tmp_path):
    line = one_line(run("--model_base_path", str(tmp_path / "nowhere"), "--rest_api_port", "18599"))
    assert line == f"tfdlrm.serving: `model_base_path` must be a directory. Received: {tmp_path / 'nowhere'}\n"


def test_a_taken_port_is_one_line(model_path):
    with taken_port() as port:
        line = one_line(run("--model_base_path", str(model_path.parent), "--rest_api_port", str(port)))
    assert f"Address already in use. Received: 127.0.0.1:{port}" in line


def test_a_taken_grpc_port_is_one_line(model_path):
    with taken_port() as port:
        line = one_line(run("--model_base_path", str(model_path.parent), "--port", str(port)))
    assert f"`host` and `port` must be free to listen on: Address already in use. Received: 127.0.0.1:{port}" in line


def test_a_host_of_no_address_is_one_line(model_path):
    line = one_line(run("--model_base_path", str(model_path.parent), "--host", "256.0.0.1"))
    assert "`host` and `rest_api_port` must be free to listen on" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --model_base_path --model_config_file is required"),
        (["--model_base_path", ".", "--model_config_file", "x"], "not allowed with argument --model_base_path"),
        (["--model_base_path", ".", "--max_num_load_retries", "-1"], "must be at least 0. Received: -1"),
        (
            ["--model_base_path", ".", "--allow_version_labels_for_unavailable_models=maybe"],
            "must be true or false. Received: maybe",
        ),
        (["--model_base_path", ".", "--rest_api_port", "0"], "must be from 1 to 65535. Received: 0"),
        (["--model_base_path", ".", "--rest_api_port", "http"], "invalid"),
        (["--model_base_path", ".", "--file_system_poll_wait_seconds", "-1"], "must be at least 0. Received: -1"),
        (["--model_base_path", ".", "--file_system_poll_wait_seconds", "nan"], "must be at least 0"),
        (["--model_base_path", ".", "--model_name", ""], "must not be empty"),
        (["--model_base_path", ".", "--port", "65536"], "must be from 0 to 65535. Received: 65536"),
        (["--model_base_path", ".", "--grpc_max_threads", "0"], "must be at least 1. Received: 0"),
        (["--model_base_path", ".", "--model_base"], "unrecognized arguments"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err

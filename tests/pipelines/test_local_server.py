from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tfdlrm.pipelines.local_server import LocalServer, ServerStartError
from tfdlrm.serving.client import PredictClient

ROOT = Path(__file__).resolve().parents[2]


def test_server_that_ends_is_told_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    log = tmp_path / "logs" / "serving.log"
    with (
        LocalServer("m", tmp_path / "absent", log) as server,
        PredictClient(server.url, "m") as client,
        pytest.raises(ServerStartError, match=r"the server has ended; its output is in .*serving\.log"),
    ):
        server.wait_until_ready(client, timeout=60)
    assert "`model_base_path` must be a directory" in log.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to end the server with its parent")
def test_server_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tfdlrm.pipelines.local_server import LocalServer\n"
        "with LocalServer('m', Path(sys.argv[1]), Path(sys.argv[1]) / 'log') as server:\n"
        "    print(server._process.pid, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout is not None
    server = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    for _ in range(300):
        state = Path(f"/proc/{server}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    os.kill(server, 9)
    pytest.fail("the server runs on")

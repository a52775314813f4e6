"""The package as `pip install tfdlrm` leaves it, without what the extras bring."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PLAIN = """
import socket, sys
for name in sys.argv[1:]:
    sys.modules[name] = None  # importing it raises ImportError

import tfdlrm.export.saved_model, tfdlrm.pipelines.criteo, tfdlrm.pipelines.run
from tfdlrm.export.warmup import warmup_requests
from tfdlrm.spec.errors import ConfigError

class Encoder:
    def raw_signature(self):
        return {}

try:
    warmup_requests("m", Encoder(), {}, [1])
except ConfigError as error:
    print(error)

import tfdlrm.serving.app, tfdlrm.serving.http_server
from pathlib import Path
from tfdlrm.serving.__main__ import main
from tfdlrm.serving.client import PredictClient
from tfdlrm.serving.warmup import REQUESTS_FILE, warmed

file = Path("1") / REQUESTS_FILE
file.parent.mkdir(parents=True)
file.write_bytes(b"")
print(warmed(lambda path, version: f"{path} as {version}")(Path("1"), 1))
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = str(free.getsockname()[1])
for extra in (["--port", "1"], ["--monitoring_config_file", "no.config"]):
    print(main(["--model_name", "m", "--model_base_path", ".", "--rest_api_port", port, *extra]))
"""
EXTRAS = (
    *("tensorflow_serving", "prometheus_client", "keras_tuner", "apache_beam"),
    *("onnx", "onnxruntime", "tf2onnx", "pandas"),
)


def test_main_commands_and_the_server_over_rest_need_no_extra(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, *EXTRAS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "warm-up requests need `pip install tfdlrm[serving]`. Received: `warmup_batch_sizes` [1].",
        "1 as 1",
        "2",
        "2",
    ]
    assert "1: recorded requests are not replayed: that needs `pip install tfdlrm[serving]`" in done.stderr
    assert "tfdlrm.serving: `port` needs `pip install tfdlrm[serving]`: without it no gRPC. Received: 1" in done.stderr
    assert "tfdlrm.serving: `monitoring_config_file` needs `pip install tfdlrm[serving]`." in done.stderr

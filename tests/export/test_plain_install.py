"""The package as `pip install tfdlrm` leaves it, without what the extras bring."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PLAIN = """
import sys
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
"""
EXTRAS = (
    *("tensorflow_serving", "fastapi", "uvicorn", "grpc", "prometheus_client", "keras_tuner", "apache_beam"),
    *("onnx", "onnxruntime", "tf2onnx", "pandas"),
)


def test_main_commands_need_no_extra() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, *EXTRAS],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "warm-up requests need `pip install tfdlrm[serving]`. Received: `warmup_batch_sizes` [1]."
    ]

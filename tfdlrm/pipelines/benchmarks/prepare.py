"""Rows per second from raw text to packed TFRecord, each repeat in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tfdlrm
from tfdlrm.data.planted import write_planted
from tfdlrm.data.prepare import prepare
from tfdlrm.pipelines.benchmarks.figures import machine_figures, peak_memory_bytes, rate_figures
from tfdlrm.spec.coding import TableCoding
from tfdlrm.spec.config import DataConfig

_EMBEDDING_DIM = 16  # names the width of the tables in the manifest; rows do not depend on it


def measure_prepare(
    rows: int = 1_000_000,
    coding: TableCoding | None = None,
    repeats: int = 5,
    seed: int = 0,
    folder: Path | None = None,
    raw: Path | None = None,
    warm_up: bool = True,
) -> dict[str, Any]:
    """Time `prepare` on rows in the Kaggle format and return the figures.

    One run warms the file cache and is not counted. Each run is a fresh process, so that its peak memory is its own;
    starting Python and importing TensorFlow is not timed.

    Args:
        rows: Rows to plant, where no `raw` is given.
        coding: How tables are coded. Defaults to vocabularies of all values that training rows hold.
        repeats: Timed runs.
        seed: Seed of the rows.
        folder: Where raw and prepared rows go meanwhile. Defaults to the system's folder for temporary files.
        raw: A file of rows to prepare.
        warm_up: Whether one more run, before the others, fills the file cache. Defaults to `True`.

    Returns:
        `rows_per_second` (median), `slowest`, `fastest`, `rates`, `repeats`; `peak_memory_bytes`, the largest of the
        runs; `raw_bytes`, `packed_bytes`; `table_rows`, `rows` and `seconds` of the phases of the last
        run; `coding`; cores, software.
    """
    data = DataConfig() if coding is None else DataConfig(coding=coding)
    with tempfile.TemporaryDirectory(prefix="tfdlrm-", dir=folder) as place:
        if raw is None:
            raw = Path(place) / "train.txt"
            write_planted(raw, rows, seed)
        runs = [_run_once(data, raw, Path(place) / "data") for _ in range(repeats + warm_up)]
        raw_bytes = raw.stat().st_size
    rows = runs[-1]["rows"]
    return {
        **rate_figures([rows / run["wall_seconds"] for run in runs[int(warm_up) :]]),
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
        "raw_bytes": raw_bytes,
        "packed_bytes": runs[-1]["packed_bytes"],
        "table_rows": runs[-1]["table_rows"],
        "seconds": runs[-1]["seconds"],
        "rows": rows,
        "coding": data.coding.model_dump(mode="json"),
        **machine_figures(),
    }


def _run_once(data: DataConfig, raw: Path, directory: Path) -> dict[str, Any]:
    """Prepare in a process of its own and return what it measured; what it wrote is removed."""
    paths = [str(Path(tfdlrm.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(raw), str(directory)],
        input=data.model_dump_json(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    shutil.rmtree(directory)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _work(raw: str, directory: str, config: str) -> dict[str, Any]:
    data = DataConfig.from_json(config)
    started: dict[str, float] = {}

    def progress(phase: str, rows: int) -> Callable[[int], None]:
        started[phase] = time.perf_counter()
        return lambda rows: None

    begin = time.perf_counter()
    manifest = prepare(data, [raw], directory, _EMBEDDING_DIM, progress=progress)
    end = time.perf_counter()
    ends = [*list(started.values())[1:], end]
    return {
        "wall_seconds": end - begin,
        # All work is done by threads of this process, so its memory is that of the whole tree.
        "peak_memory_bytes": _own_peak(),
        "rows": sum(split.rows for split in manifest.splits.values()),
        "table_rows": manifest.spec.table_rows,
        "packed_bytes": sum(shard.bytes for split in manifest.splits.values() for shard in split.shards),
        "seconds": {p: round(stop - start, 3) for (p, start), stop in zip(started.items(), ends, strict=True)},
    }


def _own_peak() -> int:
    """Return the most memory this process has held, without what its parent held when it started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_memory_bytes()
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(_work(sys.argv[1], sys.argv[2], sys.stdin.read())))

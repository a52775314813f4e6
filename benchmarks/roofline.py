"""How near a training step comes to what this machine can do.

    python benchmarks/roofline.py [--batch-size 2048] [--precision float32] [--json FILE]

Counts the step's operations and bytes, measures the machine's ceilings (a large matrix product; a gather and scatter of
random rows), runs `python -m tfdlrm.pipelines.benchmark train` in the same go, and prints the share that it reaches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from rich.console import Console
from rich.table import Table

from tfdlrm.pipelines.large_pages import start_again_with_large_pages
from tfdlrm.spec.criteo import KAGGLE, criteo_spec
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.model_config import ModelConfig


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=2048, help="(default: %(default)s)")
    parser.add_argument("--precision", default="float32", choices=("float32", "mixed_bfloat16"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    args = parser.parse_args()
    model, spec = ModelConfig(), criteo_spec(KAGGLE, ModelConfig().embedding_dim)
    measured = rows_per_second(args.batch_size, args.precision)
    operations = operations_per_sample(model, spec)
    products = product_ceiling("bfloat16" if args.precision == "mixed_bfloat16" else "float32")
    rows = row_ceiling(args.batch_size, spec)
    arithmetic = sum(operations.values()) / products
    memory = len(spec.sparse) / rows
    roof = 1 / (arithmetic + memory)
    table = Table("per sample", "amount", "at the ceiling", title=f"Batch {args.batch_size}, {args.precision}")
    for name, count in operations.items():
        table.add_row(f"{name}, forward and backward", f"{count / 1e6:.3f} MFLOP", f"{count / products * 1e6:.2f} us")
    moved = 5 * len(spec.sparse) * spec.tables[0].embedding_dim * 4
    table.add_row("embedding rows read and updated", f"{len(spec.sparse)} ({moved:,} bytes)", f"{memory * 1e6:.2f} us")
    table.add_row("[b]whole step at the ceilings", f"{roof:,.0f} rows/s", f"{1e6 / roof:.2f} us")
    table.add_row("[b]measured", f"{measured:,.0f} rows/s", f"{1e6 / measured:.2f} us")
    table.add_row("[b]share of the ceiling", f"{measured / roof:.0%}", "")
    console = Console()
    console.print(table)
    console.print(
        f"Ceilings: {products / 1e9:.0f} GFLOPS (1024^3 product), {rows / 1e6:.1f} M rows/s gathered and updated."
    )
    if args.json:
        figures = {
            "rows_per_second": measured,
            "roof": roof,
            "operations_per_sample": operations,
            "flops": products,
            "embedding_rows_per_second": rows,
        }
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def operations_per_sample(model: ModelConfig, spec: FeatureSpec) -> dict[str, float]:
    """Count the multiplications and additions of forward and backward pass, without those that copies replace."""
    vectors, dim = len(spec.sparse) + 1, model.embedding_dim
    pairs = vectors * (vectors - 1) // 2
    bottom, top = (spec.n_dense, *model.bottom_units), (dim + pairs, *model.top_units)
    first = 2 * bottom[0] * bottom[1]  # nothing asks for the gradient of the dense features
    return {
        "bottom MLP": 6 * sum(n * m for n, m in zip(bottom, bottom[1:], strict=False)) - first,
        "interaction": 6 * vectors * vectors * dim,
        "top MLP": 6 * sum(n * m for n, m in zip(top, top[1:], strict=False)),
    }


def rows_per_second(batch_size: int, precision: str) -> float:
    """Run the benchmark command and return its median."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.json"
        command = [sys.executable, "-m", "tfdlrm.pipelines.benchmark", "train", "--batch-size", str(batch_size)]
        command += ["--precision", precision, "--seconds", "4", "--json", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        figures: dict[str, Any] = json.loads(path.read_text())
    return float(figures["rows_per_second"])


def product_ceiling(dtype: str) -> float:
    """Return operations a second of a 1024 x 1024 by 1024 x 1024 product."""
    import tensorflow as tf

    a, b = (tf.cast(tf.random.normal([1024, 1024]), dtype) for _ in range(2))
    return 2 * 1024**3 / _seconds(tf.function(lambda: tf.matmul(a, b)))


def row_ceiling(batch_size: int, spec: FeatureSpec, tables: int = 4) -> float:
    """Return embedding rows a second that bare gathers and scatters of random ids read and update.

    Four tables of equal size, as many operations side by side: one scatter alone keeps one core busy.
    """
    import tensorflow as tf

    rows = spec.table_rows // tables
    variables = [tf.Variable(tf.zeros([rows, spec.tables[0].embedding_dim])) for _ in range(tables)]
    count = batch_size * len(spec.sparse) // tables
    ids = np.random.default_rng(0).integers(0, rows, [64, tables, count])  # no call sees ids of another
    batches = iter(tf.data.Dataset.from_tensor_slices(ids).repeat())

    @tf.function
    def step(ids: tf.Tensor) -> None:
        for number, variable in enumerate(variables):
            gathered = tf.gather(variable, ids[number])
            variable.scatter_sub(tf.IndexedSlices(gathered, ids[number]))

    return tables * count / _seconds(lambda: step(next(batches)))


def _seconds(work: Callable[[], Any], repeats: int = 9, calls: int = 5) -> float:
    """Return the median seconds of one call."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(calls):
            result = work()
        if result is not None:
            result[0, 0].numpy()  # the last call has ended when its result can be read
        times.append((time.perf_counter() - started) / calls)
    return statistics.median(times)


if __name__ == "__main__":
    start_again_with_large_pages()
    main()

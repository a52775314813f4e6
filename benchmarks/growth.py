"""How a training step grows with the number of table rows, beside a bare gather and scatter of the same ids.

    python benchmarks/growth.py --json growth.json

Nothing in a step should depend on the rows but the caches of the processor: a read at random costs more from a table
that does not fit into them. The bare gather and scatter shows what that costs anyone. Each measurement is a process of
its own; ours and the bare one alternate.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from comparison import markdown, rich_table, turns_bar
from rich.console import Console

from tfdlrm.data.files import write_atomic
from tfdlrm.pipelines.cli import load_tensorflow, run_command
from tfdlrm.pipelines.large_pages import OPT_OUT, TUNABLE
from tfdlrm.spec.criteo import CARDINALITIES, KAGGLE, criteo_spec
from tfdlrm.spec.errors import ConfigError, UserError
from tfdlrm.spec.model_config import ModelConfig

ROOT = Path(__file__).resolve().parents[1]
DIM = ModelConfig().embedding_dim
WHOLE = f"1000000,{sum(KAGGLE)},100000000"
# The bare table is filled in pieces of this many rows.
FILL_ROWS = 1 << 20


class MeasurementFailed(UserError):
    """A measuring process did not end well."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--table-rows", default=WHOLE, help="rows of all tables together, by commas (default: %(default)s)")
    add("--tables", choices=sorted(CARDINALITIES), default="kaggle", help="shares of the tables (default: %(default)s)")
    add("--ids", default="uniform,powerlaw", help="how ids are drawn, by commas (default: %(default)s)")
    add("--exponent", type=float, default=1.2, help="of the power law (default: %(default)s)")
    add("--batch-size", type=int, default=2048, help="(default: %(default)s)")
    add("--embedding-optimizer", default="sgd", help="of ours (default: %(default)s)")
    add("--precision", default="mixed_bfloat16", help="of ours (default: %(default)s)")
    add("--steps", type=int, default=100, help="most steps of a repeat (default: %(default)s)")
    add("--seconds", type=float, default=3.0, help="about how long a repeat takes (default: %(default)s)")
    add("--rounds", type=int, default=3, help="processes of each (default: %(default)s)")
    add("--repeats", type=int, default=2, help="timed repeats in a process, after its warm-up (default: %(default)s)")
    add("--large-pages", action=argparse.BooleanOptionalAction, default=True, help="for both (default: yes)")
    add("--json", type=Path, metavar="FILE", help="write every figure")
    add("--markdown", type=Path, metavar="FILE", help="write the table")
    add("--bare", action="store_true", help="be the process that gathers and scatters, for one --table-rows and --ids")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    args = build_parser().parse_args(argv)
    return run_command(lambda: _bare(args) if args.bare else _main(args))


def _main(args: argparse.Namespace) -> int:
    sizes = [_number(text) for text in args.table_rows.split(",")]
    kinds = args.ids.split(",")
    if wrong := [kind for kind in kinds if kind not in ("uniform", "powerlaw")]:
        raise ConfigError(f"`--ids` must be of uniform, powerlaw. Received: {wrong[0]!r}.")
    environment = {**os.environ, **({"GLIBC_TUNABLES": TUNABLE} if args.large_pages else {}), OPT_OUT: "0"}
    rates: dict[tuple[str, int, str], list[float]] = {}
    with turns_bar() as progress, tempfile.TemporaryDirectory() as folder:
        task = progress.add_task("", total=2 * args.rounds * len(sizes) * len(kinds))
        for kind in kinds:
            for _ in range(args.rounds):
                for size in sizes:
                    for who in ("ours", "bare"):
                        progress.update(task, description=f"{kind} ids, {size:,} rows: {who}")
                        rate = _measure(who, size, kind, args, Path(folder) / "figures.json", environment)
                        rates.setdefault((kind, size, who), []).append(rate)
                        progress.advance(task)
    figures = growth(rates, args.batch_size)
    table = growth_table(figures)
    Console(width=None if sys.stdout.isatty() else 120).print(rich_table(*table))
    if args.markdown:
        write_atomic(args.markdown, markdown(*table))
    if args.json:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
        write_atomic(args.json, json.dumps({"settings": settings, "figures": figures}, indent=1) + "\n")
    return 0


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"`--table-rows` must be whole numbers above 0, by commas. Received: {text!r}.")
    return int(text)


def _measure(
    who: str, size: int, kind: str, args: argparse.Namespace, file: Path, environment: dict[str, str]
) -> float:
    """Run one process and return its rows/s."""
    flags = ["--tables", args.tables, "--table-rows", str(size), "--ids", kind, "--exponent", str(args.exponent)]
    flags += ["--batch-size", str(args.batch_size), "--steps", str(args.steps), "--seconds", str(args.seconds)]
    flags += ["--repeats", str(args.repeats), "--json", str(file)]
    if who == "ours":
        command = [sys.executable, "-m", "tfdlrm.pipelines.benchmark", "train", *flags]
        command += ["--embedding-optimizer", args.embedding_optimizer, "--precision", args.precision]
    else:
        command = [sys.executable, str(Path(__file__).resolve()), "--bare", *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise MeasurementFailed(f"{' '.join(command)}: exit code {done.returncode}: {last}")
    return float(json.loads(file.read_text(encoding="utf-8"))["rows_per_second"])


def growth(rates: dict[tuple[str, int, str], list[float]], batch_size: int) -> list[dict[str, Any]]:
    """Return, for each kind of ids and size, step times in ms and their growth over the smallest size.

    Args:
        rates: (ids, table rows, "ours" or "bare") -> rows/s of each round.
        batch_size: Rows of a step.
    """
    step = {key: 1000.0 * batch_size / statistics.median(found) for key, found in rates.items()}
    figures = []
    for kind in dict.fromkeys(kind for kind, _, _ in rates):
        sizes = sorted({size for k, size, _ in rates if k == kind})
        for size in sizes:
            ours, bare = (step[kind, size, who] for who in ("ours", "bare"))
            ours_growth, bare_growth = (step[kind, size, who] / step[kind, sizes[0], who] for who in ("ours", "bare"))
            figures.append(
                {
                    "ids": kind,
                    "table_rows": size,
                    "ours_ms": ours,
                    "bare_ms": bare,
                    "ours_growth": ours_growth,
                    "bare_growth": bare_growth,
                    "ratio": ours_growth / bare_growth,
                }
            )
    return figures


def growth_table(figures: list[dict[str, Any]]) -> tuple[str, list[str], list[list[str]]]:
    """Return title, columns and rows."""
    columns = ["ids, table rows", "ours, ms", "bare, ms", "ours grew", "bare grew", "ours / bare"]
    rows = [
        [
            f"{f['ids']}, {f['table_rows']:,}",
            *(f"{f['ours_ms']:.2f}", f"{f['bare_ms']:.2f}"),
            *(f"{f['ours_growth']:.2f}x", f"{f['bare_growth']:.2f}x", f"{f['ratio']:.2f}"),
        ]
        for f in figures
    ]
    return "step time by table rows", columns, rows


def _bare(args: argparse.Namespace) -> int:
    """Time gather and scatter on one table of all rows, and write the figures."""
    load_tensorflow()
    import tensorflow as tf

    from tfdlrm.pipelines.benchmarks.batches import random_batches, scaled

    spec = scaled(criteo_spec(CARDINALITIES[args.tables], DIM), _number(args.table_rows))
    sizes = [table.vocabulary_size for table in spec.tables]
    first_rows = np.cumsum([0, *sizes[:-1]])
    table = tf.Variable(tf.zeros([spec.table_rows, DIM]))
    generator = np.random.default_rng(0)
    # Pages that nothing was written to are all one page of zeros, and reading them costs nothing.
    for start in range(0, spec.table_rows, FILL_ROWS):
        rows = np.arange(start, min(start + FILL_ROWS, spec.table_rows))
        noise = generator.random((len(rows), DIM), np.float32)
        table.scatter_update(tf.IndexedSlices(tf.constant(noise), tf.constant(rows)))

    @tf.function
    def run(ids: tf.data.Dataset) -> None:
        for batch in ids:
            table.scatter_sub(tf.IndexedSlices(tf.gather(table, batch) * 1e-3, batch))

    def seconds(steps: int, repeat: int) -> float:
        samples = random_batches(spec, steps, args.batch_size, args.ids, repeat, args.exponent)
        ids = (samples["sparse"] + first_rows).astype(np.int32).reshape(steps, -1)
        dataset = tf.data.Dataset.from_tensor_slices(ids).prefetch(tf.data.AUTOTUNE)
        started = time.perf_counter()
        run(dataset)
        return time.perf_counter() - started

    steps = min(5, args.steps)
    seconds(steps, 0)
    steps = max(2, min(args.steps, round(args.seconds * steps / seconds(steps, 0))))
    rates = [steps * args.batch_size / seconds(steps, repeat) for repeat in range(args.repeats + 1)][1:]
    figures = {"rows_per_second": statistics.median(rates), "rates": rates, "steps": steps}
    if args.json:
        write_atomic(args.json, json.dumps(figures, indent=1) + "\n")
    print(f"bare, {spec.table_rows:,} rows, {args.ids} ids: {figures['rows_per_second']:,.0f} rows/s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

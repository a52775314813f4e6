"""What every peer script shares: flags, random batches in memory, warm-up, timed repeats, figures.

Plain Python and NumPy, so that it runs in each peer's own environment. The shapes come from a JSON file that
`benchmarks/side_by_side.py --write-spec FILE` writes, so that no peer needs `tfdlrm` and all train the same model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Shapes:
    """The model that everyone trains.

    Attributes:
        rows: Rows of each table; one id is read from each.
        embedding_dim: Row width d of every table.
        n_dense: Dense features.
        bottom_units: Widths of the bottom MLP, last = d.
        top_units: Widths of the top MLP, last = 1.
    """

    rows: tuple[int, ...]
    embedding_dim: int
    n_dense: int
    bottom_units: tuple[int, ...]
    top_units: tuple[int, ...]

    @classmethod
    def load(cls, path: Path) -> Shapes:
        """Read the JSON file of `--spec`."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    @property
    def top_inputs(self) -> int:
        """Width of what enters the top MLP: the dense vector and the products of all pairs."""
        vectors = len(self.rows) + 1
        return self.embedding_dim + vectors * (vectors - 1) // 2


def parse(description: str, optimizers: tuple[str, ...], precisions: tuple[str, ...], extra: Any = None) -> Any:
    """Return the parsed flags, and limit the threads of every library before it is imported.

    Args:
        description: Of the peer.
        optimizers: What it can train with, the default first.
        precisions: What it can compute in, the default first.
        extra: Called with the parser to add flags of the peer's own.
    """
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--spec", type=Path, required=True, help="shapes, from side_by_side.py --write-spec")
    parser.add_argument("--batch-size", type=int, default=2048, help="samples a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="steps of one repeat (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="fewer steps, so that one repeat takes about this long")
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats after a warm-up (default: %(default)s)")
    parser.add_argument("--optimizer", choices=optimizers, default=optimizers[0])
    parser.add_argument("--precision", choices=precisions, default=precisions[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="(default: all, %(default)s here)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    if extra is not None:
        extra(parser)
    args = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ[name] = str(args.threads)
    return args


@dataclass(frozen=True)
class Batch:
    """Random samples: `dense` float32 `[B, n_dense]`, `sparse` int32 `[B, tables]`, `label` float32 `[B, 1]`."""

    dense: np.ndarray
    sparse: np.ndarray
    label: np.ndarray


def random_batches(shapes: Shapes, steps: int, batch_size: int, seed: int) -> Iterator[Batch]:
    """Yield batches with ids uniform over each table's rows."""
    generator = np.random.default_rng(seed)
    rows = np.array(shapes.rows, np.float64)
    for _ in range(steps):
        yield Batch(
            dense=generator.random((batch_size, shapes.n_dense), np.float32),
            sparse=(generator.random((batch_size, len(rows))) * rows).astype(np.int32),
            label=generator.integers(0, 2, (batch_size, 1)).astype(np.float32),
        )


def measure(
    args: Any, peer: str, shapes: Shapes, load: Callable[[Iterator[Batch]], Any], run: Callable[[Any], float]
) -> None:
    """Time the peer and report: one warm-up, then repeats, each on batches of its own.

    Args:
        args: From `parse`.
        peer: Its name in the figures.
        shapes: The model.
        load: Turns batches into what `run` wants; not timed.
        run: Trains one step on every batch and returns the last loss.
    """
    steps, rates = args.steps, []
    if args.seconds:
        # The first steps set up buffers and caches; the pace is taken from those after them.
        for trial in (3, max(3, min(steps, 10))):
            started = time.perf_counter()
            run_loaded(load(random_batches(shapes, trial, args.batch_size, args.seed - 1 + 2**31)), run)
            pace = (time.perf_counter() - started) / trial
        steps = max(2, min(steps, round(args.seconds / pace)))
    for repeat in range(args.repeats + 1):
        batches = load(random_batches(shapes, steps, args.batch_size, args.seed + repeat))
        rates.append(steps * args.batch_size / run_loaded(batches, run))
        print(f"{peer}: {rates[-1]:,.0f} rows/s{' (warm-up)' if repeat == 0 else ''}", file=sys.stderr, flush=True)
    report(args, peer, steps, rates[1:])


def run_loaded(batches: Any, run: Callable[[Any], float]) -> float:
    """Return the seconds of training on loaded batches."""
    started = time.perf_counter()
    loss = run(batches)
    seconds = time.perf_counter() - started
    if not np.isfinite(loss):
        raise SystemExit(f"the loss became {loss}: this is not the training that was meant.")
    return seconds


def report(args: Any, peer: str, steps: int, rates: list[float]) -> None:
    """Print median and spread, and write them with the circumstances to `--json`."""
    figures = {
        "name": peer,
        "rows_per_second": statistics.median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "rates": rates,
        "repeats": len(rates),
        "steps": steps,
        "batch_size": args.batch_size,
        "optimizer": args.optimizer,
        "precision": args.precision,
        "threads": args.threads,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "large_pages": os.environ.get("GLIBC_TUNABLES", ""),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    print(
        f"{peer}, batch {args.batch_size}, {args.precision}, {args.optimizer}: "
        f"{figures['rows_per_second']:,.0f} rows/s "
        f"(median of {len(rates)}; {min(rates):,.0f} to {max(rates):,.0f})"
    )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")

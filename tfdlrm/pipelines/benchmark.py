"""`python -m tfdlrm.pipelines.benchmark train`: rows per second of `model.fit`, on random ids in memory."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfdlrm.data.files import write_atomic
from tfdlrm.pipelines.cli import run_command
from tfdlrm.spec.config import ModelConfig, TrainConfig, load_config
from tfdlrm.spec.criteo import CARDINALITIES, criteo_spec
from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.features import FeatureSpec


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser("python -m tfdlrm.pipelines.benchmark", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="training step through model.fit", allow_abbrev=False)
    train.add_argument("--batch-size", type=_positive, default=2048, help="samples a step (default: %(default)s)")
    train.add_argument(
        "--tables",
        choices=sorted(CARDINALITIES),
        default="kaggle",
        help="published cardinalities (default: %(default)s)",
    )
    train.add_argument(
        "--precision",
        choices=("mixed_bfloat16", "float32"),
        default="mixed_bfloat16",
        help="policy of MLPs and interaction; tables stay float32 (default: %(default)s)",
    )
    train.add_argument(
        "--embedding-optimizer",
        choices=("sgd", "rowwise_adagrad"),
        default="sgd",
        help="optimizer of the tables; the MLPs take SGD or Adagrad with it (default: %(default)s)",
    )
    train.add_argument(
        "--ids",
        choices=("uniform", "powerlaw"),
        default="uniform",
        help="how ids are drawn over a table's rows (default: %(default)s)",
    )
    train.add_argument("--steps", type=_positive, default=100, help="steps of one repeat (default: %(default)s)")
    train.add_argument(
        "--repeats", type=_positive, default=5, help="timed repeats after one warm-up (default: %(default)s)"
    )
    train.add_argument("--seed", type=int, default=0, help="seed of ids and weights (default: %(default)s)")
    train.add_argument("--set", action="append", default=[], metavar="model.KEY=VALUE", help="change the model")
    train.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1. Received: {value}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark and print its figures."""
    return run_command(lambda: _run(build_parser().parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    if wrong := [text for text in args.set if not text.startswith("model.")]:
        raise ConfigError(f"`--set` must name a key of `model`. Received: {wrong[0]!r}.")
    figures = measure_training(
        spec=criteo_spec(CARDINALITIES[args.tables], 16),
        model_config=load_config(None, args.set).model,
        batch_size=args.batch_size,
        precision=args.precision,
        embedding_optimizer=args.embedding_optimizer,
        ids=args.ids,
        steps=args.steps,
        repeats=args.repeats,
        seed=args.seed,
    )
    print(
        f"{args.tables}, batch {args.batch_size}, {args.precision}, {args.embedding_optimizer}, {args.ids} ids: "
        f"{figures['rows_per_second']:,.0f} rows/s (median of {args.repeats}; "
        f"{figures['slowest']:,.0f} to {figures['fastest']:,.0f}), "
        f"peak memory {figures['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
    if args.json:
        write_atomic(args.json, json.dumps(figures, indent=1) + "\n")
        print(f"figures in {args.json}")
    return 0


def random_batches(spec: FeatureSpec, batches: int, batch_size: int, ids: str, seed: int) -> dict[str, np.ndarray]:
    """Return random samples: `dense` `[S, B, n_dense]`, `sparse` `[S, B, n_ids]`, `label` `[S, B, 1]`.

    Args:
        spec: The features.
        batches: S.
        batch_size: B.
        ids: `"uniform"`, or `"powerlaw"` with density falling as id^-1.2.
        seed: Seed of the draw.
    """
    generator = np.random.default_rng(seed)
    shape = (batches, batch_size)
    sparse = np.empty((*shape, spec.n_ids), np.int32)
    for feature in spec.sparse:
        rows = spec.table_of(feature).vocabulary_size
        start, stop = spec.id_columns[feature.name]
        u = generator.random((*shape, stop - start))
        if ids == "powerlaw":
            u = (((rows + 1.0) ** -0.2 - 1.0) * u + 1.0) ** -5.0 - 1.0
            sparse[:, :, start:stop] = np.minimum(u, rows - 1)
        else:
            sparse[:, :, start:stop] = u * rows
    return {
        "dense": generator.random((*shape, spec.n_dense), np.float32),
        "sparse": sparse,
        "label": generator.integers(0, 2, (*shape, 1)).astype(np.float32),
    }


def measure_training(
    spec: FeatureSpec,
    model_config: ModelConfig,
    batch_size: int,
    precision: str = "mixed_bfloat16",
    embedding_optimizer: str = "sgd",
    ids: str = "uniform",
    steps: int = 100,
    repeats: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Time `model.fit` as users run it and return the figures.

    Every step reads a batch of its own, so that no row is warm because the benchmark is short.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    from tfdlrm.models.build import build
    from tfdlrm.training.trainer import compile_model

    dense_optimizer = "adagrad" if embedding_optimizer == "rowwise_adagrad" else "sgd"
    train = TrainConfig.model_validate(
        {"batch_size": batch_size, "embedding": {"name": embedding_optimizer}, "dense": {"name": dense_optimizer}}
    )
    model = build(model_config, spec, precision, seed)
    compile_model(model, train)
    rates = []
    for repeat in range(repeats + 1):
        batch = random_batches(model.spec, steps, batch_size, ids, seed=seed + repeat)
        label = batch.pop("label")
        data = tf.data.Dataset.from_tensor_slices((batch, label)).prefetch(tf.data.AUTOTUNE)
        started = time.perf_counter()
        model.fit(data, steps_per_epoch=steps, epochs=1, verbose=0)
        rates.append(steps * batch_size / (time.perf_counter() - started))
    timed = rates[1:]
    return {
        "rows_per_second": statistics.median(timed),
        "slowest": min(timed),
        "fastest": max(timed),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "table_bytes": spec.table_rows * model_config.embedding_dim * 4,
        "repeats": repeats,
        "steps": steps,
        "batch_size": batch_size,
        "precision": precision,
        "embedding_optimizer": embedding_optimizer,
        "ids": ids,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "tensorflow": tf.__version__,
    }


if __name__ == "__main__":
    raise SystemExit(main())

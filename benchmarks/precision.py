"""Does bfloat16 cost accuracy? The same rows, the same seeds, float32 and mixed_bfloat16 side by side.

    python benchmarks/precision.py --work-dir runs/precision [--rows 1000000] [--seeds 3]

Trains the demo's network on planted rows once per seed and precision, from equal weights and in equal order, and prints
test AUC and log loss of each pair. The rows are prepared once and kept in the work directory.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from rich.console import Console
from rich.table import Table

from tfdlrm.pipelines.cli import recipe
from tfdlrm.spec.config import load_config


def main() -> None:
    """Parse, train every pair, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True, help="folder for the rows and the figures")
    parser.add_argument("--rows", type=int, default=1_000_000, help="planted rows (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="pairs of runs (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the recipe")
    args = parser.parse_args()
    changes = [f"data.planted.rows={args.rows}", "train.eval_every_steps=0", *args.set]
    prepared = prepare_rows(args.work_dir, changes)
    results = []
    for seed in range(1, args.seeds + 1):
        pair = {name: run(prepared, changes, seed, name) for name in ("float32", "mixed_bfloat16")}
        results.append(pair)
        print(f"seed {seed}: " + ", ".join(f"{name} AUC {m['auc']:.5f}" for name, m in pair.items()), flush=True)
    (args.work_dir / "precision.json").write_text(json.dumps(results, indent=1) + "\n")
    table = Table("seed", "AUC float32", "AUC bfloat16", "difference", "log loss float32", "log loss bfloat16")
    for seed, pair in enumerate(results, start=1):
        full, half = pair["float32"], pair["mixed_bfloat16"]
        table.add_row(
            str(seed),
            f"{full['auc']:.5f}",
            f"{half['auc']:.5f}",
            f"{half['auc'] - full['auc']:+.5f}",
            f"{full['log_loss']:.5f}",
            f"{half['log_loss']:.5f}",
        )
    Console().print(table)


def prepare_rows(work_dir: Path, changes: list[str]) -> Path:
    """Generate and prepare the planted rows, unless that was done before; return the folder of the prepared rows."""
    from tfdlrm.pipelines import criteo

    arguments = ["--work-dir", str(work_dir), "--stages", "prepare"]
    if criteo.main(arguments + [part for change in changes for part in ("--set", change)]):
        raise SystemExit("The rows could not be prepared.")
    return work_dir / "data"


def run(data: Path, changes: list[str], seed: int, precision: str) -> dict[str, float]:
    """Train once and return the metrics of the test rows."""
    from tfdlrm.data.dataset import packed_dataset
    from tfdlrm.data.manifest import Manifest
    from tfdlrm.metrics.binary import evaluate_binary
    from tfdlrm.models.build import build
    from tfdlrm.training.trainer import compile_model, predict, set_determinism, train

    config = load_config(recipe("demo"), [*changes, f"seed={seed}", f'train.precision="{precision}"'])
    manifest = Manifest.load(data)
    set_determinism(seed, deterministic=False)
    model = build(config.model.name, manifest.spec, config.model, precision, seed)
    compile_model(model, config.train)

    class Rows:
        """The training rows in the order of this seed."""

        rows = manifest.splits["train"].rows

        def batches(self, epoch: int, step: int):
            return packed_dataset(
                data,
                "train",
                config.train.batch_size,
                manifest=manifest,
                shuffle=True,
                seed=seed,
                epochs=epoch + 1,
                start_epoch=epoch,
                start_step=step,
            )

    with tempfile.TemporaryDirectory() as checkpoints:
        train(model, config.train, Rows(), Path(checkpoints))
    return evaluate_binary(*predict(model, packed_dataset(data, "test", 8192, manifest=manifest))).as_dict()


if __name__ == "__main__":
    main()

"""`python -m tfdlrm.pipelines.explain --work-dir RUN`: what a trained model listens to, and what its tables hold."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdlrm.data.files import write_atomic
from tfdlrm.pipelines.cli import load_tensorflow, refuse_directories, run_command
from tfdlrm.pipelines.manner import say
from tfdlrm.pipelines.parsers import CommandParser
from tfdlrm.pipelines.table import print_tables
from tfdlrm.pipelines.work_dir import existing_run, json_text
from tfdlrm.spec.arguments import natural, positive
from tfdlrm.spec.errors import ConfigError

if TYPE_CHECKING:
    from tfdlrm.pipelines.stages.context import Run

_SEEDS = 2**32
_EXAMPLES = {
    "--work-dir runs/demo": "feature importance and table usage",
    "--work-dir runs/demo --rows 20000 --repeats 3": "quicker, less sure",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser("tfdlrm.pipelines.explain", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("--work-dir", type=Path, required=True, metavar="RUN", help="work dir of a run that has been trained")
    add("--rows", type=positive, default=100_000, metavar="N", help="held-out rows to score (default: %(default)s)")
    add("--repeats", type=positive, default=5, metavar="K", help="permutations of each feature (default: %(default)s)")
    add("--seed", type=natural, default=0, help="of rows and permutations (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the figures as JSON here too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = build_parser().parse_args(argv)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    refuse_directories(args.json)
    if args.seed >= _SEEDS:
        raise ConfigError(f"`--seed` must be below 2^32. Received: {args.seed}.")
    work_dir, config = existing_run(args.work_dir)
    load_tensorflow()
    from tfdlrm.pipelines.stages.context import opened

    with opened(work_dir, config) as run:
        figures = json.loads(json_text(explain(run, args.rows, args.repeats, args.seed)))
        _write(run, figures, args.json)
    return 0


def explain(run: Run, rows: int, repeats: int, seed: int, usage_rows: int | None = None) -> dict[str, Any]:
    """Return the importance of every feature and the usage of every table, for the weights that would be exported.

    Args:
        run: A run that has been trained.
        rows: Most held-out rows to score. Where there are more, that many are drawn from shuffled blocks.
        repeats: Permutations of each feature.
        seed: Of rows and permutations.
        usage_rows: About how many training rows to read for the usage of tables, in blocks spread evenly. Defaults to
            all.

    Raises:
        DataError: training has not finished, or prepared rows are not what the manifest says.
    """
    from tfdlrm.data.blocks import BlockReader, block_places, spread_blocks
    from tfdlrm.export.serving_rows import serving_rows
    from tfdlrm.training.importance import permutation_importance
    from tfdlrm.training.table_usage import count_reads, usage_of_tables

    step, model = run.chosen_step(), run.trained_model()
    split = run.held_out() or "train"
    rows = min(rows, run.manifest.splits[split].rows)
    share = 1.0 if usage_rows is None else min(1.0, usage_rows / max(run.manifest.splits["train"].rows, 1))
    places = spread_blocks(block_places(run.manifest, "train"), share)
    training_rows = sum(place.info.rows for place in places)
    features = run.spec.n_dense + len(run.spec.sparse)
    with run.console.bars() as bar:
        with serving_rows(model, run.untouched_rows):  # what is explained is what is served
            importances = permutation_importance(
                model,
                _some(run, split, rows, seed),
                repeats,
                seed,
                logit_shift=run.config.logit_shift,
                batch_size=run.config.evaluate.batch_size,
                progress=bar("permute", rows * (1 + features * repeats)),
            )
        reader = BlockReader(run.work_dir.data, run.manifest)
        reads = count_reads(run.spec, ((reader.read(place),) for place in places), bar("count", training_rows))
    return {
        "step": step,
        "weights": run.chosen_weights(),
        "split": split,
        "rows": rows,
        "repeats": repeats,
        "seed": seed,
        "log_loss": importances.log_loss,
        "auc": importances.auc,
        "features": [feature.as_dict() for feature in importances.features],
        "training_rows": training_rows,
        "tables": [usage.as_dict() for usage in usage_of_tables(model, reads)],
    }


def _some(run: Run, split: str, rows: int, seed: int) -> list[tuple[Any, ...]]:
    """Return so many rows of a split, all in file order or some of them from shuffled blocks."""
    from tfdlrm.data.dataset import packed_dataset

    data, batch_size = run.config.data, run.config.evaluate.batch_size
    batches = packed_dataset(
        run.work_dir.data,
        split,
        batch_size,
        manifest=run.manifest,
        shuffle=rows < run.manifest.splits[split].rows,
        seed=seed,
        shuffle_blocks=data.shuffle_blocks,
    ).take(-(-rows // batch_size))
    found = list(batches.as_numpy_iterator())
    *whole, (inputs, *others) = found
    left = rows - batch_size * len(whole)
    return [*whole, ({name: values[:left] for name, values in inputs.items()}, *(part[:left] for part in others))]


def _write(run: Run, figures: dict[str, Any], copy: Path | None) -> None:
    """Print the tables; write figures and plots to `report/`, and the page anew if there is one."""
    from tfdlrm.pipelines.reporting.importance import EXPLANATION
    from tfdlrm.pipelines.stages import report
    from tfdlrm.report.explanation import importance_table, plots, usage_tables

    folder = run.work_dir.report
    text = json_text(figures)
    for file in (folder / EXPLANATION, copy):
        if file is not None:
            write_atomic(file, text)
    for name, plot in plots(figures).items():
        write_atomic(folder / name, plot.png)
    print_tables(importance_table(figures), *usage_tables(figures))
    if (folder / report.PAGE).is_file():
        report.work(run)
        say(f"Page: {folder / report.PAGE}")
    else:
        say(f"Figures and plots: {folder}")


if __name__ == "__main__":
    sys.exit(main())

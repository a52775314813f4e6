"""`python -m tfdlrm.pipelines.compare`: models side by side on the same rows: a table, tests, and learning curves."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tfdlrm.pipelines.cli import load_tensorflow, recipe, refuse_unreadable, resumable_main
from tfdlrm.pipelines.parsers import CommandParser
from tfdlrm.spec.arguments import positive
from tfdlrm.spec.compare import CompareConfig, load_compare
from tfdlrm.spec.errors import ConfigError, did_you_mean

_MODULE = "tfdlrm.pipelines.compare"
_CHOICES = ("dataset", "model", "optimizer", "seed")
_EXAMPLES = {
    "": "DLRM and DCN at equal size, on planted rows",
    "--config pipelines/compare.toml --jobs 2": "two models at a time",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser(_MODULE, __doc__, _EXAMPLES)
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="comparison (TOML; default: the paper's on planted rows)")
    add("--work-dir", type=Path, metavar="DIR", help="where it keeps its files (default: runs/<name>)")
    add(
        "--only",
        action="append",
        default=[],
        metavar="KEY=VALUE,...",
        help=f"run some cells only: {', '.join(_CHOICES)}; repeatable, several values of a key are either",
    )
    add("--jobs", type=positive, default=1, metavar="N", help="cells at a time (default: %(default)s)")
    add("--overwrite", action="store_true", help="run cells of other settings again, and prepare other rows anew")
    add("--dry-run", action="store_true", help="print the cells and the sizes of their models, stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a comparison."""
    return resumable_main(_MODULE, build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> int:
    path: Path = args.config or recipe("compare")
    config = load_compare(path)
    chosen = parse_only(args.only, config)
    # Only now, since it takes seconds, and a slip should be told at once.
    load_tensorflow()
    from tfdlrm.pipelines.comparison.plan import blocks_of
    from tfdlrm.pipelines.comparison.run import Comparison

    blocks = {dataset.name: blocks_of(dataset, path.resolve().parent) for dataset in config.datasets}
    comparison = Comparison(config, blocks, chosen, args.work_dir or Path("runs") / config.name)
    if args.dry_run:
        comparison.print_plan()
        return 0
    for name in comparison.datasets:
        refuse_unreadable(blocks[name][0].config)
    comparison.run(args.jobs, args.overwrite)
    return 0


def parse_only(texts: Sequence[str], config: CompareConfig) -> dict[str, set[str]]:
    """Return the values that `--only` names, by key.

    Args:
        texts: `key=value` with commas between them.
        config: The comparison, whose names they must be.

    Raises:
        ConfigError: a key or a value is unknown.

    Example:
        >>> config = CompareConfig(seeds=[1, 2], datasets=[{"name": "a", "config": "a"}], models=[{"name": "dlrm"}])
        >>> parse_only(["model=dlrm,seed=2"], config)
        {'model': {'dlrm'}, 'seed': {'2'}}
    """
    known = {
        "dataset": [dataset.name for dataset in config.datasets],
        "model": [model.label for model in config.models],
        "optimizer": [optimizer.label for optimizer in config.optimizers],
        "seed": [str(seed) for seed in config.seeds],
    }
    chosen: dict[str, set[str]] = {}
    for text in (part.strip() for whole in texts for part in whole.split(",")):
        key, _, value = text.partition("=")
        if key not in known:
            raise ConfigError(
                f"`--only` must be key=value with a key of {', '.join(_CHOICES)}. "
                f"Received: {text!r}.{did_you_mean(key, known)}"
            )
        if value not in known[key]:
            raise ConfigError(
                f"`--only {key}=` must be one of {', '.join(known[key])}. "
                f"Received: {value!r}.{did_you_mean(value, known[key])}"
            )
        chosen.setdefault(key, set()).add(value)
    return chosen


if __name__ == "__main__":
    sys.exit(main())

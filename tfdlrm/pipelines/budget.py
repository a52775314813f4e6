"""`python -m tfdlrm.pipelines.budget`: how embedding tables would fit into a number of bytes, without training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tfdlrm.data.files import write_atomic
from tfdlrm.data.manifest import MANIFEST, Manifest
from tfdlrm.pipelines.benchmarks.figures import write_figures
from tfdlrm.pipelines.cli import load_tensorflow, refuse_directories, run_command
from tfdlrm.pipelines.parsers import CommandParser
from tfdlrm.pipelines.specs import recipe_spec, tables_spec
from tfdlrm.pipelines.table import plan_table, print_tables
from tfdlrm.spec.arguments import positive, positives
from tfdlrm.spec.budget import METHODS, BudgetPlan, fit_budget
from tfdlrm.spec.config import load_config
from tfdlrm.spec.criteo import CARDINALITIES
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.model_config import ModelConfig
from tfdlrm.spec.model_spec import methods_of, model_spec

_WIDTH = 16


class _Tables(NamedTuple):
    """What is planned for: the data's features, what is known of how rows are read, the model's settings."""

    spec: FeatureSpec
    model: ModelConfig
    counts: Mapping[str, Any] = {}
    samples: int | None = None
    methods: Sequence[str] = METHODS


_EXAMPLES = {
    "--dataset kaggle --budget 512MB": "how 2 GiB of tables fit into half of one",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser("tfdlrm.pipelines.budget", __doc__, _EXAMPLES)
    source = parser.add_mutually_exclusive_group(required=True)
    add = source.add_argument
    add("--config", type=Path, metavar="FILE", help="recipe that hashes every table: its features")
    add("--work-dir", type=Path, metavar="DIR", help="run, or prepared data set: its features, its rows are counted")
    add("--table-rows", type=positives, metavar="N,N,...", help="rows of each table")
    add("--dataset", choices=sorted(CARDINALITIES), help="published cardinalities")
    add = parser.add_argument
    add("--budget", metavar="BYTES", help="such as 512MB or 1.5GiB (default: `model.embedding_budget`)")
    add("--embedding-dim", type=positive, metavar="N", help=f"width of a row (default: the recipe's, or {_WIDTH})")
    add("--samples", type=positive, metavar="N", help="training samples (default: 4 a row of the largest table)")
    add("--methods", metavar="LIST", help=f"what may be used, by commas (default: {','.join(METHODS)})")
    add("--whole-rows", type=positive, default=1000, metavar="N", help="tables up to it stay whole (default: 1000)")
    add("--linear", action="store_true", help="count a linear weight of 4 bytes a row too")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the recipe; repeatable")
    add("--json", type=Path, metavar="FILE", help="also write the plan to a file")
    add("--plot", type=Path, metavar="PNG", help="draw bytes before and after")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = build_parser().parse_args(argv)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    refuse_directories(args.json, args.plot)
    plan = _plan(args)
    print(plan.caption)
    print_tables(plan_table(plan))
    write_figures(args.json, plan.figures())
    if args.plot is not None:
        from tfdlrm.report.budget import budget_picture

        write_atomic(args.plot, budget_picture(plan))
    return 0


def _plan(args: argparse.Namespace) -> BudgetPlan:
    tables = _tables(args)
    budget = args.budget or tables.model.embedding_budget
    if budget is None:
        raise ConfigError("`--budget` must be given where the recipe has no `model.embedding_budget`. Received: none.")
    methods = (
        tables.methods if args.methods is None else [name.strip() for name in args.methods.split(",") if name.strip()]
    )
    # Settings of single tables hold; the rest is planned. Made anew, so that settings that exclude a budget are seen.
    model = ModelConfig(**{**dict(tables.model), "embedding_budget": budget})
    return fit_budget(
        model_spec(tables.spec, model.model_copy(update={"embedding_budget": None})),
        budget,
        counts=tables.counts,
        samples=args.samples or tables.samples,
        methods=methods,
        whole_rows=args.whole_rows,
        linear=args.linear,
    )


def _tables(args: argparse.Namespace) -> _Tables:
    if args.work_dir is not None:
        return _prepared(args)
    if args.config is not None:
        config = load_config(args.config, args.set)
        spec = recipe_spec(config, args.config, "`--work-dir`, or `--table-rows` in its place,")
        # Buckets of a hash are in no order.
        counts = dict.fromkeys(t.name for t in spec.tables)
        return _Tables(spec, _wide(config.model, args), counts, methods=methods_of(config.train.embedding))
    if args.set:
        raise ConfigError("`--set` must come with --config or --work-dir. Received: neither.")
    width = args.embedding_dim or _WIDTH
    spec = tables_spec(args.table_rows or CARDINALITIES[args.dataset], width)
    return _Tables(spec, ModelConfig(embedding_dim=width))


def _prepared(args: argparse.Namespace) -> _Tables:
    """Return the tables of a run or of prepared data, and count how their rows are read."""
    data = next((folder for folder in (args.work_dir / "data", args.work_dir) if (folder / MANIFEST).is_file()), None)
    if data is None:
        raise DataError(f"{args.work_dir}: no prepared data. Run the stage `prepare` first.")
    manifest = Manifest.load(data)
    recipe = args.work_dir / "config.toml"
    methods: Sequence[str] = METHODS
    if recipe.is_file() or args.set:
        config = load_config(recipe if recipe.is_file() else None, args.set)
        model, methods = config.model, methods_of(config.train.embedding)
    else:
        model = ModelConfig(embedding_dim=manifest.spec.tables[0].embedding_dim if manifest.spec.tables else _WIDTH)
    load_tensorflow()
    from tfdlrm.data.read_counts import read_counts

    samples = manifest.split("train").rows or None
    return _Tables(manifest.spec, _wide(model, args), read_counts(data, manifest), samples, methods)


def _wide(model: ModelConfig, args: argparse.Namespace) -> ModelConfig:
    return model if args.embedding_dim is None else model.model_copy(update={"embedding_dim": args.embedding_dim})


if __name__ == "__main__":
    sys.exit(main())

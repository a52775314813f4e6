"""`python -m tfdlrm.pipelines.generate`: random rows, synthetic traces, planted clicks; the locality of a column."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfdlrm.data.generators.laws import IdLaw, RowLaw
from tfdlrm.data.generators.stack_distances import StackDistances, is_per_table, table_file
from tfdlrm.data.generators.trace import MODES
from tfdlrm.data.generators.trace_check import TraceResult
from tfdlrm.data.manifest import MANIFEST
from tfdlrm.pipelines.benchmarks.figures import write_figures
from tfdlrm.pipelines.cli import CheckFailed, load_tensorflow, refuse_directories, run_command
from tfdlrm.pipelines.console import Stopwatch, progress_bars
from tfdlrm.pipelines.manner import say
from tfdlrm.pipelines.parsers import CommandParser
from tfdlrm.pipelines.specs import recipe_spec, tables_spec
from tfdlrm.pipelines.table import print_tables
from tfdlrm.report.html import Table
from tfdlrm.spec.arguments import natural, positive, positives
from tfdlrm.spec.config import load_config
from tfdlrm.spec.criteo import CARDINALITIES, SPARSE_COLUMNS
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.features import FeatureSpec

_ID_LAWS = {"mu": "gaussian", "sigma": "gaussian", "alpha": "powerlaw"}
_MOST_PANELS = 4
_EXAMPLES = {
    "random --rows 1000000 --raw train.txt": "random rows in Criteo's format",
    "planted --rows 200000 --raw planted.txt": "clicks whose true probabilities are known",
    "profile runs/demo/data": "stack distances",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser("tfdlrm.pipelines.generate", __doc__, _EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_random(commands.add_parser("random", help="random rows", allow_abbrev=False))
    _add_trace(commands.add_parser("trace", help="rows whose ids have given stack distances", allow_abbrev=False))
    _add_planted(commands.add_parser("planted", help="clicks whose true probabilities are known", allow_abbrev=False))
    _add_profile(commands.add_parser("profile", help="stack distances of prepared columns", allow_abbrev=False))
    return parser


def _add_random(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--ids",
        choices=("uniform", "gaussian", "powerlaw"),
        default="uniform",
        help="how ids are drawn (default: %(default)s)",
    )
    add("--mu", type=float, metavar="X", help="peak of the Gaussian, as a share of the table (default: 0.5)")
    add("--sigma", type=float, metavar="X", help="its standard deviation, in the same unit (default: 0.1)")
    add("--alpha", type=float, metavar="A", help="power law: density falls as (id + 1)^-A (default: 1.2)")
    _add_tables(parser, "kaggle")
    _add_rows(parser)


def _add_trace(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--distances",
        type=Path,
        required=True,
        metavar="FILE",
        help='three-line file of ids, distances, shares; a "j" in its name becomes the number of the table, from 0',
    )
    add("--mode", choices=MODES, default="lru", help="how ids are emitted (default: %(default)s)")
    add("--padding", action="store_true", help="draw new ids during warm-up only")
    add("--warm-start", action="store_true", help="begin where the warm-up would end")
    add("--picture", type=Path, metavar="PNG", help="draw shares that went in and came out")
    _add_tables(parser, "as many rows as the ids need")
    _add_rows(parser)


def _add_planted(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--raw", type=Path, required=True, metavar="FILE", help="text in Criteo's format, .gz is packed")
    _add_common(parser)


def _add_profile(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", type=Path, metavar="DIR", help="prepared data set")
    add("--columns", nargs="+", metavar="NAME", help="sparse features (default: all)")
    add("--split", default="train", help="rows to read (default: %(default)s)")
    add("--rows", type=positive, help="read so many from the start (default: all)")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help='three-line file to write; a "j" in its name becomes the number of the feature, from 0',
    )
    add("--padding", action="store_true", help="count n / c more new ids for n distances up to c")
    add("--keep-ids", action="store_true", help="write the ids as they are (default: numbered as first seen)")


def _add_tables(parser: argparse.ArgumentParser, default: str) -> None:
    tables = parser.add_mutually_exclusive_group()
    add = tables.add_argument
    add("--tables", choices=sorted(CARDINALITIES), help=f"published cardinalities (default: {default})")
    add("--cardinalities", type=positives, metavar="N,N,...", help="rows of each table")
    add("--config", type=Path, metavar="FILE", help="recipe that hashes: its features")
    add = parser.add_argument
    add(
        "--hotness", type=positives, default=(1,), metavar="N[,N,...]", help="ids of a bag, of all or each (default: 1)"
    )
    add("--embedding-dim", type=positive, default=16, metavar="N", help="noted in the data set (default: %(default)s)")


def _add_rows(parser: argparse.ArgumentParser) -> None:
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--raw", type=Path, metavar="FILE", help="write text in Criteo's format, .gz is packed")
    target.add_argument("--prepared", type=Path, metavar="DIR", help="write a prepared data set")
    add = parser.add_argument
    add("--format", choices=("packed", "example"), default="packed", help="of --prepared (default: %(default)s)")
    add("--validation-rows", type=natural, default=0, metavar="N", help="of --prepared (default: %(default)s)")
    add("--test-rows", type=natural, default=0, metavar="N", help="of --prepared (default: %(default)s)")
    add("--bags", choices=("fixed", "variable"), default="fixed", help="1 to N ids, or N (default: %(default)s)")
    add("--dense", choices=("uniform", "normal"), default="uniform", help="dense numbers (default: %(default)s)")
    add("--labels", choices=("bernoulli", "uniform"), default="bernoulli", help="(default: %(default)s)")
    add("--click-rate", type=float, default=0.5, metavar="P", help="of bernoulli labels (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="also write what was found to a file")
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rows", type=positive, default=1_000_000, help="rows to train on (default: %(default)s)")
    add("--seed", type=natural, default=0, help="seed of the rows (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace what lies there")


def main(argv: Sequence[str] | None = None) -> int:
    """Generate rows, or profile prepared ones, and say what came out."""
    args = build_parser().parse_args(argv)
    commands = {"random": _random, "trace": _trace, "planted": _planted, "profile": _profile}
    return run_command(lambda: commands[args.command](args))


def _random(args: argparse.Namespace) -> int:
    refuse_directories(args.json)
    for name, kind in _ID_LAWS.items():
        if getattr(args, name) is not None and args.ids != kind:
            raise ConfigError(f"`--{name}` must come with --ids {kind}. Received: --ids {args.ids}.")
    given = {name: getattr(args, name) for name in _ID_LAWS if getattr(args, name) is not None}
    ids = IdLaw(kind=args.ids, **given)
    law, splits = _row_law(args), _splits(args)
    if args.config:
        spec = _config_spec(args)
    else:
        table_rows = args.cardinalities or CARDINALITIES[args.tables or "kaggle"]
        spec = tables_spec(table_rows, args.embedding_dim, args.hotness)
    load_tensorflow()
    from tfdlrm.data.generators.random_rows import RandomRows

    batches = {split: RandomRows(spec, ids, law, args.seed, split).batches(rows) for split, rows in splits.items()}
    recipe = {"generator": "random", "ids": ids.model_dump(), "law": law.model_dump(), "seed": args.seed}
    write_figures(args.json, _write(args, spec, batches, recipe))
    return 0


def _trace(args: argparse.Namespace) -> int:
    refuse_directories(args.json, args.picture)
    law, splits = _row_law(args), _splits(args)
    spec, distances = _trace_spec(args)
    load_tensorflow()
    from tfdlrm.data.generators.trace_rows import TraceRows

    rows = {
        split: TraceRows(spec, distances, args.mode, law, args.seed, split, args.padding, args.warm_start, check=True)
        for split, count in splits.items()
        if count
    }
    # A split without rows is named by the manifest too.
    batches = {split: rows[split].batches(count) if count else () for split, count in splits.items()}
    recipe = {
        **{"generator": "trace", "mode": args.mode, "padding": args.padding, "law": law.model_dump()},
        **{"warm_start": args.warm_start, "seed": args.seed, "distances": str(args.distances)},
    }
    figures = _write(args, spec, batches, recipe)
    results = {
        name if len(rows) == 1 else f"{split} {name}": result
        for split, own in rows.items()
        for name, result in own.results().items()
    }
    print_tables(_result_table(args.mode, results))
    figures["check"] = {
        name: {"draws": r.draws, "in_use": r.in_use, "warm_up": r.warm_up, "ks": r.ks, "limit": r.limit}
        for name, r in results.items()
    }
    if args.picture:
        _draw(args.picture, results)
    write_figures(args.json, figures)
    return judge(args.mode, results)


def _trace_spec(args: argparse.Namespace) -> tuple[FeatureSpec, dict[str, StackDistances]]:
    """Return the features and the distances of each: of the tables asked for, or as the files are."""
    sizes: Sequence[int] | None = args.cardinalities or (CARDINALITIES[args.tables] if args.tables else None)
    spec = _config_spec(args) if args.config else None
    count = len(spec.sparse) if spec else len(sizes) if sizes else len(SPARSE_COLUMNS)
    if not is_per_table(args.distances):
        distances = [StackDistances.read(args.distances)] * count
    else:
        if not spec and not sizes:
            count = next((n for n in range(count) if not table_file(args.distances, n).exists()), count) or 1
        distances = [StackDistances.read(table_file(args.distances, number)) for number in range(count)]
    if spec is None:
        sizes = sizes or [int(own.ids.max()) + 1 for own in distances]
        spec = tables_spec(sizes, args.embedding_dim, args.hotness)
    return spec, dict(zip(spec.sparse_names, distances, strict=True))


def _config_spec(args: argparse.Namespace) -> FeatureSpec:
    if args.hotness != (1,):
        raise ConfigError("`--hotness` must not come with `--config`, which says it. Received: both.")
    return recipe_spec(load_config(args.config, []), args.config, "`--tables` or `--cardinalities` in its place")


def _row_law(args: argparse.Namespace) -> RowLaw:
    return RowLaw(bags=args.bags, dense=args.dense, labels=args.labels, click_rate=args.click_rate)


def _splits(args: argparse.Namespace) -> dict[str, int]:
    """Return the rows of each split; refuse to write where something lies."""
    splits = {"train": args.rows, "validation": args.validation_rows, "test": args.test_rows}
    if args.raw and splits["validation"] + splits["test"]:
        raise ConfigError("`--validation-rows` and `--test-rows` must come with `--prepared`. Received: `--raw`.")
    if args.prepared and args.prepared.exists() and not args.prepared.is_dir():
        raise DataError(f"{args.prepared}: a file, where a directory must be.")
    _refuse_to_replace(args.raw or args.prepared / MANIFEST, args.overwrite)
    return {"train": args.rows} if args.raw else splits


def _refuse_to_replace(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise DataError(f"{path}: a directory, where a file must be.")
    if path.exists() and not overwrite:
        raise DataError(f"{path}: is there already; --overwrite replaces it.")


def _write(
    args: argparse.Namespace, spec: FeatureSpec, batches: dict[str, Any], recipe: dict[str, Any]
) -> dict[str, Any]:
    """Write the rows of all splits, say so, and return the figures."""
    from tfdlrm.data.generators.write import write_criteo, write_prepared

    watch = Stopwatch()
    total = args.rows + args.validation_rows + args.test_rows
    with progress_bars() as new_bar:
        progress = new_bar("generate", total)
        if args.raw:
            rows, rate = write_criteo(args.raw, spec, batches["train"], progress)
        else:
            manifest = write_prepared(args.prepared, spec, batches, recipe, args.format, progress)
            rows = sum(split.rows for split in manifest.splits.values())
            rate = sum(split.positives for split in manifest.splits.values()) / max(1, rows)
    where = args.raw or args.prepared
    say(
        f"{where}: {rows:,} rows of {recipe['generator']} data; tables {len(spec.tables)}, table rows "
        f"{spec.table_rows:,}, ids a row {spec.n_ids}, mean label {rate:.3f}; {rows / watch.seconds:,.0f} rows/s"
    )
    return {"rows": rows, "positive_rate": rate, "rows_per_second": rows / watch.seconds, "recipe": recipe}


def _result_table(mode: str, results: dict[str, TraceResult]) -> Table:
    rows = [
        [name, f"{r.draws:,}", f"{r.in_use:,}", f"{r.warm_up:,}", "-" if r.ks is None else f"{r.ks:.5f}"]
        for name, r in results.items()
    ]
    columns = ["feature", "draws", "ids in use", "warm-up", "KS distance"]
    return Table(f"Stack distances, mode {mode}: what came out after warm-up against what went in", columns, rows)


def judge(mode: str, results: dict[str, TraceResult]) -> int:
    """Return 0 where the traces are what they should be; only mode "lru" says that they will be.

    Raises:
        CheckFailed: one is not.
    """
    unfinished = [name for name, r in results.items() if r.ks is None]
    if unfinished:
        say(f"not checked, since the warm-up takes more rows (--warm-start skips it): {', '.join(unfinished)}")
    if mode == "lru":
        for name, result in results.items():
            if result.ks is not None and result.ks >= result.limit:
                raise CheckFailed(
                    f"feature {name}: the stack distances that came out differ from those that went in: "
                    f"KS distance {result.ks:.5f}, must be under {result.limit:.5f}."
                )
    return 0


def _draw(path: Path, results: dict[str, TraceResult]) -> None:
    """Draw the features that differ most."""
    from tfdlrm.data.files import write_atomic
    from tfdlrm.report.plots import cumulative_shares

    worst = sorted((name for name, r in results.items() if r.ks is not None), key=lambda name: -(results[name].ks or 0))
    if not worst:
        raise DataError("`--picture` must have a feature whose warm-up ended. Received: none; ask for more rows.")
    curves = {
        f"{name}, KS {results[name].ks:.4f}": (results[name].values, results[name].expected, results[name].measured)
        for name in worst[:_MOST_PANELS]
    }
    write_atomic(path, cumulative_shares(curves, "stack distance"))
    say(f"picture in {path}")


def _planted(args: argparse.Namespace) -> int:
    from tfdlrm.data.planted import bayes_path, write_planted

    _refuse_to_replace(args.raw, args.overwrite)
    with progress_bars() as new_bar:
        summary = write_planted(args.raw, args.rows, args.seed, new_bar("generate", args.rows))
    say(
        f"{args.raw}: {summary.rows:,} planted rows, click rate {summary.click_rate:.3f}; best possible AUC "
        f"{summary.bayes_auc:.4f} and log loss {summary.bayes_log_loss:.4f}, by {bayes_path(args.raw)}"
    )
    return 0


def _profile(args: argparse.Namespace) -> int:
    load_tensorflow()
    from tfdlrm.data.generators.profile_columns import profile_columns
    from tfdlrm.data.manifest import Manifest

    manifest = Manifest.load(args.data)
    names = args.columns or list(manifest.spec.sparse_names)
    if len(names) > 1 and not is_per_table(args.out):
        raise ConfigError(f'`--out` must have a "j" in its name for {len(names)} features. Received: {args.out}.')
    with progress_bars() as new_bar:
        progress = new_bar("profile", min(manifest.split(args.split).rows, args.rows or 2**63))
        profiles = profile_columns(
            args.data,
            names,
            split=args.split,
            rows=args.rows,
            padding=args.padding,
            keep_ids=args.keep_ids,
            progress=progress,
        )
    rows = []
    for name, distances in profiles.items():
        file = table_file(args.out, manifest.spec.sparse_names.index(name))
        distances.write(file)
        rows.append(
            [name, f"{len(distances.ids):,}", f"{distances.values[-1]:,}", f"{distances.cumulative[0]:.5f}", str(file)]
        )
    columns = ["feature", "different ids", "largest distance", "share of new ids", "file"]
    print_tables(Table(f"Stack distances of {args.data}, split {args.split}", columns, rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

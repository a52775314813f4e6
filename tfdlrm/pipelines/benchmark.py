"""`python -m tfdlrm.pipelines.benchmark`: how fast training, reading, preparing and serving are."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from rich.console import Console

from tfdlrm.pipelines.benchmarks.figures import rate_text, write_figures
from tfdlrm.pipelines.cli import load_tensorflow, run_command
from tfdlrm.pipelines.console import Advance, progress_bars
from tfdlrm.pipelines.large_pages import start_again_with_large_pages
from tfdlrm.pipelines.parsers import CommandParser
from tfdlrm.pipelines.specs import recipe_spec
from tfdlrm.spec.arguments import natural, positive, positive_number
from tfdlrm.spec.coding import TableCoding
from tfdlrm.spec.config import RunConfig, TableForm, load_config
from tfdlrm.spec.criteo import CARDINALITIES, criteo_spec
from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.train_config import DenseOptimizer, EmbeddingOptimizer

_EMBEDDING_DIM = 16
_EXAMPLES = {
    "train --table-rows 1000000": "rows/s of training",
    "input --rows 1000000": "reading alone",
    "prepare --rows 1000000": "raw rows to TFRecord",
    "serve --table-rows 1000000": "a server under load",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser("tfdlrm.pipelines.benchmark", __doc__, _EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_train(commands.add_parser("train", help="training through model.fit", allow_abbrev=False))
    _add_input(commands.add_parser("input", help="TFRecord files to shuffled batches", allow_abbrev=False))
    _add_prepare(commands.add_parser("prepare", help="raw rows to packed TFRecord files", allow_abbrev=False))
    _add_serve(commands.add_parser("serve", help="questions to a server, over REST and gRPC", allow_abbrev=False))
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="recipe whose [model] and [train] to run (default: the paper's)")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change [model] or [train]; repeatable")
    add("--batch-size", type=positive, help="samples a step (default: the recipe's, else 2048)")
    add(
        "--precision",
        choices=("mixed_bfloat16", "float32"),
        help="of MLPs and interaction; tables stay float32 (default: the recipe's, else mixed_bfloat16)",
    )
    add(
        "--embedding-optimizer",
        choices=get_args(EmbeddingOptimizer),
        help="optimizer of the tables (default: the recipe's, else sgd)",
    )
    add(
        "--dense-optimizer",
        choices=get_args(DenseOptimizer),
        help="optimizer of the MLPs (default: the recipe's, or the one like the tables')",
    )
    _add_tables(parser)
    add("--table-rows", type=positive, metavar="N", help="scale the tables to N rows together")
    add("--ids", choices=("uniform", "powerlaw"), default="uniform", help="how ids are drawn (default: %(default)s)")
    add("--exponent", type=float, default=1.2, metavar="A", help="density falls as id^-A (default: %(default)s)")
    add("--steps", type=positive, default=100, help="steps of one repeat (default: %(default)s)")
    add("--seconds", type=positive_number, help="fewer steps, so that one repeat takes about this long")
    add("--from-disk", action="store_true", help="train from packed rows on disk too, in turn, and print the ratio")
    add("--checkpoints", action="store_true", help="train with a checkpoint a repeat too, in turn, and print its cost")
    add("--data", type=Path, metavar="DIR", help="prepared data set: its tables, and its rows for --from-disk")
    add("--rows", type=positive, default=1_000_000, help="random rows for --from-disk (default: %(default)s)")
    add("--profile", type=Path, metavar="PNG", help="trace some steps: time by operator group as table and picture")
    _add_common(parser)


def _add_input(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--format", choices=("packed", "example"), default="packed", help="of the records (default: %(default)s)")
    add("--rows", type=positive, default=1_000_000, help="random rows to write (default: %(default)s)")
    add("--batch-size", type=positive, default=2048, help="rows a batch (default: %(default)s)")
    add("--data", type=Path, metavar="DIR", help="keep the rows here; a data set that lies there is read as it is")
    _add_tables(parser)
    _add_common(parser)


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rows", type=positive, default=1_000_000, help="planted rows in Criteo's format (default: %(default)s)")
    add("--raw", type=Path, metavar="FILE", help="prepare this file in Criteo's format instead of planted rows")
    add("--once", action="store_true", help="no warm-up and one repeat, for runs of many minutes")
    add("--buckets", type=positive, metavar="N", help="hash values over N rows a table (default: count vocabularies)")
    add("--folder", type=Path, metavar="DIR", help="where the rows lie meanwhile (default: the system's temporary one)")
    _add_common(parser)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="recipe whose [model] to build (default: the paper's)")
    add("--set", action="append", default=[], metavar="MODEL.KEY=VALUE", help="change [model]; repeatable")
    _add_tables(parser)
    add("--table-rows", type=positive, metavar="N", help="scale the tables to N rows together")
    add("--stored", choices=get_args(TableForm), default="float32", help="form of the tables (default: %(default)s)")
    add("--clients", type=positive, default=64, help="clients at a time, beside a single one (default: %(default)s)")
    add("--candidates", type=positive, default=512, help="of a ranking question (default: %(default)s)")
    add("--seconds", type=positive_number, default=5.0, help="of each load (default: %(default)s)")
    add("--rounds", type=positive, default=3, help="of single clients and bare calls in turn (default: %(default)s)")
    add("--batching", type=Path, metavar="FILE", help="batching parameters, to measure with dynamic batching, too")
    add("--folder", type=Path, metavar="DIR", help="keep the model here; one that lies there is taken")
    add("--seed", type=natural, default=0, help="seed of weights, keys and questions (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="also write the figures to a file")


def _add_tables(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tables", choices=sorted(CARDINALITIES), help="published cardinalities (default: kaggle)")


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--repeats", type=positive, default=5, help="timed repeats after one warm-up (default: %(default)s)")
    add("--seed", type=natural, default=0, help="seed of rows, order and weights (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="also write the figures to a file")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark and print its figures."""
    args = build_parser().parse_args(argv)
    return run_command(lambda: _COMMANDS[args.command](args))


def _train(args: argparse.Namespace) -> int:
    config = _config(args)
    spec = _spec(args, config)
    if not 0 < args.exponent < float("inf"):
        raise ConfigError(f"`--exponent` must be above 0. Received: {args.exponent}.")
    load_tensorflow()
    from tfdlrm.pipelines.benchmarks.batches import scaled
    from tfdlrm.pipelines.benchmarks.checkpoint import checkpoint_text
    from tfdlrm.pipelines.benchmarks.profile import draw_split, split_table
    from tfdlrm.pipelines.benchmarks.train import Measurement, measure_training

    if args.table_rows:
        spec = scaled(spec, args.table_rows)
    plan = Measurement(
        ids=args.ids,
        exponent=args.exponent,
        steps=args.steps,
        seconds=args.seconds,
        repeats=args.repeats,
        seed=args.seed,
        disk_rows=args.rows if args.from_disk else 0,
        disk=args.data if args.from_disk else None,
        shuffle_blocks=config.data.shuffle_blocks,
        profile=args.profile is not None,
        checkpoints=args.checkpoints,
    )
    with _bar("train") as progress:
        figures = measure_training(spec, config.model, config.train, plan, progress)
    print(
        f"{figures['table_rows']:,} table rows, batch {figures['batch_size']}, {figures['precision']}, "
        f"{figures['embedding_optimizer']}, {args.ids} ids: {rate_text(figures)}"
    )
    if "disk" in figures:
        disk = figures["disk"]
        print(
            f"from disk, packed and shuffled: {disk['rows_per_second']:,.0f} rows/s "
            f"({disk['slowest']:,.0f} to {disk['fastest']:,.0f}), {disk['to_memory']:.1%} of the rate from memory"
        )
    if "checkpoints" in figures:
        print(checkpoint_text(figures["checkpoints"]))
    if args.profile:
        profile = figures["profile"]
        Console().print(split_table(profile["milliseconds"]))
        title = f"batch {figures['batch_size']}, {figures['precision']}, {figures['embedding_optimizer']}"
        draw_split(profile["milliseconds"], args.profile, title)
        print(f"a traced step took {profile['step_milliseconds']:.2f} ms; picture in {args.profile}")
    write_figures(args.json, figures)
    return 0


def _config(args: argparse.Namespace) -> RunConfig:
    """Return the recipe with what the flags say on top of it."""
    if wrong := [text for text in args.set if not text.startswith(("model.", "train."))]:
        raise ConfigError(f"`--set` must name a key of `model` or `train`. Received: {wrong[0]!r}.")
    settings = [] if args.config else ["train.batch_size=2048", "train.precision=mixed_bfloat16"]
    dense = args.dense_optimizer
    if dense is None and args.embedding_optimizer is not None:
        dense = {"rowwise_adagrad": "adagrad"}.get(args.embedding_optimizer, args.embedding_optimizer)
    flags = {
        "train.batch_size": args.batch_size,
        "train.precision": args.precision,
        "train.embedding.name": args.embedding_optimizer,
        "train.dense.name": dense,
    }
    settings += [f"{key}={value}" for key, value in flags.items() if value is not None]
    if args.batch_size is not None:
        # Rates do not matter here: a recipe's own must not ask for a warm-up at another batch size.
        settings.append(f"train.schedule.reference_batch_size={args.batch_size}")
    return load_config(args.config, [*settings, *args.set])


def _spec(args: argparse.Namespace, config: RunConfig) -> FeatureSpec:
    """Return the features to draw rows for: of a prepared data set, of published tables, or of a recipe that hashes."""
    if args.data is not None:
        if args.tables or args.table_rows:
            raise ConfigError("`--data` must not come with `--tables` or `--table-rows`. Received: both.")
        load_tensorflow()
        from tfdlrm.data.manifest import Manifest

        return Manifest.load(args.data).spec
    if args.config is None or args.tables:
        return criteo_spec(CARDINALITIES[args.tables or "kaggle"], _EMBEDDING_DIM)
    return recipe_spec(config, args.config, "`--tables` or `--data`")


def _input(args: argparse.Namespace) -> int:
    load_tensorflow()
    from tfdlrm.pipelines.benchmarks.input import measure_input

    with _bar("input") as progress:
        figures = measure_input(
            criteo_spec(CARDINALITIES[args.tables or "kaggle"], _EMBEDDING_DIM),
            form=args.format,
            rows=args.rows,
            batch_size=args.batch_size,
            repeats=args.repeats,
            seed=args.seed,
            directory=args.data,
            progress=progress,
        )
    print(f"{args.format}, {figures['rows']:,} rows, batch {args.batch_size}: {rate_text(figures)}")
    write_figures(args.json, figures)
    return 0


def _prepare(args: argparse.Namespace) -> int:
    load_tensorflow()
    from tfdlrm.pipelines.benchmarks.prepare import measure_prepare

    coding = TableCoding(kind="hash", buckets=args.buckets) if args.buckets else None
    if args.raw is not None and not args.raw.is_file():
        raise ConfigError(f"`--raw` must name a file. Received: {args.raw}.")
    repeats = 1 if args.once else args.repeats
    figures = measure_prepare(args.rows, coding, repeats, args.seed, args.folder, args.raw, not args.once)
    how = f"hashed over {args.buckets:,} rows a table" if args.buckets else "with vocabularies"
    print(f"raw to packed {how}, {figures['rows']:,} rows: {rate_text(figures)}")
    write_figures(args.json, figures)
    return 0


def _serve(args: argparse.Namespace) -> int:
    if wrong := [text for text in args.set if not text.startswith("model.")]:
        raise ConfigError(f"`--set` must name a key of `model`. Received: {wrong[0]!r}.")
    if args.batching is not None and not args.batching.is_file():
        raise ConfigError(f"`--batching` must name a file. Received: {args.batching}.")
    config = load_config(args.config, args.set)
    load_tensorflow()
    from tfdlrm.pipelines.benchmarks.batches import scaled
    from tfdlrm.pipelines.benchmarks.served_model import with_reserved_rows
    from tfdlrm.pipelines.benchmarks.serving import Plan, measure_serving, serving_table

    spec = criteo_spec(CARDINALITIES[args.tables or "kaggle"], config.model.embedding_dim)
    if args.table_rows:
        spec = with_reserved_rows(scaled(spec, args.table_rows), config)
    plan = Plan(args.clients, args.candidates, args.seconds, args.seed, args.stored, args.rounds, args.batching)
    console = Console()
    figures = measure_serving(spec, config, plan, args.folder, lambda line: console.print(f"serve: {line}"))
    console.print(serving_table(figures))
    write_figures(args.json, figures)
    return 0


_COMMANDS = {"train": _train, "input": _input, "prepare": _prepare, "serve": _serve}


@contextmanager
def _bar(title: str) -> Iterator[Advance]:
    """Show one bar of rows while the block runs, where someone watches."""
    with progress_bars() as new_bar:
        yield new_bar(title, 0)


if __name__ == "__main__":
    start_again_with_large_pages()
    raise SystemExit(main())

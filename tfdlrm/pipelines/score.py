"""`python -m tfdlrm.pipelines.score --in rows.tsv --out scores.parquet --model M`: score the rows of files."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tfdlrm.data.files import atomic_path, write_atomic
from tfdlrm.data.partial import PartialData, partial_data
from tfdlrm.pipelines.cli import load_tensorflow, refuse_directories, run_command
from tfdlrm.pipelines.console import progress_bars
from tfdlrm.pipelines.manner import say
from tfdlrm.pipelines.parsers import CommandParser, typed_again
from tfdlrm.spec.arguments import natural, positive, positive_number
from tfdlrm.spec.config import load_config
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.raw import RawFormat

if TYPE_CHECKING:
    from tfdlrm.pipelines.scoring.models import Scorer
    from tfdlrm.pipelines.scoring.rows import RowSource

_EXAMPLES = {
    "--in day_24.gz --out scores.parquet --model saved_models/demo": "the newest exported version, loaded here",
    "--in rows.csv --out scores.csv --url http://127.0.0.1:8501 --model demo --threads 3": "a server",
}
_SUFFIXES = (".parquet", ".csv", ".tsv")
TOKEN_VARIABLE = "TFDLRM_TOKEN"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser("tfdlrm.pipelines.score", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("--in", nargs="+", type=Path, required=True, metavar="FILE", dest="inputs", help="text, plain or .gz; .parquet")
    add("--out", type=Path, required=True, metavar="FILE", help="scores in the order of the rows: .parquet, .csv, .tsv")
    add("--model", required=True, help="an exported version or the folder of versions; with --url, the model's name")
    add("--url", help="ask this server, such as http://127.0.0.1:8501, in place of loading the model here")
    add("--version", type=natural, metavar="N", help="with --url: the version to ask (default: the latest)")
    add("--signature", default="serving_default", help="signature that takes raw columns (default: %(default)s)")
    add("--config", type=Path, metavar="FILE", help="recipe whose [data.format] says how rows lie in text files")
    add("--header", action="store_true", help="the first line names the columns, whatever the recipe says")
    add("--delimiter", metavar="CHAR", help="between fields, whatever the recipe says")
    add("--keep", default="", metavar="COLUMNS", help="columns to carry along, by commas")
    add("--batch-size", type=positive, default=4096, metavar="N", help="rows per question (default: %(default)s)")
    add("--threads", type=positive, default=2, metavar="N", help="chunks at work at a time (default: %(default)s)")
    add("--timeout", type=positive_number, default=60.0, metavar="S", help="with --url: seconds (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace what lies at --out")
    add("--json", type=Path, metavar="FILE", help="write rows, seconds and rows/s as JSON here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(arguments)
    again = typed_again("tfdlrm.pipelines.score", arguments)
    return run_command(lambda: _run(args), again)


def _run(args: argparse.Namespace) -> int:
    refuse_directories(args.out, args.json)
    if args.out.suffix not in _SUFFIXES:
        raise ConfigError(f"`--out` must end in one of {', '.join(_SUFFIXES)}. Received: {args.out}.")
    if args.out.exists() and not args.overwrite:
        raise DataError(f"{args.out}: is there already; --overwrite replaces it.")
    if args.version is not None and args.url is None:
        raise ConfigError("`--version` must come with --url: to load one, give its folder. Received: no --url.")
    for path in args.inputs:
        if not path.is_file():
            raise DataError(f"{path}: no such file.")
    stated = load_config(args.config).data.format if args.config is not None else None
    if args.url is None:
        load_tensorflow()
    with closing(_scorer(args)) as scorer, progress_bars() as bars:
        source = _source(args, scorer, stated)
        say(f"score:     {scorer.name}, {len(args.inputs)} file{'s' * (len(args.inputs) > 1)}")
        files = source.identity(bars("reading", 0))
        rows = sum(file["rows"] for file in files)
        identity = {
            "scorer": scorer.identity,
            "files": files,
            **source.layout(),
            "keep": args.keep,
            "batch_size": args.batch_size,
            "suffix": args.out.suffix,
        }
        watch = time.monotonic()
        with partial_data(args.out, identity) as partial:
            resumed, mean = _score(partial, source, bars("scoring", rows), args.out.suffix)
        seconds = time.monotonic() - watch
    figures = {
        "rows": rows,
        "resumed_rows": resumed,
        "seconds": seconds,
        "rows_per_second": (rows - resumed) / seconds,
        "means": mean,
    }
    said = f", {resumed:,} of them by an earlier run" if resumed else ""
    means = ", ".join(f"mean {name} {value:.5f}" for name, value in mean.items())
    say(f"score:     {rows:,} rows{said} in {args.out}, {figures['rows_per_second']:,.0f} rows/s; {means}")
    if args.json is not None:
        write_atomic(args.json, json.dumps(figures, indent=1) + "\n")
    return 0


def _scorer(args: argparse.Namespace) -> Scorer:
    from tfdlrm.pipelines.scoring.models import LocalScorer, ServedScorer

    if args.url is None:
        return LocalScorer(Path(args.model), args.signature)
    token = os.environ.get(TOKEN_VARIABLE)
    return ServedScorer(args.url, args.model, args.version, args.signature, token, args.timeout)


def _source(args: argparse.Namespace, scorer: Scorer, stated: RawFormat | None) -> RowSource:
    from tfdlrm.pipelines.scoring.rows import RowSource, default_format

    given: dict[str, Any] = {"header": True, "columns": ()} if args.header else {}
    given |= {"delimiter": args.delimiter} if args.delimiter else {}
    known = stated or scorer.format
    if known is None:
        format = default_format(args.inputs[0], given)
    else:
        format = RawFormat.model_validate({**known.model_dump(), **given})
    keep = tuple(name.strip() for name in args.keep.split(",") if name.strip())
    return RowSource(args.inputs, format, scorer, keep, args.batch_size, args.threads)


def _score(
    partial: PartialData, source: RowSource, advance: Callable[[int], None], suffix: str
) -> tuple[int, dict[str, float]]:
    """Score the rows that no earlier run has, join all parts, and return the rows it had and the outputs' means."""
    folder = partial.subfolder("parts")
    done = [_rows_read(path) for path in sorted(folder.glob("*.parquet"))]
    advance(sum(done))
    for index, scored in enumerate(source.scored(done), len(done)):
        with atomic_path(folder / f"{index:08d}-{scored.read}.parquet") as temporary:
            scored.frame.write_parquet(temporary)
        advance(scored.read)
    parts = pl.scan_parquet(sorted(folder.glob("*.parquet")), glob=False)
    lists = [name for name, kind in parts.collect_schema().items() if kind.is_nested()]
    if lists and suffix != ".parquet":
        raise ConfigError(f"`--out` must end in .parquet where an output has several values a row. Received: {lists}.")
    if partial.out.is_dir():
        partial.out.rmdir()
    if suffix == ".parquet":
        parts.sink_parquet(partial.out)
    else:
        parts.sink_csv(partial.out, separator="," if suffix == ".csv" else "\t")
    means = parts.select(pl.selectors.float().mean()).collect()
    return sum(done), {name: float(means[name][0]) for name in means.columns}


def _rows_read(path: Path) -> int:
    return int(path.stem.partition("-")[2])


if __name__ == "__main__":
    sys.exit(main())

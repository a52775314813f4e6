"""`python -m tfdlrm.pipelines.inspect DIR`: what a prepared data set holds, and whether it is whole."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfdlrm.data.files import write_atomic
from tfdlrm.pipelines.cli import load_tensorflow, refuse_directories, run_command
from tfdlrm.pipelines.console import progress_bars
from tfdlrm.pipelines.parsers import CommandParser
from tfdlrm.pipelines.table import print_tables

_EXAMPLES = {
    "runs/demo/data": "splits, click rates, top values, drift",
    "runs/demo/data --verify": "read every file and compare checksums",
    "runs/demo/data --html rows.html": "the same as a page",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser("tfdlrm.pipelines.inspect", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("directory", type=Path, metavar="DIR", help="prepared data set: the folder with manifest.json")
    add("--verify", action="store_true", help="first read every file again and compare its checksum")
    add("--html", type=Path, metavar="FILE", help="write the tables and plots as one HTML page")
    add("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    add("--split", metavar="NAME", help="look at one split only")
    add("--rows", type=int, metavar="N", help="read about N rows, in blocks spread evenly (default: all)")
    add("--top", type=int, default=10, metavar="N", help="most used rows to name for each table (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = build_parser().parse_args(argv)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    refuse_directories(args.html, args.json)
    load_tensorflow()
    from tfdlrm.report.inspection import notes, page, tables

    figures = _figures(args)
    print_tables(*tables(figures))
    for line in notes(figures):
        print(line)
    if args.json is not None:
        write_atomic(args.json, json.dumps(figures, indent=1) + "\n")
    if args.html is not None:
        write_atomic(args.html, page(figures, args.directory.resolve().name))
        print(f"Page: {args.html}")
    return 0


def _figures(args: argparse.Namespace) -> dict[str, Any]:
    from tfdlrm.data.encoder_files import ENCODER_FILE, vocabulary_paths
    from tfdlrm.data.inspection import inspect
    from tfdlrm.data.manifest import Manifest

    manifest = Manifest.load(args.directory)
    chosen = list(manifest.splits) if args.split is None else [args.split]
    rows = sum(manifest.split(name).rows for name in chosen)
    with progress_bars() as new_bar:
        if args.verify:
            every = sum(split.rows for split in manifest.splits.values())
            manifest.verify(args.directory, new_bar("verify", every))
            if (args.directory / ENCODER_FILE).exists():
                vocabulary_paths(args.directory)  # compares their checksums
            files = sum(len(split.shards) for split in manifest.splits.values())
            print(f"All {files:,} shards are as manifest.json says.")
        return inspect(
            args.directory,
            split=args.split,
            rows=args.rows,
            top=args.top,
            progress=new_bar("read", rows if args.rows is None else min(rows, args.rows)),
        )


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tfdlrm.pipelines.cluster`: training over many machines, planned and run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tfdlrm.pipelines.cli import run_command
from tfdlrm.pipelines.clusters import measure, plan, run, soak, task
from tfdlrm.pipelines.large_pages import start_again_with_large_pages
from tfdlrm.pipelines.parsers import CommandParser

# Each has `add_parser(subparsers)`, and says there what runs it.
_COMMANDS = (plan, run, task, measure, soak)
_EXAMPLES = {
    "plan --config pipelines/plan_terabyte.toml --servers 8,16": "where tables lie, and what that costs",
    "run --config pipelines/cluster_local.toml": "train on processes of this machine",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser("tfdlrm.pipelines.cluster", __doc__, _EXAMPLES)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands."""
    args = build_parser().parse_args(argv)
    return run_command(lambda: args.run(args))


if __name__ == "__main__":
    start_again_with_large_pages()
    sys.exit(main())

"""Rows in Criteo's format to a served model; without arguments, on 200,000 planted rows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tfdlrm.pipelines.cli import pipeline_main, pipeline_parser, recipe
from tfdlrm.pipelines.large_pages import start_again_with_large_pages

_MODULE = "tfdlrm.pipelines.criteo"
_EXAMPLES = {
    "": "a demo: rows, training, export and check, about a minute",
    "--raw train.txt": "the paper's settings for Kaggle's file",
    "--raw train.txt --dry-run": "what would run, with sizes and times; the recipe",
    "--set train.epochs=3 --work-dir runs/longer": "change the recipe",
    "--stages evaluate,export --work-dir runs/demo": "some stages of a run again",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    return pipeline_parser(_MODULE, __doc__, _EXAMPLES)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the Criteo pipeline: the demo's recipe by default, the Kaggle one where only `--raw` is given."""
    return pipeline_main(_MODULE, build_parser(), argv, lambda args: recipe("criteo_kaggle" if args.raw else "demo"))


if __name__ == "__main__":
    start_again_with_large_pages()
    sys.exit(main())

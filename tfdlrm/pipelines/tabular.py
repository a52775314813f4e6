"""Any CSV or TSV to a served model: the recipe says how rows lie, what is a feature, and what a click is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tfdlrm.pipelines.cli import load_tensorflow, pipeline_main, pipeline_parser
from tfdlrm.pipelines.large_pages import start_again_with_large_pages
from tfdlrm.pipelines.manner import say
from tfdlrm.spec.config import RunConfig
from tfdlrm.spec.errors import ConfigError

_MODULE = "tfdlrm.pipelines.tabular"
_EXAMPLES = {
    "--raw visits.csv --label bought": "a CSV that nobody has described: columns are taken for what they look like",
    "--raw visits.csv --label 'stars >= 4' --split time:when --dry-run > visits.toml": "write the recipe, to be edited",
    "--config visits.toml": "what a recipe describes",
    "--config visits.toml --set train.batch_size=4096": "change it",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = pipeline_parser(_MODULE, __doc__, _EXAMPLES)
    group = parser.add_argument_group("without a recipe, for files with a header")
    group.add_argument("--label", metavar="RULE", help="column of 0 and 1, or a rule such as 'stars >= 4'")
    group.add_argument(
        "--split",
        default="random",
        metavar="HOW",
        help="random, order, time:COLUMN or key:COLUMN (no value of it on two sides) (default: %(default)s)",
    )
    group.add_argument("--drop", nargs="+", default=[], metavar="COLUMN", help="columns that are no features")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline that `--config` describes, or one for the columns of `--raw` as they look."""
    return pipeline_main(_MODULE, build_parser(), argv, _inferred)


def _inferred(args: argparse.Namespace) -> RunConfig | None:
    if args.label is None:
        return None
    if not args.raw:
        raise ConfigError("`--raw` must name the files where --label is given without --config.")
    load_tensorflow()
    from tfdlrm.pipelines.inferred_recipe import infer_recipe

    config, choices = infer_recipe(args.raw, args.label, args.split, args.drop)
    told = [f"{choice.name}: {choice.use}{choice.detail and ', ' + choice.detail} ({choice.why})" for choice in choices]
    for line in told:
        print(f"# {line}") if args.dry_run else say(f"{'columns:':<10} {line}")
    return config


if __name__ == "__main__":
    start_again_with_large_pages()
    sys.exit(main())

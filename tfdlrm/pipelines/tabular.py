"""Any CSV or TSV to a served model: the recipe says how rows lie, what is a feature, and what a click is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tfdlrm.pipelines.cli import pipeline_main, pipeline_parser
from tfdlrm.pipelines.large_pages import start_again_with_large_pages

_MODULE = "tfdlrm.pipelines.tabular"
_EXAMPLES = {
    "--config shop.toml": "your own CSV or TSV",
    "--config shop.toml --dry-run": "what would run, with sizes and times; the recipe",
    "--config shop.toml --set train.batch_size=4096": "change the recipe",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    return pipeline_parser(_MODULE, __doc__, _EXAMPLES)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline that `--config` describes."""
    return pipeline_main(_MODULE, build_parser(), argv, lambda has_raw: None)


if __name__ == "__main__":
    start_again_with_large_pages()
    sys.exit(main())

"""Rows in Criteo's format to a served model; without arguments, on 200,000 planted rows."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tfdlrm.pipelines.cli import pipeline_main, recipe
from tfdlrm.pipelines.large_pages import start_again_with_large_pages


def main(argv: Sequence[str] | None = None) -> int:
    """Run the Criteo pipeline: the demo's recipe by default, the Kaggle one where only `--raw` is given."""
    return pipeline_main(
        "tfdlrm.pipelines.criteo", __doc__, argv, lambda has_raw: recipe("criteo_kaggle" if has_raw else "demo")
    )


if __name__ == "__main__":
    start_again_with_large_pages()
    sys.exit(main())

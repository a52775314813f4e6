"""Any CSV or TSV to a served model: the recipe says how rows lie, what is a feature, and what a click is."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tfdlrm.pipelines.cli import pipeline_main
from tfdlrm.pipelines.large_pages import start_again_with_large_pages


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline that `--config` describes."""
    return pipeline_main("tfdlrm.pipelines.tabular", __doc__, argv, lambda has_raw: None)


if __name__ == "__main__":
    start_again_with_large_pages()
    sys.exit(main())

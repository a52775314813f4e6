"""`python -m tfdlrm.pipelines.quantize --work-dir RUN`: what tables in float16, int8 and int4 save and cost."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tfdlrm.data.files import write_atomic
from tfdlrm.pipelines.cli import load_tensorflow, refuse_directories, run_command
from tfdlrm.pipelines.manner import say
from tfdlrm.pipelines.parsers import CommandParser
from tfdlrm.pipelines.table import print_tables
from tfdlrm.pipelines.work_dir import existing_run, json_text
from tfdlrm.report.quantized import quantized_plot, quantized_table

FIGURES, PLOT = "quantized.json", "quantized.png"
_EXAMPLES = {
    "--work-dir runs/demo": "bytes, AUC, log loss and calibration of float16, int8 and int4",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser("tfdlrm.pipelines.quantize", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("--work-dir", type=Path, required=True, metavar="RUN", help="work dir of a run that has been trained")
    add("--json", type=Path, metavar="FILE", help="write the figures as JSON here too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = build_parser().parse_args(argv)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    refuse_directories(args.json)
    work_dir, config = existing_run(args.work_dir)
    load_tensorflow()
    from tfdlrm.pipelines.quantized_loss import judge_tables
    from tfdlrm.pipelines.stages.context import opened

    with opened(work_dir, config) as run:
        text = json_text(judge_tables(run, run.trained_model(), ("float16", "int8", "int4")))
        figures = json.loads(text)
        for file in (work_dir.report / FIGURES, args.json):
            if file is not None:
                write_atomic(file, text)
        write_atomic(work_dir.report / PLOT, quantized_plot(figures))
        print_tables(quantized_table(figures))
        say(f"Figures and plot: {work_dir.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

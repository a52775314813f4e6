"""`python -m tfdlrm.pipelines.onnx --work-dir RUN --out FILE`: an exported model on encoded ids as ONNX, checked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tfdlrm.pipelines.cli import load_tensorflow, refuse_directories, run_command
from tfdlrm.pipelines.manner import say
from tfdlrm.pipelines.parsers import CommandParser
from tfdlrm.pipelines.work_dir import existing_run
from tfdlrm.spec.errors import DataError

_EXAMPLES = {
    "--work-dir runs/demo --out demo.onnx": "write it, and compare its answers with the export",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser("tfdlrm.pipelines.onnx", __doc__, _EXAMPLES)
    add = parser.add_argument
    add("--work-dir", type=Path, required=True, metavar="RUN", help="work dir of a run that has been exported")
    add("--out", type=Path, required=True, metavar="FILE", help="the ONNX file; large tables go to FILE.<hash>.data")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = build_parser().parse_args(argv)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    refuse_directories(args.out)
    work_dir, config = existing_run(args.work_dir)
    load_tensorflow()
    from tfdlrm.export.onnx import export_onnx
    from tfdlrm.export.saved_model import ASSETS, RECORD_FILE, ExportRecord
    from tfdlrm.pipelines.stages.context import opened

    with opened(work_dir, config) as run:
        exported = work_dir.stage("export")
        if exported is None or not Path(exported["path"]).is_dir():
            raise DataError(f"{work_dir.path}: nothing exported. Run the stage `export` first.")
        if exported["step"] != run.chosen_step():
            raise DataError(f"{work_dir.path}: other weights were exported. Run the stage `export` again.")
        version = Path(exported["path"])
        record = ExportRecord.from_json((version / ASSETS / RECORD_FILE).read_text(encoding="utf-8"))
        report = export_onnx(run.trained_model(), record, version, args.out, tolerance=config.export.tolerance)
    beside = ", tables in a file beside it" if report.external else ""
    say(f"{args.out}: {report.bytes / 2**20:,.1f} MiB{beside}, at most {report.difference:.1e} from {version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

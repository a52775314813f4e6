"""Before the stages, where no raw file is named: planted rows in Criteo's format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tfdlrm.data.files import write_atomic
from tfdlrm.data.planted import bayes_path, write_planted
from tfdlrm.pipelines.console import Stopwatch
from tfdlrm.pipelines.stages.context import Run


def work(run: Run) -> dict[str, Any] | None:
    """Write the planted rows that the configuration asks for, unless they are there."""
    path = Path(run.raw[0])
    # What was asked for is noted last: rows without a note are those of a run that was killed.
    note = path.with_suffix(".json")
    asked = run.config.data.planted.model_dump()
    if note.is_file() and path.is_file() and bayes_path(path).is_file():
        known: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        if known.pop("asked") == asked:
            return None if run.work_dir.stage("generate") else known
    note.unlink(missing_ok=True)
    watch = Stopwatch()
    with run.console.bars() as bar:
        summary = asdict(write_planted(path, **asked, progress=bar("generate", asked["rows"])))
    write_atomic(note, json.dumps({"asked": asked, **summary}, indent=1) + "\n")
    return {**summary, "rows_per_second": summary["rows"] / watch.seconds}


def summary(results: Mapping[str, Any]) -> str:
    """Say what was planted."""
    return (
        f"{results['rows']:,} planted rows, click rate {results['click_rate']:.3f}, best possible AUC "
        f"{results['bayes_auc']:.4f} and log loss {results['bayes_log_loss']:.4f}"
    )

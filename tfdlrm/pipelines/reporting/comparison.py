"""The other run that a page is compared with: `report.compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tfdlrm.data.settings_diff import differences
from tfdlrm.pipelines.stages.context import Run
from tfdlrm.pipelines.stages.evaluate import PREDICTIONS
from tfdlrm.pipelines.work_dir import WorkDir, existing_run
from tfdlrm.report.curves import rows_seen
from tfdlrm.report.html import Section
from tfdlrm.report.run_comparison import ComparedRun, comparison_section
from tfdlrm.spec.config import RunConfig
from tfdlrm.spec.errors import ConfigError, DataError

_NO_MATTER = {"report"}


def refuse_no_comparison(config: RunConfig, work_dir: WorkDir) -> None:
    """Raise where `report.compare` names no run that could be compared with: before the work, not after it.

    Raises:
        ConfigError: it is not the work dir of another run that was evaluated on held-out rows.
    """
    path = config.report.compare
    if not path:
        return
    if Path(path).resolve() == work_dir.path.resolve():
        raise ConfigError(f"`report.compare` must be the work dir of another run. Received: {path}, this one's own.")
    if not (Path(path) / "config.toml").is_file():
        raise ConfigError(f"`report.compare` must be the work dir of a run. Received: {path}, without a config.toml.")
    evaluated = WorkDir(Path(path)).stage("evaluate")
    if evaluated is None or evaluated["split"] is None or not (Path(path) / "report" / PREDICTIONS).is_file():
        raise ConfigError(
            f"`report.compare` must be a run that was evaluated on held-out rows. Received: {path}. Run its stage "
            "`evaluate` first."
        )


def comparison(run: Run) -> list[Section]:
    """Return the section that compares a run with another, none where no other is named.

    Raises:
        ConfigError: as `refuse_no_comparison`.
    """
    refuse_no_comparison(run.config, run.work_dir)
    if not run.config.report.compare:
        return []
    other_dir, other_config = existing_run(Path(run.config.report.compare))
    here = _compared(run.work_dir, run.config, run.config.name)
    name = other_config.name if other_config.name != run.config.name else f"{other_config.name} ({other_dir.path.name})"
    there = _compared(other_dir, other_config, name)
    one, two = (config.model_dump(mode="json", exclude=_NO_MATTER) for config in (run.config, other_config))
    changes = [(change.key, _text(change.a), _text(change.b)) for change in differences(one, two)]
    return [comparison_section(here, there, changes)]


def history_of(work_dir: WorkDir, config: RunConfig) -> list[dict[str, Any]]:
    """Return the validations of a run, each with the training rows seen by then."""
    trained, prepared = work_dir.stage("train"), work_dir.stage("prepare")
    if trained is None:
        return []
    # Rows of an epoch; a run whose rows were prepared elsewhere has noted what it trained on.
    rows = prepared["splits"]["train"]["rows"] if prepared else trained["rows"] // max(trained["epochs"], 1)
    batch_size = config.train.batch_size
    return [{**entry, "rows_seen": rows_seen(entry["step"], rows, batch_size)} for entry in trained["history"]]


def _compared(work_dir: WorkDir, config: RunConfig, name: str) -> ComparedRun:
    evaluated = work_dir.stage("evaluate")
    if evaluated is None or evaluated["split"] is None:
        raise DataError(f"{work_dir.path}: no held-out rows were scored. Run the stage `evaluate` first.")
    with np.load(work_dir.report / PREDICTIONS) as file:
        columns = dict(file)
    exported = evaluated["exported"]
    history = history_of(work_dir, config)
    return ComparedRun(
        name, evaluated["metrics"][exported], columns["label"], columns[exported], columns.get("sample_weight"), history
    )


def _text(value: Any) -> str:
    return "-" if value is None else str(value)

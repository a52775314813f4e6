"""Stage `verify`: the exported version must answer raw held-out rows over HTTP as the model does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdlrm.data.files import write_atomic
from tfdlrm.export.verify import VerifyError, verify
from tfdlrm.pipelines.console import Stopwatch
from tfdlrm.pipelines.held_out import as_rows
from tfdlrm.pipelines.local_server import LocalServer
from tfdlrm.pipelines.served_rows import BATCH, served_rows
from tfdlrm.pipelines.stages.context import Run
from tfdlrm.pipelines.stages.export import export_settings
from tfdlrm.serving.client import PredictClient
from tfdlrm.spec.errors import DataError

REQUEST = "request.json"
_BEFORE_NOTED = {"logit_shift": 0.0, "tables": "float32"}


def work(run: Run) -> dict[str, Any]:
    """Ask a server; raise unless every answer is within the tolerance, as those of a fresh process were.

    A version that answers wrongly is withdrawn: it gets another name, which servers overlook. A server that does not
    start says nothing about the version, which stays.
    """
    exported = run.work_dir.stage("export")
    if exported is None:
        raise DataError(f"{run.work_dir.path}: nothing to verify. Run the stage `export` first.")
    path, tolerance = Path(exported["path"]), run.config.export.tolerance
    if not path.is_dir():
        raise DataError(f"{path}: no such version. Run the stage `export` again.")
    try:
        return _verify(run, exported, path, tolerance)
    except VerifyError:
        # A server that watches the folder must not go on serving what answers wrongly.
        path.rename(_free_name(path))
        raise


def _free_name(path: Path) -> Path:
    """Return a name for a rejected version: the same number may have been rejected before."""
    names = (f"rejected-{path.name}{again}" for again in chain([""], (f"-{number}" for number in count(2))))
    return next(free for name in names if not (free := path.with_name(name)).exists())


def _verify(run: Run, exported: Mapping[str, Any], path: Path, tolerance: float) -> dict[str, Any]:
    _refuse_other_model(run, exported)
    with ExitStack() as stack:
        # A server loads the newest version of a folder; here it shall be this one, whatever has come since.
        alone = Path(stack.enter_context(TemporaryDirectory(prefix="tfdlrm-verify-")))
        (alone / path.name).symlink_to(path.resolve(), target_is_directory=True)
        # It loads while the other process is asked.
        server = stack.enter_context(LocalServer(exported["model_name"], alone, run.work_dir.logs / "serving.log"))
        served = served_rows(run, run.trained_model())
        columns, expected = served.columns, served.expected
        # The stage `export` has asked a fresh process already; older ones have not.
        if "differences" in exported:
            by_export, seconds_load = exported["differences"], exported["seconds_load"]
            differences: dict[str, float] = {}
        else:
            reloaded = verify(path, served.arrays, expected, tolerance, ids=served.ids, batch_size=BATCH)
            by_export, seconds_load = {}, reloaded.seconds_load
            differences = dict(reloaded.differences)
        with PredictClient(server.url, exported["model_name"], version=exported["version"], timeout=300) as client:
            server.wait_until_ready(client)
            watch = Stopwatch()
            by_columns = _ask(client, columns, by_row=False)
            seconds = watch.seconds
            by_rows = _ask(client, columns, by_row=True)
    for name, answers in (("HTTP by columns", by_columns), ("HTTP by rows", by_rows)):
        differences[name] = float(np.max(np.abs(answers.astype(np.float64) - expected)))
    for name, difference in {**by_export, **differences}.items():
        if not difference <= tolerance:
            raise VerifyError(f"{path}: {name} differs from the model by {difference:g}, above {tolerance:g}.")
    write_atomic(run.work_dir.report / REQUEST, json.dumps({"instances": as_rows(columns)[:1]}) + "\n")
    return {
        "rows": len(expected),
        "rows_per_second": len(expected) / seconds,
        "split": served.split,
        "tolerance": tolerance,
        "differences": differences,
        "differences_of_export": by_export,
        "seconds_load": seconds_load,
    }


def summary(results: Mapping[str, Any]) -> str:
    """Say how close the answers are."""
    worst = max(results["differences"].values())
    how = "over HTTP" if results["differences_of_export"] else "reloaded and over HTTP"
    return f"{results['rows']:,} {results['split']} rows, {how}, at most {worst:.1e} from the model"


def _refuse_other_model(run: Run, exported: Mapping[str, Any]) -> None:
    """Raise where what was exported is not what would be exported now."""
    weights = run.weights()[run.chosen_weights()]
    if weights.name != f"step-{exported['step']:010d}":
        raise DataError(f"{run.work_dir.path}: other weights were exported. Run the stage `export` again.")
    for name, setting in export_settings(run).items():
        # Older exports have not noted all of them.
        if exported.get(name, _BEFORE_NOTED.get(name, setting)) != setting:
            other = "another `export.correct_sampling`" if name == "logit_shift" else f"other `export.{name}`"
            raise DataError(f"{run.work_dir.path}: exported with {other}. Run the stage `export` again.")


def _ask(client: PredictClient, columns: Mapping[str, list[Any]], by_row: bool) -> npt.NDArray[Any]:
    rows = len(next(iter(columns.values())))
    answers = []
    for start in range(0, rows, BATCH):
        part = {name: values[start : start + BATCH] for name, values in columns.items()}
        answer = client.predict(rows=as_rows(part)) if by_row else client.predict(columns=part)
        answers.append(np.asarray(answer).reshape(-1))
    return np.concatenate(answers)

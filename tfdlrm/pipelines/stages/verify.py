"""Stage `verify`: the exported version must answer raw held-out rows as the model does, reloaded and over HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfdlrm.data.dataset import packed_dataset
from tfdlrm.data.files import write_atomic
from tfdlrm.export.quantized import quantized_tables
from tfdlrm.export.serving_rows import serving_rows
from tfdlrm.export.verify import VerifyError, verify
from tfdlrm.models.probability import probability_function
from tfdlrm.pipelines.console import Stopwatch
from tfdlrm.pipelines.held_out import as_columns, as_rows, held_out_rows
from tfdlrm.pipelines.local_server import LocalServer
from tfdlrm.pipelines.stages.context import Run
from tfdlrm.serving.client import PredictClient
from tfdlrm.spec.errors import DataError

REQUEST = "request.json"
_BATCH = 2048  # rows per question, and per step of the prediction they are compared with: bfloat16 depends on it


def work(run: Run) -> dict[str, Any]:
    """Ask a fresh process and a server; raise unless every answer is within the tolerance."""
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
        path.rename(path.with_name(f"rejected-{path.name}"))
        raise


def _verify(run: Run, exported: Mapping[str, Any], path: Path, tolerance: float) -> dict[str, Any]:
    _refuse_other_model(run, exported)
    split = run.held_out() or "train"
    with ExitStack() as stack:
        # A server loads the newest version of a folder; here it shall be this one, whatever has come since.
        alone = Path(stack.enter_context(TemporaryDirectory(prefix="tfdlrm-verify-")))
        (alone / path.name).symlink_to(path.resolve(), target_is_directory=True)
        # It loads while the other process is asked.
        server = stack.enter_context(LocalServer(exported["model_name"], alone, run.work_dir.logs / "serving.log"))
        frame = held_out_rows(run, split, run.config.export.verify_rows)
        columns = as_columns(frame, [*run.encoder.columns.numbers, *run.encoder.columns.strings])
        arrays = {n: np.array(v, object if isinstance(v[0], str) else np.float32) for n, v in columns.items()}
        encoded = {name: values.numpy() for name, values in run.encoder.encode(_tensors(arrays)).items()}
        _refuse_skew(run, split, encoded)
        expected = _predicted(run, encoded)
        reloaded = verify(path, arrays, expected, tolerance, ids=_used(run, encoded), batch_size=_BATCH)
        with PredictClient(server.url, exported["model_name"], version=exported["version"], timeout=300) as client:
            server.wait_until_ready(client)
            watch = Stopwatch()
            by_columns = _ask(client, columns, by_row=False)
            seconds = watch.seconds
            by_rows = _ask(client, columns, by_row=True)
    differences = dict(reloaded.differences)
    for name, answers in (("HTTP by columns", by_columns), ("HTTP by rows", by_rows)):
        differences[name] = float(np.max(np.abs(answers.astype(np.float64) - expected)))
        if not differences[name] <= tolerance:
            raise VerifyError(f"{path}: {name} differs from the model by {differences[name]:g}, above {tolerance:g}.")
    write_atomic(run.work_dir.report / REQUEST, json.dumps({"instances": as_rows(columns)[:1]}) + "\n")
    return {
        "rows": frame.height,
        "rows_per_second": frame.height / seconds,
        "split": split,
        "tolerance": tolerance,
        "differences": differences,
        "seconds_load": reloaded.seconds_load,
    }


def summary(results: Mapping[str, Any]) -> str:
    """Say how close the answers are."""
    worst = max(results["differences"].values())
    return f"{results['rows']:,} {results['split']} rows, reloaded and over HTTP, at most {worst:.1e} from the model"


def _tensors(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, tf.Tensor]:
    return {
        name: tf.constant(values.tolist(), tf.string) if values.dtype == object else tf.constant(values)
        for name, values in arrays.items()
    }


def _refuse_skew(run: Run, split: str, encoded: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raise unless raw rows, encoded as a server will encode them, are the packed rows, bit for bit.

    Numbers shifted by the minimum of their file are left out: a server knows no file.
    """
    rows = len(encoded["sparse"])
    packed, *_ = next(packed_dataset(run.work_dir.data, split, rows, manifest=run.manifest).as_numpy_iterator())
    same = [feature.transform != "log_file_minimum" for feature in run.spec.dense]
    for name, values in encoded.items():
        compared = same if name == "dense" else slice(None)
        if not np.array_equal(values[:, compared], packed[name][:, compared]):
            raise DataError(
                f"{run.work_dir.data}: `{name}` of the first {rows} {split} rows must be what the raw rows encode to. "
                "Received: other values; the raw files have changed, so run the stage `prepare` again."
            )


def _refuse_other_model(run: Run, exported: Mapping[str, Any]) -> None:
    """Raise where what was exported is not what would be exported now."""
    weights = run.weights()[run.chosen_weights()]
    if weights.name != f"step-{exported['step']:010d}":
        raise DataError(f"{run.work_dir.path}: other weights were exported. Run the stage `export` again.")
    if run.config.logit_shift != exported.get("logit_shift", 0.0):
        raise DataError(
            f"{run.work_dir.path}: exported with another `export.correct_sampling`. Run the stage `export` again."
        )
    if run.config.export.tables != exported.get("tables", "float32"):
        raise DataError(f"{run.work_dir.path}: exported with other `export.tables`. Run the stage `export` again.")


def _predicted(run: Run, encoded: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    model = run.trained_model()
    score = tf.function(probability_function(model, run.config.logit_shift), reduce_retracing=True, autograph=False)
    # Tables in fewer bytes answer otherwise than the model does, by as much as `export` measured; a version must answer
    # what the model does that reads such tables.
    with serving_rows(model, run.untouched_rows), quantized_tables(model, run.config.export.tables):
        parts = [
            score({name: tf.constant(values[start : start + _BATCH]) for name, values in encoded.items()})
            for start in range(0, len(encoded["sparse"]), _BATCH)
        ]
    return np.concatenate(parts)[:, 0]


def _used(run: Run, encoded: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Return the inputs of `serve_ids`."""
    unused = () if run.spec.n_dense else ("dense",)
    return {name: array for name, array in encoded.items() if name not in unused} | {
        "sparse": encoded["sparse"].astype(np.int64)
    }


def _ask(client: PredictClient, columns: Mapping[str, list[Any]], by_row: bool) -> npt.NDArray[Any]:
    rows = len(next(iter(columns.values())))
    answers = []
    for start in range(0, rows, _BATCH):
        part = {name: values[start : start + _BATCH] for name, values in columns.items()}
        answer = client.predict(rows=as_rows(part)) if by_row else client.predict(columns=part)
        answers.append(np.asarray(answer).reshape(-1))
    return np.concatenate(answers)

"""One run of the pipeline: the stages asked for, in order, each noting its results as it ends."""

from __future__ import annotations

import gc
import logging
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfdlrm.data.columns import raw_columns
from tfdlrm.distribute.strategies import ONE_DEVICE, start, table_maker
from tfdlrm.export.ranking import refuse_no_columns
from tfdlrm.export.verify import VerifyError
from tfdlrm.models.build import build, storage_of
from tfdlrm.pipelines.cli import CheckFailed
from tfdlrm.pipelines.console import Console, Stopwatch
from tfdlrm.pipelines.manner import say
from tfdlrm.pipelines.parent import start_of
from tfdlrm.pipelines.parsers import typed_again
from tfdlrm.pipelines.reporting.comparison import refuse_no_comparison
from tfdlrm.pipelines.run_logs.mlperf import refuse_no_package
from tfdlrm.pipelines.stages import evaluate, export, generate, prepare, report, train, verify
from tfdlrm.pipelines.stages.context import Run, damage_told
from tfdlrm.pipelines.table import correction_table, result_table, say_tables, stage_table
from tfdlrm.pipelines.work_dir import WorkDir
from tfdlrm.spec.config import RunConfig
from tfdlrm.spec.derive import encoding_of, refuse_unstated_rows, spec_of
from tfdlrm.spec.errors import ConfigError, UserError
from tfdlrm.spec.growth import refuse_ungrowable_tables
from tfdlrm.spec.model_spec import refuse_hopeless_budget, refuse_unfit, without_compression
from tfdlrm.training.stop_signal import TrainingStopped
from tfdlrm.training.trainer import compile_model

_PORT = 8501  # TensorFlow Serving's own


@dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        work: Does it; returns what goes into `metrics.json`, `None` if all was done before.
        summary: Says those results in words.
    """

    work: Callable[[Run], dict[str, Any] | None]
    summary: Callable[[Mapping[str, Any]], str]


STAGES = {
    "generate": Stage(generate.work, generate.summary),
    "prepare": Stage(prepare.work, prepare.summary),
    "train": Stage(train.work, train.summary),
    "evaluate": Stage(evaluate.work, evaluate.summary),
    "export": Stage(export.work, export.summary),
    "verify": Stage(verify.work, verify.summary),
    "report": Stage(report.work, report.summary),
}


def run_pipeline(
    config: RunConfig, work_dir: WorkDir, stages: Sequence[str], overwrite: bool = False, table: bool = True
) -> dict[str, Any]:
    """Run stages in a work dir; what an earlier call finished is not done again.

    Args:
        config: The run's configuration; `refuse_misfit` has nothing against it.
        work_dir: Opened for that configuration.
        stages: Names of stages, in the order of `STAGES`.
        overwrite: Whether rows that another recipe prepared may be replaced.
        table: Whether to end with the table of results.

    Returns:
        What `metrics.json` holds at the end.

    Raises:
        UserError: configuration, raw data or an earlier stage's results cannot be used.
        CheckFailed: the exported model does not answer what it should.
        TrainingStopped: SIGTERM came while training; a checkpoint has been written.
    """
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    distribution = start(config.distribute) if "train" in stages else ONE_DEVICE
    run = Run(config, work_dir, Console(work_dir.logs / "pipeline.log"), overwrite, distribution)
    run.console.say(f"{config.name}: {', '.join(stages)} in {work_dir.path} (TensorFlow {tf.__version__})")
    if "train" in stages and work_dir.stage("train") is None:
        start_of(run)
    if "export" in stages:
        refuse_unstated_rows(config)
    if "report" in stages:
        refuse_no_comparison(config, work_dir)
    if "train" in stages:
        refuse_no_package(config)
    for name in ["generate", *stages] if run.planted and "prepare" in stages else stages:
        watch = Stopwatch()
        with run.stop.on_sigterm() if name == "train" else nullcontext():
            results = do_stage(STAGES[name], run)
        if results is None:
            run.console.say(f"{name + ':':<10} done before")
            continue
        results = {"seconds": watch.seconds, **results}
        work_dir.note_stage(config.name, name, results)
        run.console.say(f"{name + ':':<10} {STAGES[name].summary(results)} ({watch.seconds:,.1f} s)")
        if run.stop.requested:
            raise TrainingStopped("training was asked to stop, and has ended.")
    metrics = work_dir.metrics()
    if table:
        say_tables(stage_table(metrics), result_table(metrics), correction_table(metrics))
        for line in _serving_commands(run):
            say(line)
    return metrics


def refuse_misfit(config: RunConfig) -> None:
    """Raise where `[model]` and `[train]` do not fit the features: now, not when the rows have been prepared."""
    encoding = encoding_of(config.data)
    spec = spec_of(config.data, dict.fromkeys(encoding.tables, 1), config.model.embedding_dim)
    storage = storage_of(config.model.name, config.model)
    refuse_unfit(spec, config.model, storage)
    refuse_hopeless_budget(spec, config.model, storage)
    columns = raw_columns(encoding, {feature.name: feature.table for feature in spec.sparse}, spec.dense_names)
    refuse_no_columns(config.export.rank_candidates, (*columns.numbers, *columns.strings), encoding)
    if config.data.growth.from_run is not None:
        refuse_ungrowable_tables(config.model, encoding)
    # One row a table is enough to see widths fit, and too little to compress.
    model = without_compression(config.model)
    try:
        tables = table_maker(config.distribute, config.train.embedding)
        compile_model(build(model.name, spec, model, config.train.precision, prepare=tables), config.train)
    except UserError:
        raise
    except ValueError as error:
        raise ConfigError(f"`model` and `train` must fit the features: {error}") from None
    keras.backend.clear_session()


def do_stage(stage: Stage, run: Run) -> dict[str, Any] | None:
    """Do one stage, tell damaged rows and failed checks as the user's, and let go of its model.

    Returns:
        Its results, `None` if all was done before.

    Raises:
        UserError, CheckFailed: as `run_pipeline`.
    """
    try:
        with damage_told():
            return stage.work(run)
    except VerifyError as error:
        raise CheckFailed(str(error)) from None
    finally:
        # The next stage makes a model of its own, and two sets of tables may not fit.
        keras.backend.clear_session()
        gc.collect()


def _serving_commands(run: Run) -> Iterator[str]:
    """Yield how to serve the exported model, and how to ask it about a raw row."""
    exported, verified = run.work_dir.stage("export"), run.work_dir.stage("verify")
    request = run.work_dir.report / verify.REQUEST
    if exported is None or verified is None or not request.is_file():
        return
    name, base = exported["model_name"], Path(exported["path"]).parent
    yield "Serve the model:"
    flags = ["--model_name", name, "--model_base_path", str(base), "--rest_api_port", str(_PORT)]
    yield "  " + typed_again("tfdlrm.serving", flags)
    yield f"Ask it about the first {verified['split']} row, from another terminal:"
    body = shlex.quote(request.read_text(encoding="utf-8").strip())
    yield f"  curl -d {body} http://localhost:{_PORT}/v1/models/{name}:predict"

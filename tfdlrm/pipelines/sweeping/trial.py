"""`python -m tfdlrm.pipelines.sweeping.trial ROOT TRIAL`: one trial of a sweep, in a process that ends with it."""

from __future__ import annotations

import fcntl
import math
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfdlrm.pipelines.cli import load_tensorflow, run_command
from tfdlrm.pipelines.sweeping.folder import SweepFolder
from tfdlrm.pipelines.sweeping.spending import Meter, spent_by
from tfdlrm.spec.byte_sizes import bytes_in_words
from tfdlrm.spec.config import RunConfig
from tfdlrm.spec.errors import DataError, UserError
from tfdlrm.spec.train_config import TrainConfig
from tfdlrm.tuning.results import METRICS, Proposal, SeedResult, Spent, TrialResult
from tfdlrm.tuning.sweep_config import SweepConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run a trial; all that goes wrong in it for reasons of its settings is its outcome."""
    root, name = sys.argv[1:] if argv is None else argv
    return run_command(lambda: _run(SweepFolder(Path(root)), name))


def _run(folder: SweepFolder, name: str) -> int:
    with Meter(folder.trial(name)) as meter:
        load_tensorflow()
        from tfdlrm.pipelines.sweeping.hparams import write_hparams

        result = _outcome(folder, folder.proposal(name), meter)
        # First of all: whatever happens to the rest, the trial has ended.
        folder.note_outcome(result)
        sweep, _ = folder.settings()
        if result.status != "completed" or not _may_be_gone_on_from(sweep, result):
            folder.drop_trainings(name)
        write_hparams(folder.root / "tensorboard", result)
    return 0


def _outcome(folder: SweepFolder, proposal: Proposal, meter: Meter) -> TrialResult:
    sweep, _ = folder.settings()
    known: dict[str, Any] = proposal._asdict()
    seeds: list[SeedResult] = []
    try:
        config = folder.space().apply(proposal.values)
        splits = prepare_rows(folder, config)
        if not splits["validation"]["rows"]:
            raise DataError("`data.split` must leave rows for validation, which trials are compared on. Received: 0.")
        known |= _sizes(folder, config)
        most = sweep.budget.most_bytes
        if most is not None and known["bytes"] > most:
            reason = (
                f"{bytes_in_words(known['bytes'])} of weights and slots, over the {bytes_in_words(most)} a trial may"
            )
            return TrialResult(**known, status="refused", reason=reason)
        for number in range(sweep.seeds):
            limited = limited_config(config, sweep, splits["train"]["rows"], proposal.share, number)
            trained, parameters = _train(folder, proposal, limited, sweep.budget.seconds_per_trial, meter)
            seeds.append(trained)
            known["parameters"] = parameters
    except UserError as error:
        known |= {"status": "failed", "reason": " ".join(str(error).split())}
    else:
        known["status"] = "completed"
    return TrialResult(**known, seeds=tuple(seeds), spent=meter.spent.seeds)


def prepare_rows(folder: SweepFolder, config: RunConfig) -> dict[str, Any]:
    """Prepare the rows of a recipe, unless that was done before; return its splits.

    Several processes may ask for the same rows: one prepares, the others wait.

    Raises:
        UserError: rows cannot be prepared.
    """
    from tfdlrm.pipelines.run import run_pipeline

    rows = folder.rows(config.data)
    rows.path.parent.mkdir(parents=True, exist_ok=True)
    plain = RunConfig(name="rows", data=config.data)  # the rest says nothing of rows
    with rows.path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with rows.open(plain) as work_dir:
            metrics = run_pipeline(plain, work_dir, ["prepare"], table=False)
    splits: dict[str, Any] = metrics["stages"]["prepare"]["splits"]
    return splits


def limited_config(config: RunConfig, sweep: SweepConfig, rows: int, share: float, number: int) -> RunConfig:
    """Return the configuration of one training of a trial.

    Args:
        config: The trial's.
        sweep: The sweep, whose budget and early stopping hold.
        rows: Training rows.
        share: Share of a full training that is asked for.
        number: Which of the seeds.
    """
    train, budget = config.train, sweep.budget
    bounds = [train.epochs * math.ceil(rows / train.batch_size)]
    if budget.rows_per_trial is not None:
        bounds.append(math.ceil(budget.rows_per_trial / train.batch_size))
    if train.max_steps is not None:
        bounds.append(train.max_steps)
    changes: dict[str, Any] = {
        "max_steps": max(1, math.ceil(min(bounds) * share)),
        "keep_checkpoints": 1,  # one to go on from, beside the best
        **sweep.selection(train.batch_size),
    }
    return config.model_copy(update={"seed": config.seed + number, "train": TrainConfig(**{**dict(train), **changes})})


def _train(
    folder: SweepFolder, proposal: Proposal, config: RunConfig, seconds: float | None, meter: Meter
) -> tuple[SeedResult, int]:
    """Train once and return the metrics of the best weights on validation rows, and how many weights there are."""
    from tfdlrm.pipelines.stages.context import Run
    from tfdlrm.training.stop_signal import TrainingStopped

    work_dir = folder.training(proposal.trial, config.seed, config.data)
    source, before = _earlier(folder, proposal, config)
    console = meter.console(work_dir.logs / "pipeline.log")
    run = Run(config, work_dir, console)
    with meter.training(config.seed, before) as spent:
        if source is not None and not work_dir.checkpoints.exists():
            _copy(source, work_dir.checkpoints)  # rows seen once need not be seen again
        timer = threading.Timer(max(0.0, (seconds or 0) - spent), run.stop.request)
        timer.daemon = True
        if seconds is not None:
            timer.start()
        try:
            trained = _do_train(run)
        except TrainingStopped:
            # Its time is up: where it stands is where it ends, and is judged.
            steps = _steps_done(run)
            ended = config.model_copy(update={"train": config.train.model_copy(update={"max_steps": steps})})
            trained = _do_train(Run(ended, work_dir, console))
        finally:
            timer.cancel()
        meter.note_rows(trained["rows"])
    best = trained["validation"]["best"]
    result = SeedResult(
        seed=config.seed,
        metrics={name: best[name] for name in METRICS},
        rows=trained["rows"],
        steps=trained["steps"],
        seconds=trained["rows"] / trained["rows_per_second"] if trained["rows_per_second"] else 0.0,
        stopped_early=trained["stopped_early"],
    )
    return result, trained["parameters"]


def _earlier(folder: SweepFolder, proposal: Proposal, config: RunConfig) -> tuple[Path | None, Spent | None]:
    """Return the checkpoints of the training to go on with, and what it has spent; `None` where there is none."""
    if proposal.goes_on_from is None:
        return None, None
    source = folder.training(proposal.goes_on_from, config.seed, config.data).checkpoints
    if not source.is_dir():
        return None, None
    spent = spent_by(folder.trial(proposal.goes_on_from)).seeds
    return source, next((own for own in spent if own.seed == config.seed), None)


def _copy(source: Path, target: Path) -> None:
    """Copy a folder, whole or not at all."""
    copy = target.with_name(f"{target.name}.copy")
    shutil.rmtree(copy, ignore_errors=True)  # of a process that was killed
    shutil.copytree(source, copy)
    copy.replace(target)


def _do_train(run: Any) -> dict[str, Any]:
    from tfdlrm.pipelines.run import Stage, do_stage
    from tfdlrm.pipelines.stages import train

    found = do_stage(Stage(train.work, str), run)
    if found is not None:
        run.work_dir.note_stage(run.config.name, "train", found)
    noted: dict[str, Any] = run.work_dir.metrics()["stages"]["train"]
    return noted


def _steps_done(run: Any) -> int:
    from tfdlrm.training.checkpoint import checkpoints, read_train_state

    return max(1, read_train_state(checkpoints(run.work_dir.checkpoints)[-1]).step)


def _sizes(folder: SweepFolder, config: RunConfig) -> dict[str, int]:
    """Return the bytes of the tables as they are stored, and of all weights with slots: before there are any."""
    import tf_keras as keras

    from tfdlrm.distribute.layout import SLOTS, dense_slot_bytes, pieces_of
    from tfdlrm.models.build import storage_of
    from tfdlrm.pipelines.clusters.dense_weights import dense_weights
    from tfdlrm.pipelines.console import Console
    from tfdlrm.pipelines.stages.context import Run

    run = Run(config, folder.training("sizes", 0, config.data), Console(quiet=True))
    storage = storage_of(config.model.name, config.model)
    optimizer = config.train.embedding.name
    pieces = pieces_of(storage.tables_of(run.spec), optimizer, batch_size=1, linear=storage.beside)
    tables = sum(piece.rows * piece.row_bytes for piece in pieces)
    slots = sum(piece.rows * piece.slot_bytes for piece in pieces) + SLOTS[optimizer] * storage.other_bytes
    dense = sum(dense_weights(run.spec, config.model).values())
    keras.backend.clear_session()
    slots += dense_slot_bytes(config.train.dense.name, dense)
    return {"table_bytes": tables + storage.other_bytes, "bytes": tables + storage.other_bytes + dense + slots}


def _may_be_gone_on_from(sweep: SweepConfig, result: TrialResult) -> bool:
    """Return whether a later round of Hyperband may go on with what a trial trained."""
    return sweep.algorithm == "hyperband" and result.share < 1


def searches_data(sweep: SweepConfig) -> bool:
    """Return whether trials differ in how rows are prepared."""
    return any(key.split(".")[0] == "data" for key in sweep.space)


if __name__ == "__main__":
    sys.exit(main())

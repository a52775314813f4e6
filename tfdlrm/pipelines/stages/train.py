"""Stage `train`: from the newest checkpoint, if there is one, to the last epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfdlrm.data.dataset import packed_dataset, packed_units
from tfdlrm.data.files import write_atomic
from tfdlrm.distribute.strategies import table_maker
from tfdlrm.pipelines.benchmarks.figures import write_figures
from tfdlrm.pipelines.kept_plan import keep_plan
from tfdlrm.pipelines.parent import noted_start
from tfdlrm.pipelines.reporting.environment import environment
from tfdlrm.pipelines.run_logs.mlperf import FILE, mlperf_log
from tfdlrm.pipelines.run_logs.tensorboard import FOLDER, tensorboard_log
from tfdlrm.pipelines.stages.context import Run
from tfdlrm.pipelines.stages.placing import placed, tell_held
from tfdlrm.pipelines.table import plan_table, say_tables
from tfdlrm.report.budget import budget_picture
from tfdlrm.training.checkpoint import read_train_state
from tfdlrm.training.events import Listener, told_to
from tfdlrm.training.resume import newest_sound
from tfdlrm.training.trainer import set_determinism, train


def work(run: Run, watched: Mapping[str, Callable[[], tf.data.Dataset]] | None = None) -> dict[str, Any] | None:
    """Train, unless that was done before; `watched` rows are scored along the way, see `train`."""
    run.refuse_other_data()
    done = run.work_dir.stage("train")
    # Training reads every byte of the checkpoint that it goes on from; one that is not gone on from is read here.
    found = newest_sound(
        run.work_dir.checkpoints, run.told("train"), checksums=done is not None, tidy=run.distribution.is_chief
    )
    if found is not None and done and read_train_state(found).step == done["steps"]:
        return None
    with _listening(run) as listener:
        return _train(run, found, watched, listener)


def _train(
    run: Run, found: Path | None, watched: Mapping[str, Callable[[], tf.data.Dataset]] | None, listener: Listener
) -> dict[str, Any]:
    """Train from the newest checkpoint, `found`, or from the beginning; return what is noted about it."""
    config, data = run.config.train, _PackedRows(run)
    start = noted_start(run)
    if run.distribution.is_chief:
        if run.plan is not None and found is None:
            keep_plan(run.work_dir.checkpoints, run.planned_for, run.plan)
        _tell_plan(run)
    set_determinism(run.config.seed, config.deterministic)
    placing = placed(run)
    tables, dense = (None, None) if placing is None else (placing.plan.placement, placing.dense)
    with run.distribution.scope(tables, dense, draws=found is None) as servers:
        first_step = start.steps if start is not None and config.restart_schedule else 0
        model = run.new_model(first_step, table_maker(run.config.distribute, config.embedding))
    if placing is not None and servers is not None:
        tell_held(run, placing.plan, servers.bytes)
    if start is not None and found is None:
        run.console.say(f"{'train:':<10} starting from {start.checkpoint}")
        start.load_into(model, run)
        note = start.sampling_note(run)
        if note is not None:
            run.console.say(f"{'train:':<10} {note}")
    with run.console.bars() as bar:
        result = train(
            model,
            config,
            data,
            run.work_dir.checkpoints,
            validation=data.validation if run.manifest.splits["validation"].rows else None,
            progress=bar("train", config.epochs * data.rows),
            log=run.told("train"),
            watched=watched,
            devices=run.distribution,
            stop=run.stop,
            listener=listener,
        )
    state = result.state
    return {
        "rows": state.samples,
        "rows_per_second": state.samples / state.seconds if state.seconds else None,
        "steps": state.step,
        "epochs": state.epoch,
        "stopped_early": result.stopped_early,
        "best_step": state.best_step,
        "parameters": model.count_params(),
        "table_parameters": model.table_parameters,
        "training_loss": result.loss,
        "validation": {"best": result.best, "last": result.last},
        "history": state.history,
        "repeated_steps": state.repeated_steps,
        "worker_rates": result.worker_rates,
        "server_bytes": None if servers is None else servers.bytes,
        "environment": environment(),
    }


def summary(results: Mapping[str, Any]) -> str:
    """Say how training went."""
    rate = f", {results['rows_per_second']:,.0f} rows/s" if results["rows_per_second"] else ""
    early = ", stopped early" if results["stopped_early"] else ""
    better = len(results["history"]) > 1 and results["best_step"] == results["steps"]
    more = "; the last validation was the best: more `train.epochs` may help" if better else ""
    return f"{results['rows']:,} samples in {results['steps']:,} steps{rate}{early}{more}"


@contextmanager
def _listening(run: Run) -> Iterator[Listener]:
    """Yield what writes the logs that `[report]` asks for; nothing where another process is the chief."""
    asked, rows = run.config.report, run.manifest.splits
    listeners = []
    with ExitStack() as logs:
        if run.distribution.is_chief and asked.tensorboard:
            listeners.append(logs.enter_context(tensorboard_log(run.work_dir.logs / FOLDER, run.config)))
        if run.distribution.is_chief and asked.mlperf:
            counts = (rows["train"].rows, rows["validation"].rows)
            listeners.append(logs.enter_context(mlperf_log(run.work_dir.logs / FILE, run.config, *counts)))
        yield told_to(listeners)


def _tell_plan(run: Run) -> None:
    """Print how the tables fit into their budget, where they have one, and keep it for the report."""
    if run.plan is None or run.plan.spec != run.spec:  # what is trained already was planned by another version
        return
    run.console.say(f"{'train:':<10} {run.plan.caption}")
    say_tables(plan_table(run.plan))
    write_figures(run.work_dir.report / "budget.json", run.plan.figures())
    write_atomic(run.work_dir.report / "budget.png", budget_picture(run.plan))


class _PackedRows:
    """The prepared rows as `tfdlrm.training` asks for them."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.rows = run.manifest.splits["train"].rows

    def batches(self, epoch: int, step: int) -> tf.data.Dataset:
        """Return the training batches of one epoch from a step on."""
        return packed_dataset(
            self._run.work_dir.data, "train", **self._order, epochs=epoch + 1, start_epoch=epoch, start_step=step
        )

    @property
    def steps_per_window(self) -> int:
        """Return how many batches a window of shuffled blocks makes."""
        data = self._run.config.data
        return data.shuffle_blocks * data.rows_per_block // self._run.config.train.batch_size

    def unit(self, epoch: tf.Tensor, step: tf.Tensor, steps: tf.Tensor) -> tf.data.Dataset:
        """Return some of them, from tensors."""
        return self._units(epoch, step, steps)

    @cached_property
    def _units(self) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.data.Dataset]:
        return packed_units(self._run.work_dir.data, "train", **self._order)

    @property
    def _order(self) -> dict[str, Any]:
        config = self._run.config
        return {
            "batch_size": config.train.batch_size,
            "manifest": self._run.manifest,
            "shuffle": True,
            "seed": config.seed,
            "shuffle_blocks": config.data.shuffle_blocks,
        }

    @cached_property
    def _validation(self) -> tf.data.Dataset:
        return self._run.batches("validation")

    def validation(self) -> tf.data.Dataset:
        """Return the validation batches; their graph is made once, however often they are read."""
        return self._validation

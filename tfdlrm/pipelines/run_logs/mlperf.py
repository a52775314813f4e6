"""Training in the words of MLPerf's DLRM benchmark: `logs/mlperf.log`, written by the package mlperf-logging."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfdlrm.pipelines.reporting.environment import processor
from tfdlrm.spec.config import RunConfig
from tfdlrm.spec.errors import ConfigError
from tfdlrm.training.checkpoint import TrainState
from tfdlrm.training.events import Event, Listener

FILE = "mlperf.log"
_PACKAGE = "mlperf_logging"
_NAMES = {"rowwise_adagrad": "adagrad"}


def refuse_no_package(config: RunConfig) -> None:
    """Raise `ConfigError` where `report.mlperf` is set and the package that writes the log is not installed."""
    if config.report.mlperf and importlib.util.find_spec(_PACKAGE) is None:
        raise ConfigError(
            "`report.mlperf` must be false where the package mlperf-logging is not installed. Received: true. "
            "The extra `mlperf` installs it."
        )


@contextmanager
def mlperf_log(file: Path, config: RunConfig, train_rows: int, eval_rows: int) -> Iterator[Listener]:
    """Write the events of a training run while the block runs.

    It is a log in MLPerf's form, not a submission: the organization is not stated and the status is research.

    Args:
        file: The log; what an earlier call wrote to it is kept, for a run that goes on.
        config: The run's configuration.
        train_rows: Rows of an epoch.
        eval_rows: Validation rows.

    Yields:
        The listener to train with.
    """
    key, mllog = (importlib.import_module(f"{_PACKAGE}.mllog.{name}") for name in ("constants", "mllog"))
    logger, handler = _logger(file)
    log = mllog.MLLogger(logger, root_dir=str(Path(__file__).resolve().parents[3]))
    events = _Events(log, key, config.train.batch_size, train_rows)
    try:
        log.event(key.CACHE_CLEAR, value=False)  # an operating system's cache is not ours to clear
        log.start(key.INIT_START)
        for name, value in _facts(config, key, train_rows, eval_rows).items():
            log.event(name, value=value)
        for tensor in _tensors(config):
            log.event(key.WEIGHTS_INITIALIZATION, metadata={"tensor": tensor})
        yield events.listen
    finally:
        events.end()
        logger.removeHandler(handler)
        handler.close()


class _Events:
    """What happens in training, as events of the log."""

    def __init__(self, log: Any, key: Any, batch_size: int, rows: int) -> None:
        self._log, self._key = log, key
        self._steps_per_epoch = math.ceil(rows / batch_size)
        self._running = self._ended = False

    def listen(self, event: Event, state: TrainState) -> None:
        """Log an event."""
        log, key = self._log, self._key
        done = {key.EPOCH_NUM: state.step / self._steps_per_epoch}
        if event is Event.RUN_STARTS:
            log.end(key.INIT_STOP)
            log.start(key.RUN_START)
            self._running = True
        elif event is Event.EPOCH_STARTS:
            log.start(key.BLOCK_START, metadata={key.FIRST_EPOCH_NUM: state.epoch + 1, key.EPOCH_COUNT: 1})
            log.start(key.EPOCH_START, metadata={key.EPOCH_NUM: state.epoch + 1})
        elif event is Event.VALIDATION_STARTS:
            log.start(key.EVAL_START, metadata=done)
        elif event is Event.VALIDATION_ENDS:
            log.end(key.EVAL_STOP, metadata=done)
            log.event(key.EVAL_ACCURACY, value=state.history[-1]["auc"], metadata=done)
        elif event is Event.EPOCH_ENDS:
            log.end(key.EPOCH_STOP, metadata={key.EPOCH_NUM: state.epoch})
            log.end(key.BLOCK_STOP, metadata={key.FIRST_EPOCH_NUM: state.epoch})
        elif event is Event.RUN_ENDS:
            self._ended = True

    def end(self) -> None:
        """Log how the run ended, if it has begun."""
        if self._running:
            status = self._key.SUCCESS if self._ended else self._key.ABORTED
            self._log.end(self._key.RUN_STOP, metadata={"status": status})


def _logger(file: Path) -> tuple[logging.Logger, logging.Handler]:
    """Return a logger that writes whole lines to the file alone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("tfdlrm.mlperf")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.FileHandler(file, encoding="utf-8")
    logger.addHandler(handler)
    return logger, handler


def _facts(config: RunConfig, key: Any, train_rows: int, eval_rows: int) -> dict[str, Any]:
    train, schedule, tables = config.train, config.train.schedule, config.train.embedding
    rate = tables.learning_rate * train.rate_factor
    facts = {
        key.SUBMISSION_BENCHMARK: key.DLRM_DCNv2 if config.model.name == "dlrm_dcnv2" else "dlrm",
        key.SUBMISSION_ORG: "not stated",
        key.SUBMISSION_DIVISION: "open",
        key.SUBMISSION_STATUS: "research",
        key.SUBMISSION_PLATFORM: processor(),
        key.SEED: config.seed,
        key.GLOBAL_BATCH_SIZE: train.batch_size,
        key.GRADIENT_ACCUMULATION_STEPS: train.accumulation_steps,
        key.TRAIN_SAMPLES: train_rows,
        key.EVAL_SAMPLES: eval_rows,
        key.OPT_NAME: _NAMES.get(tables.name, tables.name),
        key.OPT_BASE_LR: rate,
        key.OPT_WEIGHT_DECAY: tables.weight_decay,
        key.OPT_LR_WARMUP_STEPS: schedule.warmup_steps,
        key.OPT_LR_DECAY_START_STEP: schedule.decay_start_step,
        key.OPT_LR_DECAY_STEPS: schedule.decay_steps,
    }
    if tables.name in ("adagrad", "rowwise_adagrad"):
        facts[key.OPT_ADAGRAD_LR_DECAY] = 0
        facts[key.OPT_ADAGRAD_INITIAL_ACCUMULATOR_VALUE] = tables.initial_accumulator
        facts[key.OPT_ADAGRAD_EPSILON] = tables.epsilon or 1e-10
    return facts


def _tensors(config: RunConfig) -> list[str]:
    """Return the weights that are drawn, under the benchmark's names."""
    model = config.model
    layers = {"bottom": model.bottom_units, "top": model.top_units}
    return [
        "embeddings",
        *(f"{part}_mlp_dense{i + 1}" for part, units in layers.items() for i in range(len(units))),
    ]

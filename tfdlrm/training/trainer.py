"""Training in rounds: `model.fit` for some steps, then validation and a checkpoint, and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfdlrm.metrics.binary import BinaryMetrics, evaluate_binary
from tfdlrm.models.probability import probability_function
from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.train_config import TrainConfig
from tfdlrm.training.build_optimizer import build_optimizer
from tfdlrm.training.checkpoint import TrainState, checkpoint_path
from tfdlrm.training.checkpoint_files import NotFiniteError
from tfdlrm.training.checkpoint_writer import CheckpointWriter
from tfdlrm.training.coordinated import CoordinatedRounds, lost_told
from tfdlrm.training.divergence import LossNotFiniteError, diverged, not_finite_numbers
from tfdlrm.training.events import Event, Listener
from tfdlrm.training.losses import build_loss
from tfdlrm.training.resume import resume
from tfdlrm.training.rounds import Devices, FitRounds, Leave, Progress, Rounds, TrainingData
from tfdlrm.training.stop_signal import StopRequest, TrainingStopped

# Steps that one call of the compiled training function runs; a call costs about a millisecond of Python.
STEPS_PER_EXECUTION = 20


def compile_model(model: keras.Model, config: TrainConfig, first_step: int = 0) -> None:
    """Compile a model as `[train]` says: its optimizer, its loss, several steps a call.

    Args:
        model: The model.
        config: The `[train]` section.
        first_step: Step of the optimizer at which its schedule begins. Defaults to 0.
    """
    model.compile(
        build_optimizer(config, first_step),
        loss=build_loss(config),
        steps_per_execution=STEPS_PER_EXECUTION,
        accumulation_steps=config.accumulation_steps,
    )


def set_determinism(seed: int, deterministic: bool) -> None:
    """Seed Python, NumPy and TensorFlow; with `deterministic`, make every op give the same bits again."""
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


Scores = tuple[np.ndarray, np.ndarray, np.ndarray | None]


class Scorer:
    """Scores data sets with a model; its graph is traced once, however many data sets there are.

    Args:
        model: From batches to probabilities.
        logit_shift: As in `probability_function`. Defaults to 0.
        batch_spec: Specs of a batch, if one trace is to serve batches of all sizes. Defaults to a trace for the first
            size and one for all others.
    """

    def __init__(self, model: keras.Model, logit_shift: float = 0.0, batch_spec: Any = None) -> None:
        self._forward = tf.function(
            probability_function(model, logit_shift),
            input_signature=None if batch_spec is None else [batch_spec],
            reduce_retracing=True,
            autograph=False,
        )

    def __call__(self, dataset: tf.data.Dataset, progress: Progress = lambda rows: None) -> Scores:
        """Score a data set of the batch contract.

        Returns:
            Labels and click probabilities, float32 `[rows]`, and sample weights or `None`.
        """
        labels, probabilities, weights = [], [], []
        for batch in dataset:
            probabilities.append(self._forward(batch[0]).numpy()[:, 0])
            labels.append(batch[1].numpy()[:, 0])
            if len(batch) > 2:
                weights.append(batch[2].numpy()[:, 0])
            progress(len(labels[-1]))
        empty = [np.zeros(0, np.float32)]
        joined = np.concatenate(weights) if weights else None
        return np.concatenate(labels or empty), np.concatenate(probabilities or empty), joined


def predict(model: keras.Model, dataset: tf.data.Dataset, progress: Progress = lambda rows: None) -> Scores:
    """Score one data set of the batch contract; see `Scorer`."""
    return Scorer(model)(dataset, progress)


@dataclass
class TrainResult:
    """What a training run leaves.

    Attributes:
        state: Final position; its `history` holds every validation.
        best: Validation metrics of the best checkpoint, `None` without validation rows.
        last: Validation metrics of the last one.
        loss: Mean training loss of the last round.
        stopped_early: Whether early stopping ended the run.
        worker_rates: For each round since the start of this process, steps and their seconds by worker; empty without a
            parameter-server cluster.
    """

    state: TrainState
    best: dict[str, float] | None
    last: dict[str, float] | None
    loss: float
    stopped_early: bool
    worker_rates: list[dict[int, tuple[int, float]]] = field(default_factory=list)


def train(
    model: keras.Model,
    config: TrainConfig,
    data: TrainingData,
    directory: Path,
    validation: Callable[[], tf.data.Dataset] | None = None,
    progress: Progress = lambda rows: None,
    log: Callable[[str], None] = lambda line: None,
    watched: Mapping[str, Callable[[], tf.data.Dataset]] | None = None,
    stop: StopRequest | None = None,
    devices: Devices | None = None,
    listener: Listener = lambda event, state: None,
) -> TrainResult:
    """Train a compiled model, resuming from the newest sound checkpoint of `directory`.

    The order of samples is a pure function of seed and epoch, and a checkpoint knows its place in it: a run that
    was killed goes on as if it had not been.

    Args:
        model: Compiled by `compile_model`.
        config: The `[train]` section.
        data: Training rows.
        directory: Folder of checkpoints.
        validation: Gives the validation batches; `None` where there are none.
        progress: Called with the number of samples just trained on (on resuming, first with those done before).
        log: Called with a line of text after each validation, where training goes on, and for each damaged checkpoint.
        watched: Further rows to score whenever validation is due, with or without validation rows. They decide
            nothing; their metrics are noted in the history under these names. Defaults to none.
        stop: Looked at after each call of the training function and while rows are scored. Defaults to one that is
            never asked.
        devices: What the model was made for. Several processes that train together all call this function with the same
            arguments; the chief alone writes. Defaults to one device.
        listener: Told what happens, as it happens, with the state by then; see `tfdlrm.training.events`.

    Raises:
        ClusterLostError: a parameter server is lost; the checkpoints before stay.
        DivergedError: the loss or a weight is not finite; the checkpoints before stay.
        OSError: a checkpoint cannot be written; those before stay.
        ConfigError: there are no training rows.
        DataError: there are checkpoints, and all are damaged; see `newest_sound`.
        TrainingStopped: `stop` was asked; a checkpoint of the very step has been written.
    """
    steps_per_epoch = -(-data.rows // config.batch_size)
    if not steps_per_epoch:
        raise ConfigError("the training split must have rows. Received: 0.")
    stop = stop or StopRequest()
    is_chief = devices is None or devices.is_chief
    state = resume(model, directory, log, tidy=is_chief)
    progress(state.samples)
    scorer = Scorer(model)
    rounds = _rounds(model, config, data, devices, log)
    first_iteration = _iterations(model) - state.step - state.repeated_steps  # of a run that goes on from another one
    tables = {stack.ref() for collection in model.collections.values() for stack in collection.stacks}
    loss = float("nan")
    listener(Event.RUN_STARTS, state)
    lost = lost_told() if isinstance(rounds, CoordinatedRounds) else nullcontext()
    with lost, _writing(model, config, directory, state.step, log) as writer:

        def leave() -> bool:
            due = config.checkpoint_seconds and time.monotonic() - writer.saved_at >= config.checkpoint_seconds
            return stop.requested or bool(due)

        while _goes_on(state, config):
            steps = _steps_of_round(state, config, steps_per_epoch)
            begun = state.step
            if not state.step_in_epoch and not state.round_samples:
                listener(Event.EPOCH_STARTS, state)
            try:
                _do_round(rounds, config, data, state, steps, progress, leave)
            except LossNotFiniteError as error:
                raise diverged(_at_batch(model, data, state, error), directory) from None
            state.repeated_steps = _iterations(model) - state.step - first_iteration
            loss = state.round_loss
            between = f"between steps {begun} and {state.step}"
            if not np.isfinite(loss):
                raise diverged(f"training loss became {loss} {between}", directory)
            listener(Event.ROUND_ENDS, state)
            # The loss is from before the last update; what is saved must be sound after it.
            if not all(np.isfinite(weight.numpy()).all() for weight in model.weights if weight.ref() not in tables):
                raise diverged(f"weights became infinite or nan {between}", directory)
            if not stop.requested and state.step == begun + steps:
                judge = partial(_judged, scorer, between=between, directory=directory, stop=stop)
                with suppress(_StopAskedError):  # the round stays open, and who goes on ends it
                    state = _round_ended(
                        state, config, steps_per_epoch, judge, validation, watched or {}, log, listener
                    )
            if is_chief:
                writer.save(state)
            if stop.requested:
                writer.wait()
                path = checkpoint_path(directory, state.step)
                raise TrainingStopped(f"training was asked to stop: {path} is written.")
    listener(Event.RUN_ENDS, state)
    best = [entry for entry in state.history if entry["step"] == state.best_step]
    return TrainResult(
        state=state,
        best=best[0] if best else None,
        last=state.history[-1] if state.history else None,
        loss=loss,
        stopped_early=state.epoch < config.epochs and state.step != config.max_steps,
        worker_rates=rounds.rates if isinstance(rounds, CoordinatedRounds) else [],
    )


@contextmanager
def _writing(
    model: keras.Model, config: TrainConfig, directory: Path, step: int, log: Callable[[str], None]
) -> Iterator[CheckpointWriter]:
    """Yield a writer, and take rows that are not finite for a divergence."""
    background = config.checkpoint_writing == "background"
    try:
        with CheckpointWriter(model, directory, config.keep_checkpoints, background, step, log) as writer:
            yield writer
    except NotFiniteError as error:
        raise diverged(str(error), directory) from None


def _at_batch(model: keras.Model, data: TrainingData, state: TrainState, error: LossNotFiniteError) -> str:
    """Say in which batch the loss became infinite or nan, and why if its numbers tell."""
    step = state.step + error.step - state.step_in_epoch
    batch = next(iter(data.batches(state.epoch, error.step).take(1)))
    return (
        f"training loss became {error.loss} in step {step + 1}: batch {error.step} of epoch {state.epoch}, counted "
        f"from 0; {not_finite_numbers(model.spec, batch)}"
    )


class _StopAskedError(Exception):
    """Raised at the end of a round that is to stay open."""


def _round_ended(
    state: TrainState,
    config: TrainConfig,
    steps_per_epoch: int,
    judge: Callable[[tf.data.Dataset], BinaryMetrics],
    validation: Callable[[], tf.data.Dataset] | None,
    watched: Mapping[str, Callable[[], tf.data.Dataset]],
    log: Callable[[str], None],
    listener: Listener,
) -> TrainState:
    """Return the state after the end of a round, with a validation if one is due."""
    loss = state.round_loss
    state = state.model_copy(deep=True, update={"round_samples": 0, "round_loss": 0.0})
    at_epoch_end = state.step_in_epoch == steps_per_epoch
    if at_epoch_end:
        state.epoch, state.step_in_epoch = state.epoch + 1, 0
    due = config.eval_every_steps and state.step % config.eval_every_steps == 0
    if at_epoch_end or due or state.step == config.max_steps:
        seen = {name: judge(rows()) for name, rows in watched.items()}
        if validation is not None:
            listener(Event.VALIDATION_STARTS, state)
            metrics = judge(validation())
            _note(state, config, metrics, loss, seen)
            listener(Event.VALIDATION_ENDS, state)
            log(
                f"step {state.step}: training loss {loss:.5f}, validation log loss {metrics.log_loss:.5f}, "
                f"AUC {metrics.auc:.4f}"
            )
        elif seen:
            state.history.append(_entry(state, loss, seen))
    if at_epoch_end:
        listener(Event.EPOCH_ENDS, state)
    return state


def _judged(scorer: Scorer, rows: tf.data.Dataset, between: str, directory: Path, stop: StopRequest) -> BinaryMetrics:
    def look(scored: int) -> None:
        if stop.requested:
            raise _StopAskedError

    scores = scorer(rows, look)
    if not np.isfinite(scores[1]).all():
        raise diverged(f"predictions became infinite or nan {between}", directory)
    return evaluate_binary(*scores)


def _goes_on(state: TrainState, config: TrainConfig) -> bool:
    gave_up = config.early_stopping and state.evaluations_without_gain >= config.early_stopping
    if config.early_stopping_steps and state.best_step is not None:
        # Of the last validation: what has been trained since may be better than all before.
        gave_up = gave_up or state.history[-1]["step"] - state.best_step >= config.early_stopping_steps
    # At the last step, the round may have been left open, when training was asked to stop.
    at_end = state.step >= (config.max_steps or float("inf")) and not state.round_samples
    return state.epoch < config.epochs and not at_end and not gave_up


def _steps_of_round(state: TrainState, config: TrainConfig, steps_per_epoch: int) -> int:
    """Return the steps to the next epoch end, validation or checkpoint, whichever comes first; 0 if it is here."""
    steps = steps_per_epoch - state.step_in_epoch
    for interval in (config.checkpoint_steps, config.eval_every_steps):
        if interval:
            at_end = state.step % interval == 0 and state.round_samples
            steps = min(steps, 0 if at_end else interval - state.step % interval)
    return steps if config.max_steps is None else min(steps, max(0, config.max_steps - state.step))


def _iterations(model: keras.Model) -> int:
    return int(model.optimizer.iterations.numpy())


def _rounds(
    model: keras.Model, config: TrainConfig, data: TrainingData, devices: Devices | None, log: Callable[[str], None]
) -> Rounds:
    if devices is None or devices.coordinator is None:
        return FitRounds(model, data, config.batch_size, devices)
    return CoordinatedRounds(model, data, config.batch_size, devices, log)


def _do_round(
    rounds: Rounds,
    config: TrainConfig,
    data: TrainingData,
    state: TrainState,
    steps: int,
    progress: Progress,
    leave: Leave,
) -> None:
    """Train for some steps, fewer if told to leave, and move the state on."""
    if not steps:
        return
    left = data.rows - state.step_in_epoch * config.batch_size
    before = state.round_samples

    def count(steps_done: int) -> None:
        samples = min(left - (state.round_samples - before), steps_done * config.batch_size)
        state.round_samples += samples
        state.samples += samples
        progress(samples)

    started = time.perf_counter()
    done, loss = rounds.run(state.epoch, state.step_in_epoch, steps, count, leave)
    state.seconds += time.perf_counter() - started
    state.step += done
    state.step_in_epoch += done
    state.round_loss += (loss - state.round_loss) * (1 - before / state.round_samples)


def _entry(state: TrainState, loss: float, seen: Mapping[str, BinaryMetrics]) -> dict[str, Any]:
    scored = {name: metrics.as_dict() for name, metrics in seen.items()}
    return {"step": state.step, "epoch": state.epoch, "training_loss": loss, **scored}


def _note(
    state: TrainState, config: TrainConfig, metrics: BinaryMetrics, loss: float, seen: Mapping[str, BinaryMetrics]
) -> None:
    value = metrics.auc if config.monitor == "auc" else -metrics.log_loss
    state.history.append({**_entry(state, loss, seen), **metrics.as_dict()})
    if state.best_value is None or value > state.best_value:
        state.best_value, state.best_step, state.evaluations_without_gain = value, state.step, 0
    else:
        state.evaluations_without_gain += 1

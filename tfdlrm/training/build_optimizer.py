"""The optimizer that `[train]` describes."""

from __future__ import annotations

from typing import Any

from tf_keras.optimizers import legacy

from tfdlrm.spec.train_config import EmbeddingOptimizerConfig, TrainConfig
from tfdlrm.training.optimizers import DLRMOptimizer
from tfdlrm.training.row_optimizers import SGD, Adagrad, Ftrl, LazyAdam, RowWiseAdagrad
from tfdlrm.training.schedule import WarmupHoldDecay


def build_optimizer(config: TrainConfig, first_step: int = 0) -> DLRMOptimizer:
    """Return the optimizer that `[train]` describes, its schedule beginning at a step of the optimizer's own count."""
    dense, schedule = config.dense, config.schedule
    epsilon = {"epsilon": dense.epsilon} if dense.epsilon else {}
    if dense.name == "adagrad":
        mlp = legacy.Adagrad(
            dense.learning_rate, initial_accumulator_value=dense.initial_accumulator, **(epsilon or {"epsilon": 1e-10})
        )
    elif dense.name in ("adam", "rmsprop"):
        mlp = {"adam": legacy.Adam, "rmsprop": legacy.RMSprop}[dense.name](dense.learning_rate, **epsilon)
    else:
        mlp = {"sgd": legacy.SGD, "ftrl": legacy.Ftrl}[dense.name](dense.learning_rate)
    clip: dict[str, Any] = {} if config.global_clipnorm is None else {"global_clipnorm": config.global_clipnorm}
    factor: Any = config.rate_factor
    if schedule.warmup_steps or schedule.decay_steps:
        shape = schedule.model_dump(exclude={"reference_batch_size"})
        factor = WarmupHoldDecay(**shape, base=factor, first_step=first_step)
    return DLRMOptimizer(
        _row_optimizer(config.embedding), mlp, learning_rate=factor, dense_weight_decay=dense.weight_decay, **clip
    )


def _row_optimizer(config: EmbeddingOptimizerConfig) -> legacy.Optimizer:
    if config.name == "sgd":
        return SGD(config.learning_rate, weight_decay=config.weight_decay)
    if config.name == "ftrl":
        return Ftrl(config.learning_rate, initial_accumulator_value=config.initial_accumulator or 0.1)
    if config.name == "adam":
        return LazyAdam(config.learning_rate, weight_decay=config.weight_decay, epsilon=config.epsilon or 1e-7)
    kind = {"adagrad": Adagrad, "rowwise_adagrad": RowWiseAdagrad}[config.name]
    return kind(
        config.learning_rate,
        initial_accumulator_value=config.initial_accumulator,
        epsilon=config.epsilon or 1e-10,
        weight_decay=config.weight_decay,
    )

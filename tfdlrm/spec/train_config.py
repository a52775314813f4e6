"""`[train]`: how the network learns."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tfdlrm.spec.errors import SpecError
from tfdlrm.spec.frozen import Frozen
from tfdlrm.spec.losses import LossSettings

EmbeddingOptimizer = Literal["sgd", "rowwise_adagrad", "adagrad", "adam", "ftrl"]
DenseOptimizer = Literal["sgd", "adagrad", "adam", "rmsprop", "ftrl"]


class OptimizerConfig(Frozen):
    """One half of the optimizer.

    Attributes:
        name: Which one.
        learning_rate: Its base, which `[train.schedule]` follows.
        weight_decay: Decoupled; on embeddings it reaches touched rows only.
        initial_accumulator: Where sums of squared gradients begin.
        epsilon: Added to what is divided by; `None` takes the optimizer's own.
    """

    learning_rate: float = Field(default=0.1, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    initial_accumulator: float = Field(default=0.0, ge=0)
    epsilon: float | None = Field(default=None, gt=0)


class EmbeddingOptimizerConfig(OptimizerConfig):
    """`[train.embedding]`: the optimizer of the embedding tables. Each moves the rows a batch used, and no other.

    `adam` is LazyAdam: moments of untouched rows do not age. `ftrl` starts its accumulators at 0.1 where
    `initial_accumulator` is 0.
    """

    name: EmbeddingOptimizer = "sgd"

    @property
    def rounds(self) -> bool:
        """Whether it can move rows in half precision, rounding so that small steps are not lost."""
        return self.name in ("sgd", "rowwise_adagrad")

    @model_validator(mode="after")
    def _no_idle_settings(self) -> EmbeddingOptimizerConfig:
        used = {
            "sgd": ("weight_decay",),
            "adam": ("weight_decay", "epsilon"),
            "ftrl": ("initial_accumulator",),
        }.get(self.name, ("weight_decay", "initial_accumulator", "epsilon"))
        for setting in ("weight_decay", "initial_accumulator", "epsilon"):
            if setting not in used and getattr(self, setting):
                raise SpecError(
                    f'`{setting}` must not be given where `name` is "{self.name}", which has none. '
                    f"Received: {getattr(self, setting)}."
                )
        return self


class DenseOptimizerConfig(OptimizerConfig):
    """`[train.dense]`: the optimizer of the MLPs."""

    name: DenseOptimizer = "sgd"


class ScheduleConfig(Frozen):
    """`[train.schedule]`: linear warm-up, hold, polynomial decay; both halves of the optimizer follow it.

    Attributes:
        warmup_steps: Steps over which the rate rises linearly to its base. 0 starts at the base.
        decay_start_step: First step of the decay; must not lie inside the warm-up.
        decay_steps: Length of the decay; 0 for none. Afterwards the rate stays at `end_factor`.
        power: Exponent of the decay. Defaults to 2.
        end_factor: Share of the base rate left at the end.
        reference_batch_size: Batch size that the learning rates are stated for: they are multiplied by
            `batch_size / reference_batch_size` (linear scaling; Goyal et al. 2017, section 2.1), which needs a warm-up
            where it raises them. `None` leaves them alone.
    """

    reference_batch_size: int | None = Field(default=None, ge=1)
    warmup_steps: int = Field(default=0, ge=0)
    decay_start_step: int = Field(default=0, ge=0)
    decay_steps: int = Field(default=0, ge=0)
    power: float = Field(default=2.0, gt=0)
    end_factor: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> ScheduleConfig:
        if self.decay_steps and self.decay_start_step < self.warmup_steps:
            raise SpecError(
                "`decay_start_step` must be at least `warmup_steps`. "
                f"Received: {self.decay_start_step} and {self.warmup_steps}."
            )
        return self


class TrainConfig(LossSettings):
    """`[train]`: how the network learns; the keys of the loss are those of `LossSettings`.

    Attributes:
        batch_size: Samples per step, that is per update of the weights.
        accumulation_steps: Pieces a batch is cut into; each goes forward and backward on its own, gradients are
            summed, the weights are updated once. Same result as one piece, less memory for activations.
        epochs: Passes over the training rows.
        max_steps: Steps after which training ends, if the epochs have more; `None` for all of them.
        embedding, dense: The two halves of the optimizer.
        schedule: Learning-rate schedule.
        global_clipnorm: Gradients are scaled down to this global norm; `None` for no clipping.
        precision: `"float32"` or `"mixed_bfloat16"` (MLPs and interaction in bfloat16, tables and loss in float32).
        deterministic: Same config and seed, same bits on one machine; slower.
        checkpoint_steps: Steps between checkpoints; 0 writes one at the end of each epoch only.
        checkpoint_seconds: Write one, too, as soon as so many seconds have passed since the last; 0 does not.
        checkpoint_writing: `"background"` copies the rows into memory and trains on while they are written, if there is
            room for the copy; `"blocking"` waits.
        keep_checkpoints: How many of the newest checkpoints are kept beside the best.
        early_stopping: Stop after this many validations without a better `monitor`; 0 never stops. Without
            validation rows there is nothing to stop by.
        early_stopping_steps: Stop at the first validation that is at least so many steps after the one with the best
            `monitor`, however many lie between; 0 never stops.
        eval_every_steps: Steps between validations; 0 validates at the end of each epoch.
        monitor: The validation metric that decides which checkpoint is best.
        start_from: With which weights of the run named in `[data.growth]` training begins: `"chosen"` takes those that
            it exports.
        restart_schedule: Whether the schedule begins anew then, or goes on from that run's last step.
    """

    batch_size: int = Field(default=128, ge=1)
    accumulation_steps: int = Field(default=1, ge=1)
    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    embedding: EmbeddingOptimizerConfig = EmbeddingOptimizerConfig()
    dense: DenseOptimizerConfig = DenseOptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    global_clipnorm: float | None = Field(default=None, gt=0)
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    deterministic: bool = False
    checkpoint_steps: int = Field(default=0, ge=0)
    checkpoint_seconds: float = Field(default=0.0, ge=0)
    checkpoint_writing: Literal["background", "blocking"] = "background"
    keep_checkpoints: int = Field(default=2, ge=1)
    early_stopping: int = Field(default=0, ge=0)
    early_stopping_steps: int = Field(default=0, ge=0)
    eval_every_steps: int = Field(default=0, ge=0)
    monitor: Literal["log_loss", "auc"] = "log_loss"
    start_from: Literal["chosen", "best", "last"] = "chosen"
    restart_schedule: bool = True

    @property
    def rate_factor(self) -> float:
        """What both learning rates are multiplied by for the size of the batch."""
        return self.batch_size / (self.schedule.reference_batch_size or self.batch_size)

    @model_validator(mode="after")
    def _warm_where_scaled(self) -> TrainConfig:
        if self.rate_factor > 1 and not self.schedule.warmup_steps:
            raise SpecError(
                "`train.schedule.warmup_steps` must be at least 1 where `batch_size` is above `reference_batch_size`: "
                f"rates grow {self.rate_factor:g} times. Received: 0. A few hundred steps serve."
            )
        return self

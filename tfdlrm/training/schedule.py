"""Learning-rate schedule: warm-up, hold, polynomial decay."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras


@keras.saving.register_keras_serializable(package="tfdlrm")
class WarmupHoldDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A factor in [0, 1]: linear warm-up, hold at 1, polynomial decay, hold at the end.

    With s = step + 1 (steps count from 0) the factor is min(1, s / W) up to the decay, then
    e + (1 - e) (1 - (s - D) / N)^p for D < s <= D + N, and e afterwards. The first step is above 0, the
    plateau is exactly 1, and the factor never rises again.

    Args:
        warmup_steps: W; 0 for no warm-up. Defaults to 0.
        decay_start_step: D; at least W. Defaults to 0.
        decay_steps: N; 0 for no decay. Defaults to 0.
        power: p. Defaults to 2.
        end_factor: e. Defaults to 0.
        base: Multiplies the factor; give a rate here to use the schedule in any optimizer. Defaults to 1.
        first_step: Step at which the schedule begins, for a run that goes on from another one. Defaults to 0.

    Raises:
        ValueError: a decay would start inside the warm-up, or an argument is negative.
    """

    def __init__(
        self,
        warmup_steps: int = 0,
        decay_start_step: int = 0,
        decay_steps: int = 0,
        power: float = 2.0,
        end_factor: float = 0.0,
        base: float = 1.0,
        first_step: int = 0,
    ) -> None:
        super().__init__()
        if min(warmup_steps, decay_start_step, decay_steps, power, end_factor, base, first_step) < 0:
            raise ValueError("schedule arguments must be at least 0. Received a negative one.")
        if decay_steps and decay_start_step < warmup_steps:
            raise ValueError(
                f"`decay_start_step` must be at least `warmup_steps`. Received: {decay_start_step} and {warmup_steps}."
            )
        self.config = {
            "warmup_steps": warmup_steps,
            "decay_start_step": decay_start_step,
            "decay_steps": decay_steps,
            "power": power,
            "end_factor": end_factor,
            "base": base,
            "first_step": first_step,
        }

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Return `base` times the factor at `step`, float32."""
        c = self.config
        s = tf.cast(step - c["first_step"], tf.float32) + 1.0
        factor = tf.minimum(1.0, s / c["warmup_steps"]) if c["warmup_steps"] else tf.ones_like(s)
        if c["decay_steps"]:
            left = 1.0 - tf.clip_by_value((s - c["decay_start_step"]) / c["decay_steps"], 0.0, 1.0)
            factor *= c["end_factor"] + (1.0 - c["end_factor"]) * left ** c["power"]
        return c["base"] * factor

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return dict(self.config)

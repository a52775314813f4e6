"""What all input pipelines of this package ask of tf.data."""

from __future__ import annotations

import tensorflow as tf


def input_options() -> tf.data.Options:
    """Return options under which elements keep their order and nothing is left to autotuning.

    The thread that tunes sleeps for periods that double, and an iterator that is let go waits for it: a training round
    of 3 seconds then takes 5.1, one of 6 takes 10.2. Every number it would tune is a constant of its pipeline.
    """
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    return options

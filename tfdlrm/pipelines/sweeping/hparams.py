"""Trials for TensorBoard's HParams: a table and plots of values and metrics, sorted and filtered in the browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorboard.plugins.hparams import api

from tfdlrm.tuning.results import METRICS, TrialResult


def write_hparams(folder: Path, result: TrialResult) -> None:
    """Write the values and the metrics of a trial into a folder of its own.

    Args:
        folder: What TensorBoard is shown.
        result: The trial; one without metrics has values alone.
    """
    own = folder / result.trial
    shutil.rmtree(own, ignore_errors=True)  # of a process that was killed
    with tf.summary.create_file_writer(str(own)).as_default():
        api.hparams({key: _plain(value) for key, value in result.values.items()}, trial_id=result.trial)
        for metric in METRICS:
            value = result.mean(metric)
            if value is not None:
                tf.summary.scalar(metric, value, step=sum(seed.steps for seed in result.seeds) // len(result.seeds))


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)

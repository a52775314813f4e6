"""What TensorBoard shows of a run while it trains: `logs/tensorboard`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from tfdlrm.pipelines.work_dir import config_toml
from tfdlrm.spec.config import RunConfig
from tfdlrm.training.checkpoint import TrainState
from tfdlrm.training.events import Event, Listener

FOLDER = "tensorboard"
_METRICS = ("log_loss", "auc", "normalized_entropy", "calibration", "accuracy")
_SETTINGS = ("model", "train")


@contextmanager
def tensorboard_log(folder: Path, config: RunConfig) -> Iterator[Listener]:
    """Write scalars of training and validation by step, and the settings, while the block runs.

    Nothing is written in a step: scalars come where a round of steps ends, which is at validations, checkpoints and
    epochs. A run that goes on adds to what is there.

    Args:
        folder: Where TensorBoard looks: `train` and `validation` are made in it.
        config: The run's configuration.

    Yields:
        The listener to train with.
    """
    train, validation = (tf.summary.create_file_writer(str(folder / name)) for name in ("train", "validation"))

    def listen(event: Event, state: TrainState) -> None:
        if event is Event.RUN_STARTS:
            with train.as_default(step=state.step):
                tf.summary.text("config.toml", f"```toml\n{config_toml(config)}\n```")
                hparams.hparams(_flat(config.model_dump(mode="json", include=set(_SETTINGS))), trial_id=config.name)
        elif event is Event.ROUND_ENDS:
            with train.as_default(step=state.step):
                tf.summary.scalar("log_loss", state.round_loss)
                tf.summary.scalar("rows", state.samples)
                if state.seconds:
                    tf.summary.scalar("rows_per_second", state.samples / state.seconds)
            train.flush()
        elif event is Event.VALIDATION_ENDS:
            with validation.as_default(step=state.step):
                for name in _METRICS:
                    tf.summary.scalar(name, state.history[-1][name])
            validation.flush()

    try:
        yield listen
    finally:
        train.close()
        validation.close()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by their dotted names, as TensorBoard takes them: numbers, texts and truth values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return found

"""The one name under which Keras finds this package's classes in a saved model."""

from __future__ import annotations

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

from collections.abc import Callable
from typing import Any, TypeVar

import tf_keras as keras

T = TypeVar("T", bound=type[Any])


def serializable(cls: T) -> T:
    """Register a class as `tfdlrm>Name`, so that `load_model` needs no `custom_objects`."""
    register: Callable[[T], T] = keras.saving.register_keras_serializable(package="tfdlrm")
    return register(cls)

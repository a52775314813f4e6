"""A local server that answers as TensorFlow Serving does, and its client."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfdlrm.serving.client import PredictClient, PredictError

__all__ = ["PredictClient", "PredictError"]


def __getattr__(name: str) -> Any:
    # On first use only: the server has no need of the client's HTTP library.
    if name not in __all__:
        raise AttributeError(f"module 'tfdlrm.serving' has no attribute {name!r}")
    return getattr(importlib.import_module("tfdlrm.serving.client"), name)

"""A local server that answers as TensorFlow Serving does, and its clients."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfdlrm.serving.any_client import PredictError
    from tfdlrm.serving.client import PredictClient
    from tfdlrm.serving.grpc_client import GrpcPredictClient
    from tfdlrm.serving.retries import Retries

__all__ = ["GrpcPredictClient", "PredictClient", "PredictError", "Retries"]

_MODULES = {
    "GrpcPredictClient": "tfdlrm.serving.grpc_client",
    "PredictClient": "tfdlrm.serving.client",
    "PredictError": "tfdlrm.serving.client",
    "Retries": "tfdlrm.serving.retries",
}


def __getattr__(name: str) -> Any:
    # On first use only: the server has no need of the clients' libraries.
    if name not in _MODULES:
        raise AttributeError(f"module 'tfdlrm.serving' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)

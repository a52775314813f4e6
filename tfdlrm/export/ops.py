"""Which TensorFlow operations a SavedModel uses, and which of them a stock server does not have."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from tfdlrm.spec.errors import DataError

# TensorFlow has these, but they call back into the Python process that made the graph.
_PYTHON = {"EagerPyFunc", "PyFunc", "PyFuncStateless"}


def ops_of(directory: Path) -> tuple[str, ...]:
    """Return the names of all operations in a SavedModel's graph and functions, sorted; functions are not among them.

    Raises:
        DataError: there is no SavedModel.
    """
    path = directory / "saved_model.pb"
    try:
        model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    except DecodeError as error:
        raise DataError(f"{path}: not a SavedModel: {error}") from None
    used: set[str] = set()
    for graph in (meta_graph.graph_def for meta_graph in model.meta_graphs):
        nodes = {node.op for node in graph.node}
        nodes.update(node.op for function in graph.library.function for node in function.node_def)
        used |= nodes - {function.signature.name for function in graph.library.function}
    return tuple(sorted(used))


def foreign_ops(ops: Iterable[str]) -> tuple[str, ...]:
    """Return those of `ops` that are not in stock TensorFlow, or need Python.

    Example:
        >>> foreign_ops(["MatMul", "PyFunc", "MyFastLookup"])
        ('PyFunc', 'MyFastLookup')
    """
    return tuple(op for op in ops if op in _PYTHON or not hasattr(tf.raw_ops, op))

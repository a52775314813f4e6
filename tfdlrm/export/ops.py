"""Which TensorFlow operations a SavedModel uses, and which of them a stock server does not have."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from tfdlrm.export.errors import VerifyError
from tfdlrm.spec.errors import DataError

# TensorFlow's Python package has these, and a stock server does not: it is linked with the core operations and kernels
# (and those of TensorFlow Text and Decision Forests, which nothing here needs), runs no Python, and may have no
# accelerator.
_NOT_SERVED = {
    "calls back into the Python process that made the graph": re.compile("(Eager)?PyFunc(Stateless)?"),
    "of XLA's own, for graphs that it compiles": re.compile("Xla.*"),
    "has kernels for TPUs only": re.compile(".*TPU.*|Tpu.*"),
    "has kernels for GPUs only": re.compile("Nccl.*|Cudnn.*"),
}


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


def why_foreign(op: str) -> str | None:
    """Say why a stock server cannot run an operation; `None` where it can.

    Example:
        >>> why_foreign("MyFastLookup")
        'not of TensorFlow'
    """
    reasons = (reason for reason, names in _NOT_SERVED.items() if names.fullmatch(op))
    return next(reasons, None if hasattr(tf.raw_ops, op) else "not of TensorFlow")


def foreign_ops(ops: Iterable[str]) -> tuple[str, ...]:
    """Return those of `ops` that a stock server cannot run.

    Example:
        >>> foreign_ops(["MatMul", "PyFunc", "MyFastLookup"])
        ('PyFunc', 'MyFastLookup')
    """
    return tuple(op for op in ops if why_foreign(op) is not None)


def refuse_foreign_ops(directory: Path) -> tuple[str, ...]:
    """Return the operations of a SavedModel; raise if a stock server cannot run them.

    Raises:
        VerifyError: an operation is not in stock TensorFlow Serving; the message says why.
        DataError: there is no SavedModel.
    """
    ops = ops_of(directory)
    foreign = foreign_ops(ops)
    if foreign:
        reasons = "; ".join(f"{op} ({why_foreign(op)})" for op in foreign)
        raise VerifyError(f"{directory}: operations must be in stock TensorFlow. Received: {reasons}.")
    return ops

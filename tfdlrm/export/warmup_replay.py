"""A version's warm-up requests, read and answered as a server does while it loads; no model code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from tfdlrm.export.errors import VerifyError, first_reason

if TYPE_CHECKING:
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
_MOST = 1000
_PREDICT, _CLASSIFY, _REGRESS = (f"tensorflow/serving/{name}" for name in ("predict", "classify", "regress"))


def read_warmup(directory: Path) -> list[PredictionLog]:
    """Return the warm-up requests of a version, none where it has no such file. Not to be called inside a graph.

    Raises:
        VerifyError: a server would not load the version: the file is damaged, or holds too much. Or the package that
            has the messages, tensorflow-serving-api, is not installed.
    """
    path = directory / _FILE
    if not path.is_file():
        return []
    try:
        from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
    except ImportError:
        raise VerifyError(f"{path}: replaying warm-up requests needs `pip install tfdlrm[serving]`.") from None
    try:
        records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
        requests = [PredictionLog.FromString(record) for record in records]
    except (tf.errors.DataLossError, DecodeError) as error:
        raise VerifyError(f"{path}: not a file of warm-up requests: {first_reason(error)}") from None
    if len(requests) > _MOST:
        raise VerifyError(f"{path}: must hold at most {_MOST} requests. Received: {len(requests)}.")
    return requests


def replay(session: Any, definitions: Mapping[str, Any], log: PredictionLog, place: str) -> None:
    """Answer a request.

    Args:
        session: A session that the version was loaded into.
        definitions: Its SignatureDefs.
        log: The request.
        place: What to call it in errors.

    Raises:
        VerifyError: it fits no signature, a value is not of its input's type, or an answer is no number.
    """
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        request, method = log.predict_log.request, _PREDICT
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        types = {name: value.dtype for name, value in request.inputs.items()}
    elif kind in ("classify_log", "regress_log"):
        request, method = getattr(log, kind).request, _CLASSIFY if kind == "classify_log" else _REGRESS
        inputs = {"inputs": [example.SerializeToString() for example in request.input.example_list.examples]}
        types = {}  # examples are strings
    else:
        raise VerifyError(f"{place}: must be a predict, classify or regress request. Received: {kind}.")
    name = request.model_spec.signature_name
    definition = definitions.get(name)
    if definition is None or definition.method_name != method or set(definition.inputs) != set(inputs):
        raise VerifyError(f"{place}: must fit a signature. Received: `{name}` ({method}) with inputs {sorted(inputs)}.")
    for input_name, number in types.items():
        if number != definition.inputs[input_name].dtype:
            expected, given = (tf.as_dtype(n).name for n in (definition.inputs[input_name].dtype, number))
            raise VerifyError(f"{place}: `{input_name}` of `{name}` must be {expected}. Received: {given}.")
    feeds = {definition.inputs[input_name].name: value for input_name, value in inputs.items()}
    try:
        outputs = session.run({key: info.name for key, info in definition.outputs.items()}, feeds)
    except (tf.errors.OpError, ValueError) as error:
        raise VerifyError(f"{place}: `{name}` gives no answer: {first_reason(error)}") from None
    for key, values in outputs.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise VerifyError(f"{place}: `{name}` must answer `{key}` by finite numbers.")

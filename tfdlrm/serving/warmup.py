"""Replay of recorded requests when a version is loaded, so that its first callers wait no longer than later ones.

TensorFlow Serving's file: `assets.extra/tf_serving_warmup_requests`, TFRecords of PredictionLog, a thousand at most.
What reads them comes with the extra `serving`; without it versions answer unwarmed, and the log says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from tfdlrm.serving.errors import Code, StatusError, invalid

if TYPE_CHECKING:
    from tfdlrm.serving.servable import Servable

REQUESTS_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MAX_RECORDS = 1000

_LOG = logging.getLogger(__name__)


def warmed(load: Callable[[Path, int], Servable], iterations: int = 1) -> Callable[[Path, int], Servable]:
    """Return a loader whose versions have answered their recorded requests.

    Args:
        load: Makes a servable of a version directory and its number.
        iterations: How often each request is replayed.

    Returns:
        A loader that fails where a record cannot be read or answered.
    """

    def load_and_replay(path: Path, version: int) -> Servable:
        servable = load(path, version)
        file = path / REQUESTS_FILE
        if file.exists() and find_spec("tensorflow_serving") is None:
            _LOG.warning("%s: recorded requests are not replayed: that needs `pip install tfdlrm[serving]`", path)
        elif file.exists():
            started = time.monotonic()
            count = replay(servable, file, iterations)
            _LOG.info("%s: %d recorded requests replayed in %.1f s", path, count, time.monotonic() - started)
        return servable

    return load_and_replay


def replay(servable: Servable, file: Path, iterations: int = 1) -> int:
    """Answer the requests of a file and drop the answers.

    Args:
        servable: The version to warm up.
        file: TFRecords of PredictionLog.
        iterations: How often each request is replayed.

    Returns:
        The number of records.

    Raises:
        StatusError: DATA_LOSS where the file is no TFRecord, INVALID_ARGUMENT for more than a thousand records or one
            that is no PredictionLog, else what a request was refused with.
    """
    from tensorflow_serving.apis import prediction_log_pb2

    count = 0
    for record in _records(file):
        try:
            log = prediction_log_pb2.PredictionLog.FromString(record)
        except DecodeError:
            raise invalid(f"Failed to parse warmup record: {record[:100]!r} from {file}") from None
        for _ in range(iterations):
            _answer(servable, log)
        count += 1
        if count > MAX_RECORDS:
            raise invalid(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {file}")
    return count


def _records(file: Path) -> Iterator[bytes]:
    try:
        yield from tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    except tf.errors.DataLossError as error:
        reason = f"{error.message}. Please verify your warmup data is in TFRecord format."
        raise StatusError(Code.DATA_LOSS, f"{file}: {reason}") from error
    except tf.errors.OpError as error:
        raise StatusError(Code(error.error_code), f"{file}: {error.message}") from error


def _answer(servable: Servable, log: Any) -> None:
    from tfdlrm.serving import messages

    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        messages.predict(servable, log.predict_log.request)
    elif kind == "classify_log":
        messages.classify(servable, log.classify_log.request)
    elif kind == "regress_log":
        messages.regress(servable, log.regress_log.request)
    elif kind == "multi_inference_log":
        messages.multi_inference(servable, log.multi_inference_log.request)
    elif kind is not None:
        raise StatusError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")

"""Warm-up requests beside a model: a server answers them before it takes any other, so that the first one is no slower.

TensorFlow makes much of what it runs when it first runs it, for each shape anew. A server that finds
`assets.extra/tf_serving_warmup_requests`, records of `tensorflow.serving.PredictionLog`, replays them while it loads.
Their messages are those of the package tensorflow-serving-api, which a plain installation has not: it is imported where
requests are made, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.export.examples_signatures import CLASSIFY, EXAMPLES, REGRESS
from tfdlrm.export.ranking import MASK, RANK
from tfdlrm.export.row_examples import row_examples
from tfdlrm.spec.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    from tensorflow_serving.apis.model_pb2 import ModelSpec
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

WARMUP_FILE = "tf_serving_warmup_requests"
MOST_REQUESTS = 1000
"""What TensorFlow Serving replays; it refuses to load a version with more."""

NEEDS = "warm-up requests need `pip install tfdlrm[serving]`"

Array = npt.NDArray[Any]


def can_warm_up() -> bool:
    """Tell whether the package that has the messages of warm-up requests is installed."""
    return find_spec("tensorflow_serving") is not None


def write_warmup(path: Path, requests: Sequence[PredictionLog]) -> None:
    """Write requests as a TFRecord file; the same bytes for the same requests."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            writer.write(request.SerializeToString(deterministic=True))


def warmup_requests(
    model_name: str,
    encoder: FeatureEncoder,
    rows: Mapping[str, Array],
    batch_sizes: Sequence[int],
    rank_candidates: Sequence[str] = (),
) -> list[PredictionLog]:
    """Return one request for each signature and batch size, made of the first rows; too few rows come again.

    A batch of `rank` is one question with so many candidates: the first row's shared columns, and all rows' others.

    Args:
        model_name: Name that the model is served by.
        encoder: Maps raw columns to the ids of `serve_ids`.
        rows: Raw columns, each `[n]`, n at least 1: numbers of any type with NaN where missing, strings (`str`, `bytes`
            or of fixed width) with `""`; others are ignored. They are sent in the types that the signatures take.
        batch_sizes: Rows of a request, each at least 1.
        rank_candidates: Raw columns that differ by candidate. Defaults to none, and no request to `rank`.

    Raises:
        DataError: a column is absent, or there is no row.
        ConfigError: there would be more requests than a server takes, a batch size is below 1, or the package that has
            the messages is not installed.
    """
    if batch_sizes and not can_warm_up():
        raise ConfigError(f"{NEEDS}. Received: `warmup_batch_sizes` {list(batch_sizes)}.")
    columns = encoder.raw_signature()
    for name in columns:
        if name not in rows:
            raise DataError(f"`warmup` must have the column `{name}`.{did_you_mean(name, rows)}")
    count = min(len(rows[name]) for name in columns)
    if not count:
        raise DataError("`warmup` must have at least one row. Received: none.")
    if min(batch_sizes, default=1) < 1:
        raise ConfigError(f"`warmup_batch_sizes` must be at least 1. Received: {list(batch_sizes)}.")
    requests = []
    for size in batch_sizes:
        places = np.arange(size) % count
        part = {name: _as_sent(rows[name][places], spec.dtype) for name, spec in columns.items()}
        requests += [
            *_on_examples(model_name, row_examples(part)),
            *_predictions(model_name, encoder, part, rank_candidates),
        ]
    if len(requests) > MOST_REQUESTS:
        raise ConfigError(
            f"`warmup_batch_sizes` must make at most {MOST_REQUESTS} requests, {len(requests) // len(batch_sizes)} a "
            f"size. Received: {len(batch_sizes)} sizes."
        )
    return requests


def _as_sent(values: Array, dtype: tf.DType) -> Array:
    """Return a column in the type of a signature's input; strings as objects, which are never cut or padded."""
    return values.astype(object if dtype == tf.string else dtype.as_numpy_dtype)


def _spec(model_name: str, signature: str) -> ModelSpec:
    from tensorflow_serving.apis.model_pb2 import ModelSpec

    return ModelSpec(name=model_name, signature_name=signature)


def _predict(model_name: str, signature: str, inputs: Mapping[str, Array]) -> PredictionLog:
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    log = PredictionLog()
    request = log.predict_log.request
    request.model_spec.CopyFrom(_spec(model_name, signature))
    for name, values in inputs.items():
        dtype = tf.string if values.dtype == object else tf.as_dtype(values.dtype)
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values.tolist(), dtype, values.shape))
    return log


def _on_examples(model_name: str, examples: list[bytes]) -> Iterator[PredictionLog]:
    from tensorflow_serving.apis import input_pb2
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    messages = [tf.train.Example.FromString(example) for example in examples]
    given = input_pb2.Input(example_list=input_pb2.ExampleList(examples=messages))
    for signature, kind in ((CLASSIFY, "classify_log"), (REGRESS, "regress_log")):
        log = PredictionLog()
        request = getattr(log, kind).request
        request.model_spec.CopyFrom(_spec(model_name, signature))
        request.input.CopyFrom(given)
        yield log
    yield _predict(model_name, EXAMPLES, {"examples": np.array([*examples, None], object)[:-1]})


def _predictions(
    model_name: str, encoder: FeatureEncoder, rows: Mapping[str, Array], rank_candidates: Sequence[str]
) -> Iterator[PredictionLog]:
    yield _predict(model_name, "serving_default", rows)
    texts = {name: values.dtype == object for name, values in rows.items()}
    batch = encoder.encode({n: tf.constant(v.tolist(), tf.string if texts[n] else tf.float32) for n, v in rows.items()})
    ids = {name: values.numpy() for name, values in batch.items() if name != "dense" or encoder.spec.n_dense}
    yield _predict(model_name, "serve_ids", {**ids, "sparse": ids["sparse"].astype(np.int64)})
    if rank_candidates:
        size = len(next(iter(rows.values())))
        question = {name: v[np.newaxis] if name in rank_candidates else v[:1] for name, v in rows.items()}
        yield _predict(model_name, RANK, {**question, MASK: np.ones((1, size), bool)})

"""Deadlines of requests, and requests that have none."""

from __future__ import annotations

import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tfdlrm.serving.deadline import deadline, seconds_left
from tfdlrm.serving.errors import StatusError


def test_none_without_a_deadline_or_with_one_that_no_clock_can_wait_for() -> None:
    assert seconds_left() is None
    for at in (None, time.monotonic() + 1e18, float("inf")):
        with deadline(at):
            assert seconds_left() is None
    with deadline(time.monotonic() + 50):
        assert 40 < (seconds_left() or 0) <= 50
    with pytest.raises(StatusError, match="DEADLINE_EXCEEDED"), deadline(time.monotonic() - 1):
        pass


def test_a_call_without_a_deadline_is_answered_from_a_batch(model_path, start_server) -> None:
    server = start_server(model_path.parent, "--enable_batching")
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([1.0, 2.0])))
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answers = [stub.Predict(request), stub.Predict(request, timeout=30)]
    for answer in answers:
        np.testing.assert_array_equal(tf.make_ndarray(answer.outputs["y"]), [2.5, 3.0])

"""Requests of the gRPC services, and what a refusal says."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import input_pb2, model_pb2, predict_pb2

CODE = grpc.StatusCode


def spec(signature: str = "", name: str = "m", **choice) -> model_pb2.ModelSpec:
    made = model_pb2.ModelSpec(name=name, signature_name=signature)
    if "version" in choice:
        made.version.value = choice["version"]
    if "label" in choice:
        made.version_label = choice["label"]
    return made


def predict_request(signature: str = "", only=(), model=None, **arrays) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest(model_spec=model or spec(signature), output_filter=only)
    for name, array in arrays.items():
        request.inputs[name].CopyFrom(array if isinstance(array, TensorProto) else tf.make_tensor_proto(array))
    return request


def refusal(call, request) -> tuple[grpc.StatusCode, str]:
    """Return code and message of a call that must be refused."""
    with pytest.raises(grpc.RpcError) as error:
        call(request)
    return error.value.code(), error.value.details()


def floats(*values: float) -> np.ndarray:
    return np.float32(values)


def example(**features: float) -> tf.train.Example:
    made = tf.train.Example()
    for name, value in features.items():
        made.features.feature[name].float_list.value.append(value)
    return made


def examples(*listed: tf.train.Example, context: tf.train.Example | None = None) -> input_pb2.Input:
    if context is not None:
        together = input_pb2.ExampleListWithContext(examples=listed, context=context)
        return input_pb2.Input(example_list_with_context=together)
    return input_pb2.Input(example_list=input_pb2.ExampleList(examples=listed))

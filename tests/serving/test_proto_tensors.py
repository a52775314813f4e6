"""Tensors as messages, against TensorFlow's own reading and writing, and requests with defaults."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import predict_pb2

from tests.serving.fixtures import ECHOED
from tfdlrm.serving import messages
from tfdlrm.serving.errors import Code, StatusError
from tfdlrm.serving.proto_tensors import from_proto, to_proto
from tfdlrm.serving.servable import load_servable


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 0), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize("name", ECHOED)
def test_there_and_back(name, shape):
    dtype = tf.as_dtype(name)
    values = np.random.default_rng(0).integers(0, 2, shape)
    array = values.astype(str).astype(object) if name == "string" else values.astype(dtype.as_numpy_dtype)
    if name == "string":
        array = np.array([text.encode() for text in array.ravel()], object).reshape(shape)
    proto = to_proto(array)
    for read in (tf.make_ndarray(proto), from_proto("x", proto, dtype.as_datatype_enum)):
        assert (read.dtype, read.shape) == (array.dtype, shape)
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(("dtype", "field"), [(np.float32, "float_val"), (np.float64, "double_val")])
@pytest.mark.parametrize("size", [1, 31, 32, 5000])  # sizes in bytes around the steps of a varint
def test_floats_come_as_values(dtype, field, size):
    array = np.random.default_rng(size).standard_normal(size).astype(dtype)
    proto = to_proto(array[::-1])
    assert list(getattr(proto, field)) == array[::-1].tolist()
    assert proto.tensor_content == b""


protos = st.builds(
    TensorProto,
    dtype=st.sampled_from([0, 1, 1, 1, 2, 7, 9, 19, 20, 21, 101]),
    tensor_shape=st.builds(
        lambda sizes: tf.TensorShape(sizes).as_proto(), st.lists(st.integers(0, 5) | st.just(1 << 40), max_size=3)
    ),
    float_val=st.lists(st.floats(width=32, allow_nan=False), max_size=4),
    int_val=st.lists(st.integers(-5, 5), max_size=3),
    string_val=st.lists(st.binary(max_size=3), max_size=3),
    tensor_content=st.binary(max_size=12),
)


@settings(deadline=None, database=None, max_examples=300)
@given(proto=protos)
def test_no_tensor_is_the_servers_fault(proto):
    for dtype in (1, 7):
        try:
            array = from_proto("x", proto, dtype)
        except StatusError as error:
            assert error.code == Code.INVALID_ARGUMENT
            assert "Input x " in error.message
        else:
            assert proto.dtype == dtype
            assert list(array.shape) == [dim.size for dim in proto.tensor_shape.dim]


def test_an_input_with_a_default_may_be_left_out(model_path):
    servable = load_servable(model_path, 1)
    definition = meta_graph_pb2.SignatureDef()
    definition.CopyFrom(servable.definitions["serving_default"])
    definition.defaults["x"].CopyFrom(tf.make_tensor_proto(np.float32([4])))
    servable = dataclasses.replace(servable, definitions={"serving_default": definition})
    request = predict_pb2.PredictRequest()
    assert list(messages.predict(servable, request).outputs["y"].float_val) == [4.0]
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([1])))
    assert list(messages.predict(servable, request).outputs["y"].float_val) == [2.5]
    request.inputs["z"].CopyFrom(request.inputs["x"])
    with pytest.raises(StatusError, match="Sent extra: {z}"):
        messages.predict(servable, request)

"""`TensorProto` to arrays and back, without a Python list in between."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from tfdlrm.serving.errors import invalid
from tfdlrm.serving.tensors import Array

# A few bytes may declare a tensor of any size, filled up with its last value. Beyond this, the values must be there.
_MAX_FILLED_BYTES = 64 << 20
_MAX_RANK = 64  # NumPy's

# Where a tensor of these types lists its values, one by one; a string's are bytes.
_LISTED = {
    types_pb2.DT_FLOAT: ("float_val", np.float32),
    types_pb2.DT_DOUBLE: ("double_val", np.float64),
    types_pb2.DT_INT32: ("int_val", np.int32),
    types_pb2.DT_INT64: ("int64_val", np.int64),
    types_pb2.DT_STRING: ("string_val", np.object_),
}

# Of these types `*_val` is, on the wire, the array itself: the field's key, the size in bytes, the bytes.
_WIRE_KEYS = {np.dtype(np.float32): b"\x2a", np.dtype(np.float64): b"\x32"}


def from_proto(name: str, tensor: Any, dtype: int) -> Array:
    """Read a tensor.

    Args:
        name: Of the input, for messages.
        tensor: The TensorProto, in any of its forms.
        dtype: The DataType the input has.

    Returns:
        The array; strings as objects of `bytes`.

    Raises:
        StatusError: Another type, or values that do not fit the shape.
    """
    if tensor.dtype != dtype:
        wanted, got = (types_pb2.DataType.Name(kind).removeprefix("DT_").lower() for kind in (dtype, tensor.dtype))
        raise invalid(f"Input {name} must be of type {wanted}. Received: {got}")
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise invalid(f"Input {name} must have a known shape. Received: {shape}")
    if len(shape) > _MAX_RANK:
        raise invalid(f"Input {name} must have at most {_MAX_RANK} dimensions. Received: {len(shape)}")
    try:
        if dtype in _LISTED and not tensor.tensor_content:
            # The values of a few rows of dozens of columns: TensorFlow's own way, below, takes ten times as long.
            field, kind = _LISTED[dtype]
            values = getattr(tensor, field)
            if len(values) == math.prod(shape) and values:
                array = np.empty(len(values), kind)
                array[:] = values
                return array.reshape(shape)
        size = math.prod(shape) * np.dtype(tf.dtypes.as_dtype(dtype).as_numpy_dtype).itemsize
        if size > max(_MAX_FILLED_BYTES, 64 * tensor.ByteSize()):
            raise invalid(f"Input {name} must hold the values of its shape. Received: {shape}")
        return np.asarray(tf.make_ndarray(tensor))
    except (TypeError, ValueError, OverflowError) as error:
        raise invalid(f"Input {name} cannot be read: {error}") from error


def to_proto(array: Array) -> Any:
    """Write a tensor: floats as `float_val` and `double_val`, as TensorFlow Serving does, else as TensorFlow chooses.

    Args:
        array: What a signature returned.

    Returns:
        A TensorProto.

    Example:
        >>> list(to_proto(np.float32([0.5, 2])).float_val)
        [0.5, 2.0]
    """
    key = _WIRE_KEYS.get(array.dtype)
    if key is None:
        return tf.make_tensor_proto(array)
    tensor = tensor_pb2.TensorProto(dtype=tf.dtypes.as_dtype(array.dtype).as_datatype_enum)
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    values = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    tensor.MergeFromString(key + _varint(len(values)) + values)
    return tensor


def _varint(value: int) -> bytes:
    """Return seven bits a byte, the low ones first; the highest bit says that more follow."""
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])

"""TensorFlow Serving's small configuration files in protobuf text form.

`tensorflow-serving-api` ships no Python classes for three of them, so their messages are described here, field by
field, under the names and types of TensorFlow Serving's `.proto` files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from google.protobuf.descriptor import FieldDescriptor

from tfdlrm.spec.errors import ConfigError

_TYPES = {
    "bool": FieldDescriptor.TYPE_BOOL,
    "int64": FieldDescriptor.TYPE_INT64,
    "string": FieldDescriptor.TYPE_STRING,
}

# A name with a capital is a message; `Int64Value` and its like are written `field { value: 1 }`.
_MESSAGES: dict[str, dict[str, str]] = {
    "BatchingParameters": {
        "max_batch_size": "Int64Value",
        "batch_timeout_micros": "Int64Value",
        "max_enqueued_batches": "Int64Value",
        "num_batch_threads": "Int64Value",
        "thread_pool_name": "StringValue",
        "allowed_batch_sizes": "repeated int64",
        "pad_variable_length_inputs": "bool",
        "enable_large_batch_splitting": "BoolValue",
        "max_execution_batch_size": "Int64Value",
    },
    "PrometheusConfig": {"enable": "bool", "path": "string"},
    "MonitoringConfig": {"prometheus_config": "PrometheusConfig"},
    "SSLConfig": {"server_key": "string", "server_cert": "string", "custom_ca": "string", "client_verify": "bool"},
}


def _build_pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="tfdlrm/serving/text_proto.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field_name, words) in enumerate(fields.items(), start=1):
            kind = words.removeprefix("repeated ")
            repeated = FieldDescriptor.LABEL_REPEATED if kind != words else FieldDescriptor.LABEL_OPTIONAL
            field = message.field.add(name=field_name, number=number, label=repeated)
            if kind in _TYPES:
                field.type = _TYPES[kind]
            else:
                field.type = FieldDescriptor.TYPE_MESSAGE
                field.type_name = f".{'tensorflow.serving' if kind in _MESSAGES else 'google.protobuf'}.{kind}"
    # A pool of its own: should these classes be shipped one day, their names are not taken.
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _build_pool()


def read_text_proto(flag: str, path: Path, message_name: str) -> Any:
    """Read a file in protobuf text form.

    Args:
        flag: The flag that named the file, for the error.
        path: The file.
        message_name: "BatchingParameters", "MonitoringConfig" or "SSLConfig".

    Returns:
        The message.

    Raises:
        ConfigError: There is no such file, or it holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"`{flag}` must be a file that can be read: {reason}. Received: {path}") from error
    message = message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"tensorflow.serving.{message_name}"))()
    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise ConfigError(f"`{flag}` must hold a {message_name} in text form: {error}. Received: {path}") from error

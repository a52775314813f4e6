"""Bodies of classify and regress requests: JSON examples to serialized `tf.train.Example`, and answers back to JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from tensorflow.core.example import example_pb2

from tfdlrm.serving.codec import DEFAULT_SIGNATURE, malformed, parse_predict
from tfdlrm.serving.errors import StatusError, invalid
from tfdlrm.serving.tensors import Array, from_base64, is_object, quote, to_json, utf8

_KINDS = {"int64_list": "int64", "float_list": "float", "bytes_list": "bytes"}


@dataclasses.dataclass(frozen=True)
class ExamplesBody:
    """What a classify or regress body asks for.

    Attributes:
        signature_name: The signature asked for, the default one where none is.
        examples: Serialized `tf.train.Example`, one for each row; the features of the context are in each.
    """

    signature_name: str
    examples: list[bytes]


def parse_examples(body: bytes) -> ExamplesBody:
    """Read the whole of a classify or regress request: its tensors are made without knowing the model.

    Args:
        body: The raw request body.

    Returns:
        The signature name and the examples.

    Raises:
        StatusError: The body is not JSON, or an example cannot be one: a value of no kind, or two kinds in one feature.
    """
    request = parse_predict(body)
    document = request.document
    context = _serialize(document["context"]) if "context" in document else b""
    if "examples" not in document:
        raise malformed(document, "When method is classify, key 'examples' is expected and was not found")
    examples = document["examples"]
    if not isinstance(examples, list):
        raise malformed(document, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise malformed(document, "'examples' value is an empty array")
    return ExamplesBody(
        request.signature_name or DEFAULT_SIGNATURE, with_context(context, [_serialize(one) for one in examples])
    )


def with_context(context: bytes, examples: Sequence[bytes]) -> list[bytes]:
    """Return the examples with the features of a context, which a feature of the example itself replaces.

    Two serialized messages one after the other are the message merged from both.
    """
    return [context + example for example in examples]


def encode_classes(labels: Array, scores: Array) -> bytes:
    """Write the answer to a classify request.

    Args:
        labels: Objects of `bytes`, `[B, C]`.
        scores: float32 `[B, C]`.

    Example:
        >>> encode_classes(np.array([[b"no", b"yes"]], object), np.float32([[0.75, 0.25]]))
        b'{"results": [[["no", 0.75], ["yes", 0.25]]]}'
    """
    names = [quote(label.decode("utf-8", "surrogateescape")) for label in labels.ravel()]
    pairs = [f"[{name}, {score}]" for name, score in zip(names, to_json("", scores, ()), strict=True)]
    size = labels.shape[1]
    rows = ["[" + ", ".join(pairs[row * size : (row + 1) * size]) + "]" for row in range(len(labels))]
    return utf8('{"results": [' + ", ".join(rows) + "]}")


def encode_values(values: Array) -> bytes:
    """Write the answer to a regress request: float32 `[B]`.

    >>> encode_values(np.float32([0.5, 2]))
    b'{"results": [0.5, 2.0]}'
    """
    return utf8('{"results": [' + ", ".join(to_json("", values, ())) + "]}")


def _serialize(value: Any) -> bytes:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {_type_name(value)}")
    example = example_pb2.Example()
    for name, content in value.items():
        kind, values = _feature(name, content if isinstance(content, list) else [content])
        try:
            feature = example.features.feature[name]
        except UnicodeEncodeError:
            raise invalid("JSON Parse error: Invalid encoding in string.") from None
        if kind is not None:
            getattr(feature, kind).value.extend(values)
    return bytes(example.SerializeToString())


def _feature(name: str, content: list[Any]) -> tuple[str | None, list[Any]]:
    """Return the list a feature holds, None where it is empty; the first value decides and the others must agree."""
    kind: str | None = None
    values: list[Any] = []
    for item in content:
        found, value = _value(name, item)
        if kind not in (None, found):
            raise invalid(f"Unexpected element type in feature: {name} expecting type: {_KINDS[str(kind)]}")
        kind = found
        values.append(value)
    if kind == "float_list":
        with np.errstate(over="ignore"):  # 1e39 becomes an infinite float
            values = np.array(values, np.float64).astype(np.float32).tolist()
    return kind, values


def _value(name: str, item: Any) -> tuple[str, Any]:
    if isinstance(item, bool):
        return "int64_list", int(item)
    if isinstance(item, int) and -(2**63) <= item < 2**64:
        if item >= 2**63:
            raise invalid(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        return "int64_list", item
    if isinstance(item, int | float):  # an integer beyond 64 bits is read as a double
        try:
            return "float_list", float(item)
        except OverflowError:
            raise invalid("JSON Parse error: Number too big to be stored in double.") from None
    if isinstance(item, str):
        try:
            return "bytes_list", utf8(item)
        except UnicodeEncodeError:
            raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from None
    if isinstance(item, dict) and not is_object(item):
        return "bytes_list", from_base64(item)
    raise _unexpected(name, item)


def _unexpected(name: str, item: Any) -> StatusError:
    return invalid(f"Feature: {name} has element with unexpected JSON type: {_type_name(item)}")


def _type_name(value: Any) -> str:
    names = {bool: str(value), type(None): "Null", str: "String", dict: "Object", list: "Array"}
    return names.get(type(value), "Number")

"""JSON bodies to arrays and back, by TensorFlow Serving's rules: no server, no model and no TensorFlow in here.

The rules are those of its `json_tensor.cc`: integers are accepted for floats but not `1.0` for an integer, `NaN` and
`Infinity` are tokens in both directions, bytes travel as `{"b64": ...}`, bytes after the JSON document are ignored.
"""

from __future__ import annotations

import codecs
import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfdlrm.serving.errors import StatusError, invalid
from tfdlrm.serving.tensors import Array, Irregular, check, debug_text, is_object, quote, to_array, to_json, utf8, walk

DEFAULT_SIGNATURE = "serving_default"

_ROWS_AT_ONCE = 1000
_WHITESPACE = " \t\n\r"
_PARSE_ERRORS = {
    "Expecting value": "Invalid value.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Expecting ',' delimiter": "Missing a comma or a closing bracket.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One named input or output of a signature.

    Attributes:
        dtype: TensorFlow Serving's name of the type, such as "float" or "string".
        shape: Sizes with None where any is allowed, or None for any rank.
    """

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True)
class PredictBody:
    """A predict body whose JSON is sound; its tensors are read once the signature is known.

    Attributes:
        document: The top-level object.
        signature_name: The signature asked for, the default one where none is.
    """

    document: dict[str, Any]
    signature_name: str


def parse_predict(body: bytes) -> PredictBody:
    """Read the JSON of a predict request, and no more than can be judged without knowing the model.

    Args:
        body: The raw request body.

    Returns:
        The top-level object and the signature name.

    Raises:
        StatusError: The body is not JSON, not an object, or `signature_name` is not a string.

    Example:
        >>> parse_predict(b'{"instances": [1.0]} trailing bytes').signature_name
        'serving_default'
    """
    document = _parse_json(body)
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {debug_text(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return PredictBody(document, name or DEFAULT_SIGNATURE)


def decode_inputs(body: PredictBody, inputs: Mapping[str, TensorInfo]) -> tuple[dict[str, Array], bool]:
    """Turn the rows or columns of a predict request into one array per input of the signature.

    Args:
        body: What `parse_predict` returned.
        inputs: The inputs of the signature by name.

    Returns:
        The arrays by input name (strings as objects of `bytes`), and whether the request came as rows.

    Raises:
        StatusError: The values do not fit the signature.
    """
    if not inputs:
        name = "DEFAULT" if body.signature_name == DEFAULT_SIGNATURE else body.signature_name
        raise invalid(f"Failed to get input map for signature: {name}")
    document = body.document
    if "instances" in document and "inputs" in document:
        raise malformed(document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
    if "instances" in document:
        rows = document["instances"]
        if not isinstance(rows, list):
            raise malformed(document, "Expecting 'instances' to be an list/array")
        if not rows:
            raise malformed(document, "No values in 'instances' array")
        with np.errstate(over="ignore"):
            return _decode_rows(rows, inputs), True
    if "inputs" in document:
        with np.errstate(over="ignore"):
            return _decode_columns(document["inputs"], inputs), False
    raise invalid("Missing 'inputs' or 'instances' key")


def encode_outputs(outputs: Mapping[str, Array], rows: bool) -> bytes:
    """Write the answer to a predict request.

    Args:
        outputs: The arrays by output name; with a single one its name is omitted.
        rows: Whether to answer in rows (`predictions`) or columns (`outputs`).

    Returns:
        The JSON document, UTF-8.

    Raises:
        StatusError: An output has a type JSON cannot carry, or rows were asked of tensors that have no common rows.

    Example:
        >>> encode_outputs({"probability": np.float32([[0.5], [9e6]])}, rows=True)
        b'{"predictions": [[0.5], [9e+06]]}'
    """
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    names = sorted(outputs)
    if not rows:
        columns = {name: "".join(to_json(name, outputs[name], outputs[name].shape)) for name in names}
        if len(names) == 1:
            return utf8(f'{{"outputs": {columns[names[0]]}}}')
        return utf8(f'{{"outputs": {_object(columns)}}}')
    size = _batch_size(outputs)
    parts = {name: to_json(name, outputs[name], outputs[name].shape[1:]) for name in names}
    if len(names) == 1:
        items: Sequence[str] = parts[names[0]]
    else:
        items = [_object({name: parts[name][row] for name in names}) for row in range(size)]
    return utf8(f'{{"predictions": [{", ".join(items)}]}}')


def encode_error(message: str) -> bytes:
    """Return the body of an error answer.

    >>> encode_error("no such model")
    b'{"error": "no such model"}'
    """
    return json.dumps({"error": message}).encode()


# --- reading -------------------------------------------------------------------------------------------------------


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; of a duplicated key the first value counts, as in a rapidjson look-up."""
    members = dict(pairs)
    return members if len(members) == len(pairs) else dict(reversed(pairs))


_DECODER = json.JSONDecoder(object_pairs_hook=_first_wins)


def _parse_json(body: bytes) -> dict[str, Any]:
    if body.startswith(codecs.BOM_UTF8):
        body = body[len(codecs.BOM_UTF8) :]
    # Bytes that are no UTF-8 survive the way through `str`, so a string reaches the model as it was sent.
    text = body.decode("utf-8", "surrogateescape")
    start = len(text) - len(text.lstrip(_WHITESPACE))
    if start == len(text):
        raise invalid("JSON Parse error: The document is empty")
    try:
        document, _ = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        reason = _PARSE_ERRORS.get(error.msg, error.msg)
        raise invalid(f"JSON Parse error: {reason} at offset: {error.pos}") from None
    except RecursionError:
        raise invalid("JSON Parse error: Nested too deep.") from None
    except ValueError:  # Python refuses integers of more than a few thousand digits; no number type holds them
        raise invalid("JSON Parse error: Number too big to be stored in double.") from None
    if not isinstance(document, dict):
        raise malformed(document, "Is not object")
    return document


def _decode_rows(rows: list[Any], inputs: Mapping[str, TensorInfo]) -> dict[str, Array]:
    objects = is_object(rows[0])
    if not objects and len(inputs) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required "
            "as per tensorinfo_map"
        )
    try:
        return _convert(rows, inputs, objects)
    except (Irregular, StatusError):
        return _walk_rows(rows, inputs, objects)


def _convert(rows: list[Any], inputs: Mapping[str, TensorInfo], objects: bool) -> dict[str, Array]:
    """Read all rows at once, or raise without saying which is wrong."""
    if not objects:
        (name,) = inputs
        return {name: to_array(rows, inputs[name].dtype)}
    keys = inputs.keys()
    if not all(isinstance(row, dict) and row.keys() == keys for row in rows):
        raise Irregular
    return {name: to_array([row[name] for row in rows], inputs[name].dtype) for name in inputs}


def _find(rows: list[Any], inputs: Mapping[str, TensorInfo], objects: bool) -> int:
    """Return the index of a row before which all are sound and of one shape, not far from the first that is not."""
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        try:
            _convert([rows[0], *rows[start : start + _ROWS_AT_ONCE]], inputs, objects)
        except (Irregular, StatusError):
            return start
    return len(rows)


def _walk_rows(rows: list[Any], inputs: Mapping[str, TensorInfo], objects: bool) -> dict[str, Array]:
    """Read row by row and value by value: slower, and says which row and key is wrong."""
    first: dict[str, tuple[int, ...]] = {}
    (*_, only) = inputs
    start = _find(rows, inputs, objects)
    for index, row in itertools.chain([(0, rows[0])], enumerate(rows[start:], start)):  # the first one sets the shapes
        if objects and not is_object(row):
            raise invalid(f"Expecting object but got list at item {index} of input list")
        if not objects and is_object(row):
            raise invalid(f"Expecting value/list but got object at item {index} of input list")
        for name, value in row.items() if objects else [(only, row)]:
            try:
                if name not in inputs:
                    raise invalid(f"JSON object: does not have named input: {name}")
                shape = check(value, inputs[name].dtype)
                _same_shape(shape, first.setdefault(name, shape))
            except StatusError as error:
                key = f" key: {name}" if objects else ""
                raise invalid(f"Failed to process element: {index}{key} of 'instances' list. Error: {error}") from None
        if objects and row.keys() != inputs.keys():
            raise invalid(
                f"Failed to process element: {index} of 'instances' list. JSON object: {debug_text(row)} "
                f"keys must be equal to: {','.join(sorted(inputs))}"
            )
    # Sound rows that are no rectangle at the fast road's first look, such as lists that hold nothing at all.
    return {
        name: np.stack([walk(row[name] if objects else row, inputs[name].dtype) for row in rows]) for name in inputs
    }


def _same_shape(shape: tuple[int, ...], before: tuple[int, ...]) -> None:
    if math.prod(before) != math.prod(shape):
        raise invalid(f"Expecting tensor size: {math.prod(before)} but got: {math.prod(shape)}")
    if before != shape:
        raise invalid(f"Expecting shape {_shape(before)} but got: {_shape(shape)}")


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _decode_columns(values: Any, inputs: Mapping[str, TensorInfo]) -> dict[str, Array]:
    if is_object(values):
        named = values
    elif len(inputs) == 1:
        named = dict.fromkeys(inputs, values)
    else:
        raise invalid(
            "inputs is a plain value/list, but expecting an object as multiple input tensors required "
            "as per tensorinfo_map"
        )
    arrays = {}
    for name, info in inputs.items():
        if name not in named:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        try:
            arrays[name] = to_array(named[name], info.dtype)
        except Irregular:
            arrays[name] = walk(named[name], info.dtype)
    return arrays


def malformed(value: Any, rule: str) -> StatusError:
    """Return the error for a body whose JSON is sound but not of the form asked for."""
    return invalid(f"JSON Value: {debug_text(value)} {rule}")


# --- writing -------------------------------------------------------------------------------------------------------


def _batch_size(outputs: Mapping[str, Array]) -> int:
    size = -1
    for name, array in outputs.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if size not in (-1, len(array)):
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {size}")
        size = len(array)
    return size


def _object(members: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{quote(name)}: {value}" for name, value in members.items()) + "}"

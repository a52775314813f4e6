"""JSON values to arrays and arrays to JSON texts, one tensor at a time.

Reading has two roads. The fast one checks and converts whole lists in calls that loop in C and only says yes or no; the
slow one walks value by value and is taken to name the first value that is wrong.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfdlrm.serving.errors import Code, StatusError, invalid

Array = NDArray[Any]

# TensorFlow Serving's names of the types that JSON can carry.
DTYPES: Mapping[str, Any] = {
    "float": np.float32,
    "double": np.float64,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
    "string": np.object_,
}

_FLOATS = ("float", "double")
_DEBUG_CHARACTERS = 256
_DOUBLE_BITS = 1000  # of an integer that a double takes for sure
_MAX_RANK = 32  # NumPy stops at 64; a batch dimension may still be added


class Irregular(Exception):
    """Raised by the fast road: the values are not one rectangular tensor of one type. `walk` finds the place."""


def to_array(value: Any, dtype: str) -> Array:
    """Convert a value or nested list in a few calls that loop in C.

    Args:
        value: What the JSON parser returned: a scalar or lists of lists of scalars.
        dtype: TensorFlow Serving's name of the type wanted.

    Returns:
        The array; its rank is the depth of the lists. Strings are objects of `bytes`.

    Raises:
        Irregular: Not rectangular, or a value the type cannot take.
        StatusError: A string that cannot be decoded.

    Example:
        >>> to_array([[1, 2.5]], "float")
        array([[1. , 2.5]], dtype=float32)
    """
    shape: list[int] = []
    flat = [value]
    while flat and type(flat[0]) is list:
        size = len(flat[0])
        if len(shape) == _MAX_RANK or set(map(type, flat)) != {list} or set(map(len, flat)) != {size}:
            raise Irregular
        shape.append(size)
        flat = flat[0] if len(flat) == 1 else list(itertools.chain.from_iterable(flat))
    return _leaves(flat, dtype).reshape(shape)


def _leaves(flat: list[Any], dtype: str) -> Array:
    """Convert plain JSON values to a flat array, refusing what the type cannot take."""
    types = set(map(type, flat))
    if dtype in _FLOATS:
        if not types <= {float, int}:
            raise Irregular
        try:
            # Through double, as in TensorFlow Serving: 1e39 becomes an infinite float.
            return np.array(flat, dtype=np.float64).astype(DTYPES[dtype])
        except OverflowError:
            raise Irregular from None
    if dtype == "string":
        if not types <= {str, dict}:
            raise Irregular
        array = np.empty(len(flat), dtype=np.object_)
        try:
            array[:] = [utf8(text) if type(text) is str else from_base64(text) for text in flat]
        except UnicodeEncodeError:
            raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from None
        return array
    if dtype not in DTYPES or not types <= {bool if dtype == "bool" else int}:
        raise Irregular
    try:
        return np.array(flat, dtype=DTYPES[dtype])
    except OverflowError:
        raise Irregular from None


def from_base64(value: dict[str, Any]) -> bytes:
    """Return the bytes of `{"b64": ...}`, with or without padding.

    Raises:
        StatusError: Another object, or no base64.
    """
    encoded = value.get("b64")
    if not isinstance(encoded, str) or len(value) != 1:
        raise invalid(f"JSON Value: {debug_text(value)} not formatted correctly for base64 data")
    digits = "".join(encoded.split()).rstrip("=")
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def walk(value: Any, dtype: str) -> Array:
    """Convert value by value; the first that is out of place or of another type is named in the error.

    Args:
        value: As in `to_array`.
        dtype: As in `to_array`.

    Raises:
        StatusError: INVALID_ARGUMENT, or UNIMPLEMENTED for a type JSON cannot carry.
    """
    shape = check(value, dtype)
    flat = [value]
    for _ in shape:
        flat = list(itertools.chain.from_iterable(flat))
    if not flat:
        return np.empty(0, dtype=DTYPES.get(dtype, np.object_)).reshape(shape)
    return _leaves(flat, dtype).reshape(shape)


def check(value: Any, dtype: str) -> tuple[int, ...]:
    """Return the shape of a value, without an array being made; see `walk`.

    Raises:
        StatusError: As in `walk`.
    """
    shape: list[int] = []
    first = value
    while isinstance(first, list):
        shape.append(len(first))
        if len(shape) > _MAX_RANK:
            raise invalid(f"Encountered list nested deeper than {_MAX_RANK} levels")
        if not first:
            break
        first = first[0]
    rank = len(shape)
    sound = _sound(dtype)

    def visit(item: Any, level: int) -> None:
        if not isinstance(item, list):
            if level != rank:
                raise invalid(
                    f"JSON Value: {debug_text(item)} found at incorrect level: {level + 1} in the JSON DOM. "
                    f"Expected at level: {rank}"
                )
            if not sound(item):
                _check_leaf(item, dtype)
            return
        if level >= rank:
            raise invalid(f"Encountered list at unexpected level: {level} expected < {rank}")
        if len(item) != shape[level]:
            raise invalid(
                f"Encountered list at unexpected size: {len(item)} at level: {level} expected size: {shape[level]}"
            )
        for element in item:
            if level + 1 < rank or not sound(element):
                visit(element, level + 1)

    visit(value, 0)
    return tuple(shape)


def _sound(dtype: str) -> Callable[[Any], bool]:
    """Return a function that says of a plain value, at once, that the type takes it; False says nothing."""
    if dtype in _FLOATS:
        return lambda value: type(value) is float or (type(value) is int and value.bit_length() < _DOUBLE_BITS)
    if dtype == "bool":
        return lambda value: type(value) is bool
    if dtype == "string":
        return lambda value: type(value) is str and value.isascii()
    if dtype in DTYPES:
        limits = np.iinfo(DTYPES[dtype])
        least, most = int(limits.min), int(limits.max)
        return lambda value: type(value) is int and least <= value <= most
    return lambda value: False


def _check_leaf(value: Any, dtype: str) -> None:
    if dtype not in DTYPES:
        raise StatusError(Code.UNIMPLEMENTED, f"Conversion of JSON Value: {debug_text(value)} to type: {dtype}")
    try:
        _leaves([value], dtype)
    except Irregular:
        raise _type_error(value, dtype) from None


def is_object(value: Any) -> bool:
    """Whether a value is a JSON object and not a base64 string dressed as one."""
    return isinstance(value, dict) and not (len(value) == 1 and isinstance(value.get("b64"), str))


def debug_text(value: Any) -> str:
    """Return a value as JSON, cut to what an error message can bear; a body of megabytes is not written whole."""
    text = ""
    for part in json.JSONEncoder().iterencode(value):
        text += part
        if len(text) >= _DEBUG_CHARACTERS:  # reached long before the nesting that would be too deep to write
            break
    return text[:_DEBUG_CHARACTERS]


def _type_error(value: Any, dtype: str) -> StatusError:
    name = {bool: str(value), type(None): "Null", str: "String", dict: "Object"}.get(type(value), "Number")
    return invalid(f"JSON Value: {debug_text(value)} Type: {name} is not of expected type: {dtype}")


def to_json(name: str, array: Array, shape: tuple[int, ...]) -> list[str]:
    """Write an array as JSON texts.

    Args:
        name: Name of the output; strings under a name that ends in `_bytes` are written as base64.
        array: What the model returned.
        shape: The trailing dimensions one text holds: all of them for one text, none for a text per value.

    Raises:
        StatusError: The type has no JSON form.

    Example:
        >>> to_json("x", np.int64([[1, 2], [3, 4]]), (2,))
        ['[1, 2]', '[3, 4]']
    """
    parts = _tokens(name, array.ravel())
    leading = array.shape[: array.ndim - len(shape)]
    for axis in range(len(shape) - 1, -1, -1):
        size = shape[axis]
        if size == 1:
            parts = [f"[{part}]" for part in parts]
        else:
            count = math.prod(leading + shape[:axis])
            parts = ["[" + ", ".join(parts[i * size : (i + 1) * size]) + "]" for i in range(count)]
    return parts


def _tokens(name: str, flat: Array) -> list[str]:
    kind = flat.dtype.type
    if kind in (np.float32, np.float64):
        return _decimals(flat)
    if kind is np.object_ and name.endswith("_bytes"):
        return [f'{{"b64": "{base64.b64encode(value).decode()}"}}' for value in flat]
    if kind is np.object_:
        return [quote(value.decode("utf-8", "surrogateescape")) for value in flat]
    if kind is np.bool_:
        return ["true" if value else "false" for value in flat]
    if kind in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint32, np.uint64):
        return list(map(str, flat.tolist()))
    raise invalid(f"Failed to write JSON value for tensor type: {'half' if kind is np.float16 else flat.dtype.name}")


def _decimals(flat: Array) -> list[str]:
    """Write floats in six digits where those read back as the same float, else in all digits that matter."""
    values = flat.tolist()
    tokens = [f"{value:g}" for value in values]
    with np.errstate(over="ignore"):
        read_back = np.array(list(map(float, tokens))).astype(flat.dtype)
    exact = (read_back == flat).tolist()
    digits = 9 if flat.dtype == np.float32 else 17
    for index, same in enumerate(exact):
        token = tokens[index]
        if not same:
            value = values[index]
            token = "NaN" if value != value else f"{value:.{digits}g}"
        if "." not in token and "e" not in token and token != "NaN":
            token = token.replace("inf", "Infinity") if token.endswith("inf") else token + ".0"
        tokens[index] = token
    return tokens


def quote(text: str) -> str:
    """Return a JSON string, characters beyond ASCII as they are."""
    return json.dumps(text, ensure_ascii=False)


def utf8(text: str) -> bytes:
    """Encode text; what was not UTF-8 when it came in goes out as the bytes it was."""
    return text.encode("utf-8", "surrogateescape")

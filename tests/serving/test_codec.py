"""The codec without a server: arrays from JSON and back, against NumPy and the json module."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tfdlrm.serving.codec import PredictBody, TensorInfo, decode_inputs, encode_error, encode_outputs, parse_predict
from tfdlrm.serving.errors import Code, StatusError

NUMPY = {
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
}


# What is random here is the input, not the time a busy machine takes to make it up.
unhurried = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


def decode(body: bytes, **inputs: str):
    named = {name: TensorInfo(dtype, None) for name, dtype in inputs.items()}
    return decode_inputs(parse_predict(body), named)


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("shape", [(3,), (3, 2), (2, 1, 3), (0,), (2, 0)])
def test_arrays_survive_both_ways(dtype, shape):
    rng = np.random.default_rng(1)
    expected = rng.integers(0, 2 if dtype == "bool" else 100, shape).astype(NUMPY[dtype])
    found, rows = decode(json.dumps({"inputs": expected.tolist()}).encode(), x=dtype)
    assert not rows
    assert found["x"].dtype == expected.dtype
    np.testing.assert_array_equal(found["x"], expected)
    written = json.loads(encode_outputs({"y": expected}, rows=False))
    assert written == {"outputs": expected.tolist()}


@unhurried
@given(
    arrays.arrays(
        st.sampled_from([np.float32, np.float64]),
        arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4),
        elements={"allow_nan": True, "allow_subnormal": True},
    )
)
def test_every_float_reads_back_as_itself(values):
    written = json.loads(encode_outputs({"y": values}, rows=False))["outputs"]
    read = np.array(written, dtype=np.float64).astype(values.dtype).reshape(values.shape)
    np.testing.assert_array_equal(read, values)
    np.testing.assert_array_equal(np.signbit(read[~np.isnan(read)]), np.signbit(values[~np.isnan(values)]))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(9000000), "9e+06"),
        (np.float32(0.00003), "3e-05"),
        (np.float32(0.2), "0.2"),
        (np.float32(3), "3.0"),
        (np.float32(-0.0), "-0.0"),
        (np.float32(1 / 3), "0.333333343"),
        (np.float32(16777216), "16777216.0"),
        (np.float32(3.4028235e38), "3.40282347e+38"),
        (np.float32(np.nan), "NaN"),
        (np.float32(-np.inf), "-Infinity"),
        (np.float64(0.1), "0.1"),
        (np.float64(1 / 3), "0.33333333333333331"),
        (np.float64(1e300), "1e+300"),
        (np.float64(123456789), "123456789.0"),
        (np.int64(-(2**63)), "-9223372036854775808"),
        (np.uint64(2**64 - 1), "18446744073709551615"),
        (np.bool_(True), "true"),
    ],
)
def test_how_a_value_is_written(value, text):
    assert encode_outputs({"y": np.asarray(value)}, rows=False).decode() == f'{{"outputs": {text}}}'


def test_rows_hold_one_object_for_each_row_of_several_outputs():
    outputs = {"b": np.array([[1, 2], [3, 4]]), "a_bytes": np.array([b"\x00", b"x"], dtype=object)}
    assert json.loads(encode_outputs(outputs, rows=True)) == {
        "predictions": [{"a_bytes": {"b64": "AA=="}, "b": [1, 2]}, {"a_bytes": {"b64": "eA=="}, "b": [3, 4]}]
    }


def test_no_output_is_refused():
    with pytest.raises(StatusError, match="empty tensor map"):
        encode_outputs({}, rows=True)


def test_the_fast_road_and_the_walk_agree():
    rows = [{"x": [1, 2.5], "s": "a"}, {"x": [3, -4], "s": {"b64": "AGI="}}]
    found, _ = decode(json.dumps({"instances": rows}).encode(), x="float", s="string")
    # A key of another order or a spare base64 value changes nothing; nor does one row on its own.
    for index, row in enumerate(rows):
        alone, _ = decode(json.dumps({"instances": [dict(reversed(row.items()))]}).encode(), x="float", s="string")
        np.testing.assert_array_equal(alone["x"][0], found["x"][index])
        assert alone["s"][0] == found["s"][index]
    np.testing.assert_array_equal(found["x"], np.float32([[1, 2.5], [3, -4]]))
    assert found["s"].tolist() == [b"a", b"\x00b"]


def test_strings_keep_every_byte():
    found, _ = decode(
        b'{"inputs": ["a\\u0000", "\xc3\xa9", "\xff", "", {"b64": "AP8"}, {"b64": "A P\\n8="}]}', s="string"
    )
    assert found["s"].tolist() == [b"a\x00", b"\xc3\xa9", b"\xff", b"", b"\x00\xff", b"\x00\xff"]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("int8", 128),
        ("int8", -129),
        ("uint8", 256),
        ("uint8", -1),
        ("int16", 40000),
        ("int32", 2**31),
        ("int64", 2**63),
        ("uint32", 2**32),
        ("uint64", 2**64),
        ("uint64", -1),
        ("bool", 1),
        ("int32", True),
        ("int32", 1.0),
        ("int32", float("nan")),
        ("float", True),
        ("float", "NaN"),
        ("float", None),
        ("float", 10**400),
        ("double", {"x": 1}),
        ("string", 1),
        ("string", None),
    ],
)
def test_values_a_type_cannot_take(dtype, value):
    for body in ({"inputs": [value]}, {"inputs": [[value]]}, {"instances": [{"x": value}]}, {"instances": [value]}):
        if isinstance(value, dict) and "inputs" not in body:
            continue
        with pytest.raises(StatusError, match=f"not of expected type: {dtype}") as error:
            decode(json.dumps(body).encode(), x=dtype)
        assert error.value.code == Code.INVALID_ARGUMENT


def test_large_integers_become_floats():
    found, _ = decode(json.dumps({"inputs": [2**70, -(2**53) - 1]}).encode(), x="double")
    np.testing.assert_array_equal(found["x"], np.array([2.0**70, -(2.0**53)]))


def test_the_first_wrong_row_is_named():
    rows = [{"x": 1.0}] * 7 + [{"x": "seven"}] + [{"x": None}]
    with pytest.raises(StatusError, match='element: 7 key: x of .* JSON Value: "seven" Type: String'):
        decode(json.dumps({"instances": rows}).encode(), x="float")


@pytest.mark.parametrize("depth", [34, 100, 900])
def test_deep_lists_are_refused(depth):
    for key in ("inputs", "instances"):
        body = f'{{"{key}": {"[" * depth}1.0{"]" * depth}}}'.encode()
        with pytest.raises(StatusError, match="nested deeper than 32|Nested too deep"):
            decode(body, x="float")


def test_a_signature_without_inputs():
    with pytest.raises(StatusError, match="Failed to get input map for signature: DEFAULT"):
        decode(b'{"inputs": [1.0]}')


@pytest.mark.parametrize("message", ["plain", 'with "quotes"\n', "\udcff and \ud800", "é"])
def test_error_bodies_are_json_whatever_the_message(message):
    assert json.loads(encode_error(message)) == {"error": message}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just({"b64": "aGk="}),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("xsz"), inner, max_size=3),
    max_leaves=12,
)


@unhurried
@given(
    st.dictionaries(st.sampled_from(["instances", "inputs", "signature_name", "other"]), json_values, max_size=3),
    st.sampled_from([{"x": "float"}, {"x": "int64", "s": "string"}, {"x": "bool"}, {"s": "string"}]),
)
def test_any_json_is_decoded_or_refused(body, inputs):
    """Whatever comes in, the outcome is arrays of the asked types or an error of the caller."""
    try:
        found, _ = decode(json.dumps(body).encode(), **inputs)
    except StatusError as error:
        assert error.code.http_status == 400
        return
    assert {name: array.dtype for name, array in found.items()} == {
        name: np.dtype(NUMPY.get(dtype, object)) for name, dtype in inputs.items()
    }


@unhurried
@given(st.binary(max_size=60))
def test_any_bytes_are_parsed_or_refused(body):
    for whole in (body, b'{"inputs": ' + body, b'{"inputs": ["' + body + b'"]}'):
        try:
            decode(whole, s="string")
        except StatusError as error:
            assert error.code == Code.INVALID_ARGUMENT


def test_one_row_of_39_features_takes_well_under_a_millisecond():
    row = {f"i{k}": k / 8 for k in range(13)} | {f"c{k}": "68fd1e64" for k in range(26)}
    inputs = {name: TensorInfo("float" if name[0] == "i" else "string", (None,)) for name in row}
    body = json.dumps({"instances": [row]}).encode()
    answer = {"probability": np.float32([[0.123456789]])}
    took = []
    for _ in range(200):
        started = time.thread_time()
        decode_inputs(parse_predict(body), inputs)
        encode_outputs(answer, rows=True)
        took.append(time.thread_time() - started)
    assert np.median(took) < 0.001


@pytest.mark.parametrize(
    ("sound", "wrong", "inputs", "message"),
    [
        (1.5, "x", {"x": "float"}, 'JSON Value: "x" Type: String is not of expected type: float'),
        ([0.5, 1], [0.5, True], {"x": "float"}, "JSON Value: true Type: True is not of expected type: float"),
        ({"i": 1, "s": "a"}, {"i": 1.0, "s": "a"}, {"i": "int64", "s": "string"}, "expected type: int64"),
        ({"i": 1, "s": "a"}, {"i": [1], "s": "a"}, {"i": "int64", "s": "string"}, "Expecting shape [] but got: [1]"),
        ([0.5, 1], [0.5], {"x": "float"}, "Expecting tensor size: 2 but got: 1"),
    ],
    ids=["scalars", "lists", "objects", "shapes", "sizes"],
)
def test_one_wrong_value_behind_many_sound_ones_is_found_soon(sound, wrong, inputs, message):
    body = PredictBody({"instances": [sound] * 200_000 + [wrong]}, "s")
    started = time.process_time()
    with pytest.raises(StatusError) as error:
        decode_inputs(body, {name: TensorInfo(dtype, None) for name, dtype in inputs.items()})
    assert time.process_time() - started < 1  # value by value it takes two to three
    assert "Failed to process element: 200000" in error.value.message
    assert message in error.value.message

"""Classify and regress over HTTP, and their JSON examples as messages."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest
import tensorflow as tf

from tfdlrm.serving.errors import StatusError
from tfdlrm.serving.examples import encode_classes, encode_values, parse_examples


def ask(server, verb: str, signature: str = "", **body) -> httpx.Response:
    named = {"signature_name": signature} if signature else {}
    return server.client.post(f"/v1/models/m:{verb}", content=json.dumps({**named, **body}))


# --- over HTTP ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "signature", "body", "results"),
    [
        ("regress", "regress", {"examples": [{"x": 1.0}, {"x": [-4.0]}, {}]}, [2.5, 0.0, 2.0]),
        ("regress", "regress_column", {"examples": [{"x": 1.0}, {"x": 2.0}]}, [2.5, 3.0]),
        ("regress", "regress", {"context": {"bias": 10.0}, "examples": [{"x": 1.0}, {"bias": 1.0}]}, [12.5, 3.0]),
        ("classify", "classify", {"examples": [{"x": 1.0}]}, [[["low", -1.5], ["high", 2.5]]]),
        ("classify", "classify_scores", {"examples": [{"x": 20.0}]}, [[["", 12.0]]]),
        ("classify", "classify_labels", {"examples": [{"x": 2.0}, {"x": 4.0}]}, [[["3", 0.0]], [["4", 0.0]]]),
        ("classify", "classify_scores", {"context": {"bias": 1.0}, "examples": [{}]}, [[["", 3.0]]]),
    ],
)
def test_answers(server, verb, signature, body, results):
    for path in ("/v1/models/m", "/v1/models/m/versions/1"):
        response = server.client.post(f"{path}:{verb}", content=json.dumps({"signature_name": signature, **body}))
        assert (response.status_code, response.json()) == (200, {"results": results})


@pytest.mark.parametrize(
    ("verb", "signature", "body", "message"),
    [
        ("classify", "", {"examples": [{}]}, "No classification inputs found in SignatureDef"),
        ("regress", "", {"examples": [{}]}, "No regression inputs found in SignatureDef"),
        ("classify", "regress", {"examples": [{}]}, 'at least one of "classes" or "scores"'),
        ("regress", "classify", {"examples": [{}]}, "Expected one output Tensor."),
        ("regress", "classify_scores", {"examples": [{}]}, "No regression outputs found in SignatureDef"),
        ("classify", "mixed", {"examples": [{}]}, "Expected one input Tensor."),
        ("regress", "nope", {"examples": [{}]}, "No signature was found with the name: nope"),
        ("classify", "classify_flat", {"examples": [{}]}, "Expected Tensor shape: [batch_size num_classes]"),
        ("regress", "regress_double", {"examples": [{}]}, "Expected output Tensor of DT_FLOAT.  Got: float64"),
        ("regress", "regress_matrix", {"examples": [{}]}, "either [batch_size] or [batch_size, 1]"),
        ("regress", "regress", {"examples": [{"x": 1}]}, "Data types don't match"),
        ("regress", "regress", {"examples": [{"x": [1.0, 2.0]}]}, "Key: x"),
    ],
)
def test_signatures_that_do_not_fit_are_400(server, verb, signature, body, message):
    response = ask(server, verb, signature, **body)
    assert response.status_code == 400
    assert message in response.json()["error"]


def test_examples_are_judged_before_the_model(server):
    def status(body: bytes) -> int:
        return server.client.post("/v1/models/nobody:regress", content=body).status_code

    assert status(b"{") == 400
    assert status(b'{"examples": [1]}') == 400
    assert status(b'{"examples": [{"x": 1.0}]}') == 404


# --- messages -------------------------------------------------------------------------------------------------------


def feature(value) -> tf.train.Feature:
    (example,) = parse_examples(json.dumps({"examples": [{"f": value}]}).encode()).examples
    return tf.train.Example.FromString(example).features.feature["f"]


@pytest.mark.parametrize(
    ("value", "kind", "values"),
    [
        (1, "int64_list", [1]),
        ([True, False, -(2**63), 2**63 - 1], "int64_list", [1, 0, -(2**63), 2**63 - 1]),
        (1.0, "float_list", [1.0]),
        ([0.5, 2**64, 1e39], "float_list", [0.5, 2.0**64, float("inf")]),
        ("é", "bytes_list", ["é".encode()]),
        (["a", {"b64": "/wA="}], "bytes_list", [b"a", b"\xff\x00"]),
    ],
)
def test_kinds(value, kind, values):
    found = feature(value)
    assert found.WhichOneof("kind") == kind
    assert list(getattr(found, kind).value) == values


def test_an_empty_list_is_a_feature_of_no_kind():
    assert feature([]).WhichOneof("kind") is None


def test_the_same_feature_may_differ_from_example_to_example():
    body = json.dumps({"examples": [{"f": 1}, {"f": 1.0}, {"f": "1"}]}).encode()
    features = [tf.train.Example.FromString(one).features.feature["f"] for one in parse_examples(body).examples]
    kinds = [found.WhichOneof("kind") for found in features]
    assert kinds == ["int64_list", "float_list", "bytes_list"]


def test_context_is_merged_below_the_example():
    body = {"context": {"a": 1, "b": 2}, "examples": [{"b": 3.0, "c": "x"}], "signature_name": "s"}
    request = parse_examples(json.dumps(body).encode())
    expected = tf.train.Example()
    expected.features.feature["a"].int64_list.value.append(1)
    expected.features.feature["b"].float_list.value.append(3.0)
    expected.features.feature["c"].bytes_list.value.append(b"x")
    assert request.signature_name == "s"
    assert tf.train.Example.FromString(request.examples[0]) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "document is empty"),
        (b"[]", "Is not object"),
        (b"{}", "key 'examples' is expected and was not found"),
        (b'{"examples": {}}', "Expecting 'examples' value to be an list/array"),
        (b'{"examples": []}', "'examples' value is an empty array"),
        (b'{"examples": [1]}', "Example must be JSON object but got JSON Number"),
        (b'{"examples": [[]]}', "Example must be JSON object but got JSON Array"),
        (b'{"context": null, "examples": [{}]}', "Example must be JSON object but got JSON Null"),
        (b'{"signature_name": 1, "examples": [{}]}', "'signature_name' key must be a string value"),
        (b'{"examples": [{"f": null}]}', "Feature: f has element with unexpected JSON type: Null"),
        (b'{"examples": [{"f": {"x": 1}}]}', "Feature: f has element with unexpected JSON type: Object"),
        (b'{"examples": [{"f": [[1]]}]}', "Feature: f has element with unexpected JSON type: Array"),
        (b'{"examples": [{"f": [10, 10.0]}]}', "Unexpected element type in feature: f expecting type: int64"),
        (b'{"examples": [{"f": [10.0, 10]}]}', "Unexpected element type in feature: f expecting type: float"),
        (b'{"examples": [{"f": ["a", 1]}]}', "Unexpected element type in feature: f expecting type: bytes"),
        (b'{"examples": [{"f": 9223372036854775808}]}', "has uint64_t element. Only int64_t is supported."),
        (b'{"examples": [{"f": {"b64": "?"}}]}', "Unable to base64 decode"),
        (b'{"examples": [{"f": "\\ud800"}]}', "surrogate pair in string is invalid"),
        (b'{"examples": [{"\xff": 1}]}', "Invalid encoding in string"),
        (b'{"examples": [{"f": 1' + b"0" * 400 + b"}]}", "Number too big"),
    ],
)
def test_bad_bodies(body, message):
    with pytest.raises(StatusError) as error:
        parse_examples(body)
    assert error.value.code.http_status == 400
    assert message in error.value.message


def test_answers_as_json():
    labels = np.array([["é".encode(), b'"'], [b"\xff", b""]], object)
    sent = encode_classes(labels, np.float32([[0.1, 9e6], [np.nan, 1]]))
    assert sent == b'{"results": [[["\xc3\xa9", 0.1], ["\\"", 9e+06]], [["\xff", NaN], ["", 1.0]]]}'
    assert encode_values(np.float32([0.1, -np.inf])) == b'{"results": [0.1, -Infinity]}'

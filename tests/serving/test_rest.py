"""TensorFlow Serving's REST contract in detail, and what this server adds, over HTTP against a running process."""

from __future__ import annotations

import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

PREDICT = "/v1/models/m:predict"


def error_of(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    return body["error"]


def predict(server, signature: str = "", **body) -> httpx.Response:
    named = {"signature_name": signature} if signature else {}
    return server.client.post(PREDICT, content=json.dumps({**named, **body}))


# --- paths and methods ----------------------------------------------------------------------------------------------


def test_paths_outside_the_contract_are_404_and_no_json(server):
    for path in ("/statuspage", "/", "/v1"):
        response = server.client.get(path)
        assert response.status_code == 404
        assert response.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/foo"),
        ("POST", "/v1/foo"),
        ("GET", "/v1/models/m:predict"),
        ("POST", "/v1/models/m"),
        ("POST", "/v1/models/m/metadata"),
        ("POST", "/v1/models/m:explain"),
        ("POST", "/v1/models/m:PREDICT"),
        ("POST", "/v1/models:predict"),
        ("GET", "/v1/models/m/versions/HELLO"),
        ("POST", "/v1/models/m/versions/HELLO:predict"),
        ("POST", "/v1/models/m/versions/-1:predict"),
        ("GET", "/v1/models/m/1"),
        ("GET", "/v1/models/m/"),
        ("POST", "/v1/models/m:predict?x=1"),
        ("GET", "/v1/models/../../etc/passwd"),
        ("PUT", "/v1/models/m"),
        ("DELETE", "/v1/models/m"),
        ("PUT", "/v1/models/m:predict"),
        ("PATCH", "/v1/models/m"),
    ],
)
def test_malformed_requests(server, method, path):
    # httpx would tidy the path first.
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(method, path, body=b"{}" if method in ("POST", "PUT") else None)
    response = connection.getresponse()
    assert response.status == 400
    assert json.loads(response.read()) == {"error": f"Malformed request: {method} {path}"}
    connection.close()


def test_no_model_name(server):
    response = server.client.get("/v1/models")
    assert response.status_code == 400
    assert "Missing model name" in error_of(response)


@pytest.mark.parametrize("version", [2**64 - 1, 2**63, 10**4000], ids=["64 bits", "one past", "4001 digits"])
def test_version_beyond_64_bits_is_400_without_a_body(server, version):
    for method, path in (
        ("GET", f"/v1/models/m/versions/{version}"),
        ("POST", f"/v1/models/m/versions/{version}:predict"),
    ):
        response = server.client.request(method, path, content=b"{}" if method == "POST" else None)
        assert (response.status_code, response.content) == (400, b"")


@pytest.mark.parametrize("name", ["nobody", "..%2F..%2Fetc", "m%00", "%E2%82%AC", "m%20"])
def test_unknown_model(server, name):
    response = server.client.post(f"/v1/models/{name}:predict", content=b'{"instances": [1.0]}')
    assert response.status_code == 404
    assert error_of(response).startswith("Servable not found for request: Latest(")
    assert server.client.get(f"/v1/models/{name}/metadata").status_code == 404
    status = server.client.get(f"/v1/models/{name}")
    assert status.status_code == 404
    assert "Could not find any versions of model" in error_of(status)


def test_names_are_percent_decoded_and_words_ignore_case(server):
    for path in ("/v1/models/%6d:predict", "/V1/Models/m:predict", "/v1/models/m/VERSIONS/1:predict"):
        assert server.client.post(path, content=b'{"instances": [1.0]}').json() == {"predictions": [2.5]}


def test_the_query_string_counts_as_path(server):
    response = server.client.get("/v1/models/m?verbose=1")
    assert response.status_code == 404
    assert "m?verbose=1" in error_of(response)


def test_unknown_version(server):
    response = server.client.post("/v1/models/m/versions/7:predict", content=b'{"instances": [1.0]}')
    assert response.status_code == 404
    assert error_of(response) == "Servable not found for request: Specific(m, 7)"
    response = server.client.get("/v1/models/m/versions/7")
    assert response.status_code == 404
    assert "Could not find version 7 of model m" in error_of(response)
    assert server.client.get("/v1/models/m/versions/7/metadata").status_code == 404


def test_unknown_label(server):
    response = server.client.post("/v1/models/m/labels/stable:predict", content=b'{"instances": [1.0]}')
    assert response.status_code == 400
    assert "Unrecognized servable version label" in error_of(response)
    # Status does not look at labels.
    assert server.client.get("/v1/models/m/labels/stable").json() == server.client.get("/v1/models/m").json()


# --- bodies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "document is empty"),
        (b" \n", "document is empty"),
        (b"instances = [1]", "Invalid value"),
        (b'{"instances": [1.0', "JSON Parse error"),
        (b'{"instances": [1.0,]}', "JSON Parse error"),
        (b"{'instances': [1.0]}", "Missing a name for object member"),
        (b"\xff\xfe\x00", "JSON Parse error"),
        (b'{"instances": ' + b"9" * 5000 + b"}", "Number too big"),
        (b"[" * 100_000, "Nested too deep"),
        (b"[1, 2]", "Is not object"),
        (b'"instances"', "Is not object"),
        (b"null", "Is not object"),
        (b'{"signature_name": 1, "instances": [1.0]}', "'signature_name' key must be a string value"),
        (b'{"signature_name": "nope", "instances": [1.0]}', '"nope" not found in signature def'),
        (b'{"instances": [1.0], "inputs": [1.0]}', "expecting only one of"),
        (b'{"signature_name": "two"}', "Missing 'inputs' or 'instances' key"),
        (b"{}", "Missing 'inputs' or 'instances' key"),
        (b'{"instances": 1.0}', "to be an list/array"),
        (b'{"instances": {"x": [1.0]}}', "to be an list/array"),
        (b'{"instances": []}', "No values in 'instances' array"),
        (b'{"instances": ["1.0"]}', "not of expected type: float"),
        (b'{"instances": [true]}', "Type: True is not of expected type: float"),
        (b'{"instances": [null]}', "Type: Null is not of expected type: float"),
        (b'{"instances": [{"b64": "aGk="}]}', "not of expected type: float"),
        (b'{"instances": [1.0, [2.0]]}', "Expecting shape [] but got: [1]"),
        (b'{"instances": [[1.0], [2.0, 3.0]]}', "Expecting tensor size: 1 but got: 2"),
        (b'{"signature_name": "matrix", "instances": [[1.0, 2.0], [3.0]]}', "Expecting tensor size: 2 but got: 1"),
        (b'{"signature_name": "anything", "inputs": [[1.0], 2.0]}', "found at incorrect level"),
        (b'{"signature_name": "anything", "inputs": [[1.0], [2.0, 3.0]]}', "unexpected size: 2 at level: 1"),
        (b'{"signature_name": "anything", "inputs": [1.0, [2.0]]}', "list at unexpected level: 1"),
        (b'{"signature_name": "matrix", "instances": [[1.0, 2.0, 3.0]]}', "Input x must have the shape [?,2]"),
        (b'{"signature_name": "count", "instances": [1.0]}', "JSON Value: 1.0 Type: Number"),
        (b'{"signature_name": "count", "instances": [9223372036854775808]}', "not of expected type: int64"),
        (b'{"signature_name": "count", "instances": [true]}', "not of expected type: int64"),
        (b'{"signature_name": "pick", "instances": [2147483648]}', "not of expected type: int32"),
        (b'{"signature_name": "text", "instances": [1]}', "not of expected type: string"),
        (b'{"signature_name": "text", "instances": [{"b64": "?"}]}', "Unable to base64 decode"),
        (b'{"signature_name": "text", "inputs": [{"b64": 1}]}', "not formatted correctly for base64 data"),
        (b'{"signature_name": "text", "instances": ["\\ud800"]}', "surrogate pair in string is invalid"),
        (b'{"signature_name": "half", "instances": [1.0]}', "to type: half"),
        (b'{"signature_name": "to_half", "instances": [1.0]}', "Failed to write JSON value for tensor type: half"),
        (b'{"signature_name": "mixed", "instances": [1.0]}', "instances is a plain list"),
        (b'{"signature_name": "mixed", "inputs": [1.0]}', "inputs is a plain value/list"),
        (b'{"instances": [{"x": 1.0}, 2.0]}', "Expecting object but got list at item 1"),
        (b'{"instances": [2.0, {"x": 1.0}]}', "Expecting value/list but got object at item 1"),
        (
            b'{"instances": [{"x": 1.0}, {}]}',
            "element: 1 of 'instances' list. JSON object: {} keys must be equal to: x",
        ),
        (b'{"instances": [{"x": 1.0, "z": 2.0}]}', "does not have named input: z"),
        (b'{"inputs": {"z": [1.0]}}', "Missing named input: x"),
        (b'{"signature_name": "pick", "instances": [3]}', "is not in [0, 3)"),
        (b'{"signature_name": "scalar", "instances": [1.0]}', "has no shape information"),
        (b'{"signature_name": "uneven", "instances": [1.0, 2.0]}', "inconsistent batch size"),
        (b'{"signature_name": "__saved_model_init_op", "instances": [1.0]}', "signature"),
    ],
)
def test_bad_bodies_are_400(server, body, message):
    response = server.client.post(PREDICT, content=body)
    assert response.status_code == 400
    assert message in error_of(response)


def test_the_message_of_a_missing_or_extra_key_names_all_keys(server):
    row = {"age": 1.0, "price": 1.0, "city": "a", "clicks": 1, "member": True, "level": 1}
    response = predict(server, "mixed", instances=[row])
    assert response.status_code == 400
    assert "keys must be equal to: age,city,clicks,country,level,member,price" in error_of(response)


def test_half_precision_input_is_unimplemented_in_columns(server):
    response = predict(server, "half", inputs=[1.0])
    assert response.status_code == 501


def test_json_is_judged_before_the_model_and_the_model_before_tensors(server):
    assert server.client.post("/v1/models/nobody:predict", content=b"{").status_code == 400
    assert server.client.post("/v1/models/nobody:predict", content=b'{"signature_name": 1}').status_code == 400
    assert server.client.post("/v1/models/nobody:predict", content=b'{"instances": "x"}').status_code == 404


def test_error_messages_of_huge_bodies_are_short(server):
    response = server.client.post(PREDICT, content=json.dumps([{"x": "y" * 100}] * 10_000))
    assert response.status_code == 400
    assert len(response.content) < 1000


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signature", "sent", "answer"),
    [
        ("", {"instances": [1.0, 2.0]}, {"predictions": [2.5, 3.0]}),
        ("", {"instances": [{"x": 1.0}, {"x": 2.0}]}, {"predictions": [2.5, 3.0]}),
        ("", {"inputs": [1.0, 2.0]}, {"outputs": [2.5, 3.0]}),
        ("", {"inputs": {"x": [1.0, 2.0]}}, {"outputs": [2.5, 3.0]}),
        ("", {"inputs": {"x": [1.0], "ignored": "column"}}, {"outputs": [2.5]}),
        ("", {"inputs": []}, {"outputs": []}),
        ("", {"instances": [1, -2]}, {"predictions": [2.5, 1.0]}),
        ("serving_default", {"instances": [1.0]}, {"predictions": [2.5]}),
        ("matrix", {"instances": [[1, 2], [3, 4.5]]}, {"predictions": [[2.0, 4.0], [6.0, 9.0]]}),
        ("matrix", {"instances": [{"x": [1, 2]}]}, {"predictions": [[2.0, 4.0]]}),
        ("anything", {"inputs": 3}, {"outputs": 3.0}),
        ("anything", {"inputs": [[[1], [2]]]}, {"outputs": [[[1.0], [2.0]]]}),
        ("two", {"instances": [1.5]}, {"predictions": [{"twice": 3.0, "whole": 1}]}),
        ("two", {"inputs": [1.5]}, {"outputs": {"twice": [3.0], "whole": [1]}}),
        ("scalar", {"inputs": [1.5, 2.5]}, {"outputs": 4.0}),
        ("none_left", {"instances": [1.0]}, {"predictions": []}),
        ("none_left", {"inputs": [1.0]}, {"outputs": []}),
        ("count", {"instances": [2**63 - 1, -(2**63)]}, {"predictions": [2**63 - 1, -(2**63)]}),
        (
            "text",
            {"instances": ["", "é\u20ac\U0001f600", '"\\\n']},
            {"predictions": ["", "é\u20ac\U0001f600", '"\\\n']},
        ),
        ("text", {"instances": [{"b64": "aGk="}, "hi"]}, {"predictions": ["hi", "hi"]}),
        ("binary", {"inputs": [{"b64": "/wA="}]}, {"outputs": [{"b64": "/wA="}]}),
        ("binary", {"instances": [{"b64": "/wA"}]}, {"predictions": [{"b64": "/wA="}]}),
        ("binary", {"inputs": {"s": [{"b64": "/wA="}]}}, {"outputs": [{"b64": "/wA="}]}),
        ("pick", {"instances": [2, 0]}, {"predictions": [30.0, 10.0]}),
    ],
)
def test_answers(server, signature, sent, answer):
    response = predict(server, signature, **sent)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json() == answer


def test_rows_and_columns_of_seven_inputs_agree(server):
    rows = [
        {"age": 1, "price": 0.5, "city": "Rome", "country": "IT", "clicks": 3, "member": True, "level": 2},
        {"age": 2.5, "price": 1, "city": "", "country": "x", "clicks": -1, "member": False, "level": 0},
    ]
    expected = [{"total": 1 + 5 + 300 + 2000.0, "place": "Rome, IT"}, {"total": -(2.5 + 10 - 100.0), "place": ", x"}]
    assert predict(server, "mixed", instances=rows).json() == {"predictions": expected}
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    outputs = predict(server, "mixed", inputs=columns).json()["outputs"]
    assert outputs == {name: [row[name] for row in expected] for name in ("total", "place")}


def test_inputs_of_different_length_are_the_callers_mistake(server):
    columns = {"age": [1.0], "price": [1.0, 2.0], "city": ["a"], "country": ["b"], "clicks": [1], "member": [True]}
    response = predict(server, "mixed", inputs={**columns, "level": [1]})
    # TensorFlow broadcasts a single value, so only sizes that cannot be matched fail.
    assert response.status_code == 200
    response = predict(server, "mixed", inputs={**columns, "level": [1, 2, 3]})
    assert response.status_code == 400


def test_tokens_for_values_json_has_not(server):
    response = server.client.post(PREDICT, content=b'{"instances": [NaN, Infinity, -Infinity, 1e39, -1e39]}')
    assert response.status_code == 200
    assert response.text == '{"predictions": [NaN, Infinity, -Infinity, Infinity, -Infinity]}'


def test_float_format(server):
    sent = b'{"signature_name": "anything", "inputs": [9000000, 1, 0.1, 0.33333334, 1e-5, 16777217, -0.0, 123456789]}'
    response = server.client.post(PREDICT, content=sent)
    assert response.text == '{"outputs": [9e+06, 1.0, 0.1, 0.333333343, 1e-05, 16777216.0, -0.0, 123456792.0]}'


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances": [1.0]} trailing',
        b'{"instances": [1.0]}}}}\xff\xfe',
        b'\xef\xbb\xbf {"instances": [1.0]}',
        b'{"instances": [1.0], "unknown": {"a": [null]}}',
        b'{"instances": [1.0], "instances": [7.0]}',
        b'{"inputs": {"x": [1.0], "x": [7.0]}}',
        b'{"instances": [{"x": 1.0, "x": 7.0}]}',
    ],
    ids=["text", "bytes", "byte order mark", "extra key", "twice", "column twice", "row key twice"],
)
def test_lenient_json(server, body):
    response = server.client.post(PREDICT, content=body)
    assert response.status_code == 200
    assert 2.5 in next(iter(response.json().values()))


def test_bytes_that_are_no_utf8_reach_the_model_and_come_back(server):
    response = server.client.post(PREDICT, content=b'{"signature_name": "binary", "instances": ["\xff\xfea"]}')
    assert response.json() == {"predictions": [{"b64": "//5h"}]}
    response = server.client.post(PREDICT, content=b'{"signature_name": "text", "instances": ["\xff"]}')
    assert response.content == b'{"predictions": ["\xff"]}'


def test_specific_version(server):
    response = server.client.post("/v1/models/m/versions/1:predict", content=b'{"instances": [1.0]}')
    assert response.json() == {"predictions": [2.5]}
    assert server.client.post("/v1/models/m/versions/00000001:predict", content=b'{"instances": [1.0]}').is_success


# --- status and metadata --------------------------------------------------------------------------------------------


def test_status(server):
    available = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("/v1/models/m", "/v1/models/m/versions/1"):
        assert server.client.get(path).json() == {"model_version_status": [available]}


def test_metadata(server):
    for path in ("/v1/models/m/metadata", "/v1/models/m/versions/1/metadata"):
        answer = server.client.get(path).json()
        assert answer["model_spec"] == {"name": "m", "signature_name": "", "version": "1"}
        signatures = answer["metadata"]["signature_def"]["signature_def"]
        assert {"serving_default", "mixed", "two"} <= set(signatures)
        default = signatures["serving_default"]
        assert default["method_name"] == "tensorflow/serving/predict"
        assert default["inputs"]["x"]["dtype"] == "DT_FLOAT"
        shape = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
        assert default["inputs"]["x"]["tensor_shape"] == shape
        assert list(default["outputs"]) == ["y"]
        assert signatures["matrix"]["inputs"]["x"]["tensor_shape"]["dim"][1]["size"] == "2"


def test_health(server):
    assert server.client.get("/healthz").json() == {"status": "ok", "models": {"m": "1"}}


# --- the transport --------------------------------------------------------------------------------------------------


def test_a_body_of_64_megabytes_is_413(server):
    response = server.client.post(PREDICT, content=b" " * 64_000_000)
    assert response.status_code == 413
    assert "at most 63999999 bytes" in error_of(response)


def test_a_large_body_is_answered(server):
    values = np.arange(200_000, dtype=np.float32)
    response = predict(server, instances=values.tolist())
    np.testing.assert_array_equal(response.json()["predictions"], values * 0.5 + 2)


def test_a_long_prediction_does_not_hold_up_others(server):
    done = threading.Event()

    def ask_slow() -> int:
        status = predict(server, "slow", instances=[300_000]).status_code
        done.set()
        return status

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask_slow)
        answered = 0
        while not done.is_set():
            assert predict(server, instances=[1.0]).status_code == 200
            answered += 1
        assert slow.result() == 200
    assert answered > 3


def test_concurrent_clients_each_get_their_own_answer(server):
    def ask(client: int) -> bool:
        sent = [float(client), client + 0.25]
        return predict(server, instances=sent).json() == {"predictions": [value * 0.5 + 2 for value in sent]}

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(300)))

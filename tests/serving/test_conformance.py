"""TensorFlow Serving's behaviour, case by case, against a running server: ours, or any other that holds the fixtures.

The numbers are those of the list of cases in docs/serving.md. `make serve-check URL=http://host:8501 GRPC=host:8500`
asks another server, which serves what `make serve-fixtures` wrote; what needs a server of its own is left out there.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from tests.serving.conftest import ROOT, Server
from tests.serving.fixtures import config_text, write_fixtures

PREDICT = "/v1/models/m:predict"
METRICS = "/monitoring/prometheus/metrics"


@dataclasses.dataclass(frozen=True)
class Target:
    """The server that is asked."""

    client: httpx.Client
    grpc_address: str | None

    def send(self, method: str, path: str, body: bytes | None = None) -> httpx.Response:
        return self.client.request(method, path, content=body)


@pytest.fixture(scope="module")
def target(other_server, forks, tmp_path_factory) -> Iterator[Target]:
    if other_server is not None:
        with httpx.Client(base_url=other_server.url, timeout=60) as client:
            yield Target(client, other_server.grpc_address)
        return
    base = tmp_path_factory.mktemp("fixtures") / "models"
    write_fixtures(base, base)
    monitoring = base.with_name("monitoring.config")
    monitoring.write_text("prometheus_config { enable: true }", encoding="utf-8")
    flags = (
        *("--model_config_file", str(base / "models.config"), "--allow_version_labels_for_unavailable_models"),
        *("--monitoring_config_file", str(monitoring)),
    )
    server = Server(forks, None, base.with_name("log.txt"), *flags)
    yield Target(server.client, server.grpc_address)
    server.close()


def skip_if_batched(number: int, response: httpx.Response) -> None:
    """Skip the two cases that a server with --enable_batching refuses: their outputs do not have the inputs' rows."""
    if number in (40, 42) and "Batched output tensor" in response.text:
        assert response.status_code == 400
        pytest.skip("the server gathers requests into batches, which these outputs cannot be cut from")


def named(cases: list[Any]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[f"case {case.number}: {case.words}" for case in cases])


@dataclasses.dataclass(frozen=True)
class Refused:
    """A request that is refused with a status and a message that holds some words."""

    number: int
    words: str
    method: str
    path: str
    body: bytes | None = None
    status: int = 400
    message: str = ""


def refused_body(number: int, words: str, body: bytes, message: str, status: int = 400) -> Refused:
    return Refused(number, words, "POST", PREDICT, body, status, message)


ROW = b'{"instances": [1.0]}'


@named(
    [
        Refused(2, "a path of no model, read", "GET", "/v1/foo", message="Malformed request: GET /v1/foo"),
        Refused(2, "a path of no model, written", "POST", "/v1/foo", b"{}", message="Malformed request: POST /v1/foo"),
        Refused(3, "no model name", "GET", "/v1/models", message="Missing model name"),
        Refused(4, "predict read", "GET", PREDICT, message="Malformed request"),
        Refused(5, "metadata written", "POST", "/v1/models/m/metadata", b"{}", message="Malformed request"),
        Refused(6, "a version in letters, read", "GET", "/v1/models/m/versions/HELLO", message="Malformed request"),
        Refused(6, "a version in letters, asked", "POST", "/v1/models/m/versions/HELLO:predict", ROW),
        Refused(9, "a verb in capitals", "POST", "/v1/models/m:PREDICT", ROW, message="Malformed request"),
        Refused(10, "put", "PUT", PREDICT, ROW, message="Malformed request"),
        Refused(10, "delete", "DELETE", "/v1/models/m", message="Malformed request"),
        Refused(
            11, "unknown model", "POST", "/v1/models/nobody:predict", ROW, 404, "not found for request: Latest(nobody)"
        ),
        Refused(12, "unknown version", "POST", "/v1/models/m/versions/7:predict", ROW, 404, "Specific(m, 7)"),
        Refused(
            13,
            "unknown label",
            "POST",
            "/v1/models/m/labels/x:predict",
            ROW,
            400,
            "Unrecognized servable version label",
        ),
        refused_body(14, "an empty body", b"", "document is empty"),
        refused_body(15, "no JSON", b"instances = [1]", "Invalid value"),
        refused_body(16, "a list for the document", b"[1, 2]", "Is not object"),
        refused_body(19, "a number for signature_name", b'{"signature_name": 1, "instances": [1.0]}', "signature_name"),
        refused_body(20, "unknown signature", b'{"signature_name": "nope", "instances": [1.0]}', "not found"),
        refused_body(21, "both keys", b'{"instances": [1.0], "inputs": [1.0]}', "expecting only one of"),
        refused_body(22, "neither key", b"{}", "Missing 'inputs' or 'instances' key"),
        refused_body(23, "instances of no list", b'{"instances": 1.0}', "Expecting 'instances' to be an list/array"),
        refused_body(
            25,
            "ragged rows",
            b'{"signature_name": "matrix", "instances": [[1.0, 2.0], [3.0]]}',
            "Expecting tensor size: 2 but got: 1",
        ),
        refused_body(27, "a string for a float", b'{"instances": ["1.0"]}', "not of expected type: float"),
        refused_body(
            28,
            "a plain list for several inputs",
            b'{"signature_name": "mixed", "instances": [1.0]}',
            "instances is a plain list",
        ),
        refused_body(
            29,
            "an object, then a value",
            b'{"instances": [{"x": 1.0}, 2.0]}',
            "Expecting object but got list at item 1",
        ),
        refused_body(31, "a row without a key", b'{"instances": [{"x": 1.0}, {}]}', "keys must be equal to"),
        refused_body(32, "a row with a key too many", b'{"instances": [{"x": 1.0, "z": 2.0}]}', "z"),
        refused_body(33, "a column missing", b'{"inputs": {"z": [1.0]}}', "Missing named input"),
        refused_body(
            35, "beyond int64", b'{"signature_name": "count", "instances": [9223372036854775808]}', "of expected type"
        ),
        refused_body(
            42, "rows of a scalar", b'{"signature_name": "scalar", "instances": [1.0]}', "no shape information"
        ),
        Refused(
            46, "status of an unknown model", "GET", "/v1/models/nobody", None, 404, "any versions of model nobody"
        ),
        Refused(
            46, "status of an unknown version", "GET", "/v1/models/m/versions/7", None, 404, "version 7 of model m"
        ),
        Refused(
            49,
            "an example of 10 and 10.0",
            "POST",
            "/v1/models/m:regress",
            b'{"signature_name": "regress", "examples": [{"x": [10, 10.0]}]}',
            400,
            "Unexpected element type in feature: x expecting type: int64",
        ),
    ]
)
def test_refused(target, case):
    response = target.send(case.method, case.path, case.body)
    skip_if_batched(case.number, response)
    assert response.status_code == case.status
    assert response.headers["content-type"].startswith("application/json")
    found = response.json()
    assert list(found) == ["error"]
    assert case.message in found["error"]


@dataclasses.dataclass(frozen=True)
class Answered:
    """A body and the JSON that answers it."""

    number: int
    words: str
    body: bytes
    answer: dict[str, Any]
    verb: str = "predict"


@named(
    [
        Answered(17, "bytes after the document", ROW + b" trailing", {"predictions": [2.5]}),
        Answered(34, "a column too many", b'{"inputs": {"x": [1.0], "z": "?"}}', {"outputs": [2.5]}),
        Answered(37, "rows", b'{"instances": [1.0, 2.0]}', {"predictions": [2.5, 3.0]}),
        Answered(38, "columns", b'{"inputs": {"x": [1.0, 2.0]}}', {"outputs": [2.5, 3.0]}),
        Answered(
            39,
            "two outputs in rows",
            b'{"signature_name": "two", "instances": [1.5]}',
            {"predictions": [{"twice": 3.0, "whole": 1}]},
        ),
        Answered(
            39,
            "two outputs in columns",
            b'{"signature_name": "two", "inputs": [1.5]}',
            {"outputs": {"twice": [3.0], "whole": [1]}},
        ),
        Answered(40, "no row left", b'{"signature_name": "none_left", "instances": [1.0]}', {"predictions": []}),
        Answered(
            48,
            "classify",
            b'{"signature_name": "classify_scores", "examples": [{"x": 20.0}]}',
            {"results": [[["", 12.0]]]},
            "classify",
        ),
        Answered(
            48,
            "regress",
            b'{"signature_name": "regress", "context": {"bias": 1.0}, "examples": [{"x": 1.0}]}',
            {"results": [3.5]},
            "regress",
        ),
    ]
)
def test_answered(target, case):
    response = target.send("POST", f"/v1/models/m:{case.verb}", case.body)
    skip_if_batched(case.number, response)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/json")
    assert response.json() == case.answer


def test_case_1_paths_outside_the_api_are_404_and_no_json(target):
    response = target.send("GET", "/statuspage")
    assert response.status_code == 404
    assert not response.text.lstrip().startswith("{")


def test_case_7_a_version_beyond_64_bits_is_400_without_a_body(target):
    response = target.send("GET", f"/v1/models/m/versions/{2**64 - 1}")
    assert (response.status_code, response.content) == (400, b"")


def test_case_43_what_json_has_not_comes_as_bare_tokens(target):
    response = target.send("POST", PREDICT, b'{"instances": [NaN, Infinity, -Infinity, 1e39]}')
    first, *others = response.json()["predictions"]
    assert math.isnan(first)
    assert others == [math.inf, -math.inf, math.inf]
    assert '"NaN"' not in response.text


def test_case_44_floats_in_six_digits(target):
    response = target.send("POST", PREDICT, b'{"signature_name": "anything", "inputs": [9000000, 1, 0.1]}')
    assert "".join(response.text.split()) == '{"outputs":[9e+06,1.0,0.1]}'


def test_case_45_status(target):
    available = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("/v1/models/m", "/v1/models/m/versions/1", "/v1/models/m/labels/none"):
        assert target.send("GET", path).json() == {"model_version_status": [available]}


def test_case_47_metadata(target):
    answer = target.send("GET", "/v1/models/m/metadata").json()
    assert answer["model_spec"] == {"name": "m", "signature_name": "", "version": "1"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert signatures["serving_default"]["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert signatures["serving_default"]["method_name"] == "tensorflow/serving/predict"
    assert signatures["classify"]["method_name"] == "tensorflow/serving/classify"


def test_case_50_metrics(target):
    response = target.send("GET", METRICS)
    if response.status_code == 404:
        pytest.skip("metrics are off: the server runs without --monitoring_config_file")
    assert response.status_code == 200
    assert "# TYPE" in response.text


def test_versions_and_labels(target):
    """Several versions at a time, by number and by label; the latest where none is named."""
    for path, answer in (
        ("", 100.0),
        ("/versions/1", 2.0),
        ("/versions/2", 100.0),
        ("/versions/0000001", 2.0),
        ("/labels/stable", 2.0),
        ("/labels/canary", 100.0),
    ):
        response = target.send("POST", f"/v1/models/versions{path}:predict", b'{"instances": [0.0]}')
        assert response.json() == {"predictions": [answer]}, path
    statuses = target.send("GET", "/v1/models/versions").json()["model_version_status"]
    assert [(one["version"], one["state"]) for one in statuses] == [("2", "AVAILABLE"), ("1", "AVAILABLE")]


def test_what_is_judged_first(target):
    """The JSON before the model, the model before the tensors."""
    for body, status in ((b"{", 400), (b'{"signature_name": 1}', 400), (b'{"instances": "x"}', 404)):
        assert target.send("POST", "/v1/models/nobody:predict", body).status_code == status


# --- gRPC -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def channel(target):
    import grpc

    if target.grpc_address is None:
        pytest.skip("no gRPC address was given: make serve-check ... GRPC=host:8500")
    with grpc.insecure_channel(target.grpc_address) as channel:
        yield channel


def grpc_predict(channel, signature: str = "", model: str = "m", label: str = "", only: tuple[str, ...] = ()) -> Any:
    request = predict_pb2.PredictRequest(output_filter=only)
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if label:
        request.model_spec.version_label = label
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.5], tf.float32))
    return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)


def refused_with(channel, **request: Any) -> str:
    import grpc

    with pytest.raises(grpc.RpcError) as error:
        grpc_predict(channel, **request)
    return error.value.code().name


def test_case_20_an_unknown_signature_is_a_failed_precondition_over_grpc(channel):
    assert refused_with(channel, signature="nope") == "FAILED_PRECONDITION"


def test_case_51_output_filter_over_grpc(channel):
    for only in (("twice", "twice"), ("nope",)):
        assert refused_with(channel, signature="two", only=only) == "INVALID_ARGUMENT"
    assert list(grpc_predict(channel, "two", only=("whole",)).outputs) == ["whole"]


def test_the_codes_of_what_is_not_there_over_grpc(channel):
    assert refused_with(channel, model="nobody") == "NOT_FOUND"
    assert refused_with(channel, label="nope") == "INVALID_ARGUMENT"


def test_answers_over_grpc(channel):
    response = grpc_predict(channel)
    assert (response.model_spec.signature_name, response.model_spec.version.value) == ("serving_default", 1)
    assert list(response.outputs["y"].float_val) == [2.75]
    assert grpc_predict(channel, model="versions", label="stable").model_spec.version.value == 1
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "versions"
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    found = stub.GetModelStatus(request, timeout=60).model_version_status
    assert [one.version for one in found] == [2, 1]


# --- what needs a server of its own ---------------------------------------------------------------------------------


def test_case_52_recorded_requests_that_cannot_be_replayed_are_a_load_error(model_path, tmp_path, start_server):
    names = {"many": "INVALID_ARGUMENT", "text": "DATA_LOSS", "unparsable": "INVALID_ARGUMENT", "sound": "OK"}
    for name in names:
        shutil.copytree(model_path, tmp_path / name / "1")
    file = Path("1", "assets.extra", "tf_serving_warmup_requests")
    (tmp_path / "text" / file).write_bytes(b"these are no records" * 10)
    for name, record, count in (
        ("many", prediction_log_pb2.PredictionLog().SerializeToString(), 1001),
        ("unparsable", b"\xff\xff\xff", 1),
    ):
        with tf.io.TFRecordWriter(str(tmp_path / name / file)) as writer:
            for _ in range(count):
                writer.write(record)
    config = tmp_path / "models.config"
    config.write_text(config_text({name: "" for name in names}, tmp_path))
    server = start_server(None, "--model_config_file", str(config))
    for name, code in names.items():
        (shown,) = server.client.get(f"/v1/models/{name}").json()["model_version_status"]
        state = "AVAILABLE" if code == "OK" else "END"
        assert (shown["state"], shown["status"]["error_code"]) == (state, code), name
    assert json.loads(server.client.get("/v1/models/sound/metadata").content)["model_spec"]["version"] == "1"


def test_every_case_of_the_list_is_asked():
    table = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| (\d+)\*? \|", table, re.MULTILINE))
    here = Path(__file__).read_text(encoding="utf-8")
    in_tables = set(re.findall(r"(?:Refused|Answered|refused_body)\(\s*(\d+),", here))
    assert listed == in_tables | set(re.findall(r"^def test_case_(\d+)_", here, re.MULTILINE))
    assert len(listed) > 40

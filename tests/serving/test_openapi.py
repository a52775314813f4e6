"""The OpenAPI document: sound by its own rules, true of the server, and readable."""

from __future__ import annotations

import contextlib
import json
import re

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)


@pytest.fixture(scope="module")
def document(server) -> dict:
    return server.client.get("/openapi.json").json()


def test_the_server_keeps_to_its_document(document, server):
    """Requests made up from the document, good and bad ones, to every path."""
    schema = schemathesis.openapi.from_dict(document)
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    asked = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in GenerationMode:
            try:
                strategy = operation.as_strategy(generation_mode=mode)
            except Unsatisfiable:
                continue

            @settings(max_examples=10, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(case=strategy)
            def ask(case):
                asked.add(case.operation.label)
                response = case.call(base_url=server.url)
                if response.content:
                    case.validate_response(response, checks=checks)
                else:  # as TensorFlow Serving answers a version that is no 64-bit number
                    assert (response.status_code, "version" in case.path_parameters) == (400, True)

            with contextlib.suppress(Unsatisfiable):
                ask()
    verbs = ("get", "post")
    paths = {f"{verb.upper()} {path}" for path, found in document["paths"].items() for verb in verbs if verb in found}
    assert "POST /v1/models/m:predict" in asked
    assert asked == paths


def body_schema(document: dict) -> dict:
    return document["paths"]["/v1/models/m:predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]


@pytest.mark.parametrize(
    "body",
    [
        {"instances": [1.0, 2]},
        {"inputs": [1.0]},
        {"signature_name": "matrix", "instances": [[1, 2], [3, 4]]},
        {"signature_name": "text", "instances": ["a", {"b64": "aGkh"}]},
        {
            "signature_name": "mixed",
            "instances": [{"age": 1, "price": 2, "city": "a", "country": "b", "clicks": 3, "member": True, "level": 4}],
        },
    ],
)
def test_bodies_it_allows_are_answered(document, server, body):
    jsonschema.validate(body, body_schema(document))
    assert server.client.post("/v1/models/m:predict", json=body).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"instances": []},
        {"instances": [True]},
        {"instances": [1.0], "inputs": [1.0]},
        {"signature_name": "matrix", "instances": [[1, 2, 3]]},
        {"signature_name": "nope", "instances": [1.0]},
        {"signature_name": "count", "instances": [2**63]},
        {"signature_name": "mixed", "instances": [{"age": 1}]},
    ],
)
def test_bodies_it_forbids_are_refused(document, server, body):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(body, body_schema(document))
    assert server.client.post("/v1/models/m:predict", json=body).status_code == 400


def test_the_page_shows_every_path_and_needs_nothing_from_elsewhere(document, server):
    page = server.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    for path in document["paths"]:
        assert path in page.text
    assert not re.search(r"(src|href)=.?(https?:)?//", page.text)
    assert "<script" not in page.text


def test_a_name_cannot_write_html(model_path, start_server):
    server = start_server(model_path.parent, "--model_name", "<b>&x")
    assert "<b>" not in server.client.get("/docs").text
    paths = json.loads(server.client.get("/openapi.json").text)["paths"]
    assert "/v1/models/%3Cb%3E%26x:predict" in paths
    assert server.client.post("/v1/models/%3Cb%3E%26x:predict", json={"instances": [2.0]}).status_code == 200

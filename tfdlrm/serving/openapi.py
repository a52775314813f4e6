"""The REST contract of the models at hand as an OpenAPI document, and as a page to read."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from tfdlrm import __version__
from tfdlrm.serving.codec import DEFAULT_SIGNATURE, TensorInfo
from tfdlrm.serving.errors import StatusError
from tfdlrm.serving.servable import Servable
from tfdlrm.serving.store import ModelStore
from tfdlrm.serving.tensors import DTYPES

_Json = dict[str, Any]
_EXAMPLES = "examples of tf.train.Example: a name and a number, a string, or a list of one kind"
_ERRORS = {
    "400": "the request cannot be answered as it is",
    "401": "a bearer token is needed",
    "404": "no such model or version",
    "408": "the body came too slowly",
    "413": "the body is too large",
    "429": "an op of the model ran out of a resource",
    "500": "a fault of the model or the server",
    "501": "a type JSON cannot carry, or a method that is not offered",
    "503": "the queue is full, or the server is ending",
    "504": "not answered in time",
}
_BYTES = {
    "type": "object",
    "properties": {"b64": {"type": "string", "contentEncoding": "base64", "pattern": "^([A-Za-z0-9+/]{4})*$"}},
    "required": ["b64"],
    "additionalProperties": False,
}


def describe(models: Mapping[str, ModelStore]) -> _Json:
    """Return the OpenAPI document of what is being served.

    Args:
        models: The started stores by model name; those without a version to serve are left out.
    """
    paths: _Json = {"/healthz": {"get": _operation("Whether every model can be asked", {"type": "object"}, ["503"])}}
    for name, store in models.items():
        try:
            servable = store.servable()
        except StatusError:
            continue
        paths.update(_model_paths(name, servable))
    return {
        "openapi": "3.1.0",
        "info": {"title": "tfdlrm serving", "version": __version__, "description": "TensorFlow Serving's REST API"},
        "paths": paths,
        "components": {
            "schemas": {
                "Error": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]},
                "Status": {
                    "type": "object",
                    "properties": {"model_version_status": {"type": "array", "items": {"type": "object"}}},
                    "required": ["model_version_status"],
                },
            }
        },
    }


def page(document: _Json) -> str:
    """Return the document as HTML that needs nothing from elsewhere."""
    title = html.escape(document["info"]["title"])
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><h1>{title}</h1>"]
    parts.append('<p><a href="openapi.json">openapi.json</a></p>')
    for path, methods in document["paths"].items():
        for method in sorted(methods.keys() & {"get", "post"}):
            operation = methods[method]
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{html.escape(operation['summary'])}</p>")
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                parts.append(f"<details><summary>body</summary><pre>{_pretty(schema)}</pre></details>")
            parts.append(f"<details><summary>answers</summary><pre>{_pretty(operation['responses'])}</pre></details>")
    return "\n".join(parts)


def _pretty(value: Any) -> str:
    return html.escape(json.dumps(value, indent=1))


def _model_paths(name: str, servable: Servable) -> _Json:
    model = f"/v1/models/{quote(name, safe='')}"
    version = {
        "name": "version",
        "in": "path",
        "required": True,
        "schema": {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
    }
    status = {"$ref": "#/components/schemas/Status"}
    paths: _Json = {
        model: {"get": _operation(f"The versions of {name}", status)},
        f"{model}/versions/{{version}}": {"get": _operation(f"A version of {name}", status), "parameters": [version]},
        f"{model}/metadata": {"get": _operation(f"The signatures of {name}", {"type": "object"})},
    }
    for verb, body, answer in _verbs(servable):
        operation = _operation(f"{verb} with {name}", answer)
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
        paths[f"{model}:{verb}"] = {"post": operation}
        paths[f"{model}/versions/{{version}}:{verb}"] = {"post": operation, "parameters": [version]}
    return {path: _without_twins(methods) for path, methods in paths.items()}


def _without_twins(methods: _Json) -> _Json:
    """Return a path's methods with objects of their own, as tools change what they read."""
    copy: _Json = json.loads(json.dumps(methods))
    return copy


def _verbs(servable: Servable) -> list[tuple[str, _Json, _Json]]:
    """Return verb, body and answer for each verb the version offers."""
    found: list[tuple[str, _Json, _Json]] = []
    methods: dict[str, list[str]] = {"predict": list(servable.signatures)}
    for name, definition in servable.metadata.items():
        verb = str(definition.get("method_name", "")).rpartition("/")[2]
        if verb in ("classify", "regress") and name in servable.signatures:
            methods.setdefault(verb, []).append(name)
    bodies = [_predict_body(name, servable.signatures[name].inputs) for name in methods["predict"]]
    answer: _Json = {
        "type": "object",
        "oneOf": [{"required": ["predictions"]}, {"required": ["outputs"]}],
        "properties": {"predictions": {"type": "array"}, "outputs": {}},
    }
    found.append(("predict", {"oneOf": [body for body in bodies if body is not None]}, answer))
    for verb in ("classify", "regress"):
        if verb in methods:
            results = {"type": "object", "properties": {"results": {"type": "array"}}, "required": ["results"]}
            found.append((verb, _examples_body(methods[verb]), results))
    return found


def _operation(summary: str, answer: _Json, errors: list[str] | None = None) -> _Json:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: _Json = {"200": {"description": "the answer", "content": {"application/json": {"schema": answer}}}}
    for status in errors if errors is not None else _ERRORS:
        content = error if errors is None else {"application/json": {"schema": answer}}
        responses[status] = {"description": _ERRORS[status], "content": content}
    return {"summary": summary, "responses": responses}


def _predict_body(name: str, inputs: Mapping[str, TensorInfo]) -> _Json | None:
    """Return the schema of a predict body for one signature; None where JSON cannot carry its inputs."""
    if not inputs or any(info.dtype not in DTYPES for info in inputs.values()):
        return None
    chosen: _Json = {"type": "object", "properties": {"signature_name": {"const": name}}}
    if name != DEFAULT_SIGNATURE:
        chosen["required"] = ["signature_name"]

    def members(schemas: _Json) -> _Json:
        return {"type": "object", "properties": schemas, "required": sorted(schemas), "additionalProperties": False}

    rows = {key: _tensor(info, info.shape[1:] if info.shape is not None else None) for key, info in inputs.items()}
    columns = {key: _tensor(info, info.shape) for key, info in inputs.items()}
    row = members(rows) if len(rows) > 1 else next(iter(rows.values()))
    column = members(columns) if len(columns) > 1 else next(iter(columns.values()))
    return {
        "allOf": [chosen],
        "oneOf": [
            {"properties": {"instances": {"type": "array", "minItems": 1, "items": row}}, "required": ["instances"]},
            {"properties": {"inputs": column}, "required": ["inputs"]},
        ],
    }


def _examples_body(names: list[str]) -> _Json:
    scalar: list[_Json] = [{"type": "number"}, {"type": "string"}, _BYTES]
    feature = {"anyOf": [*scalar, {"type": "array", "items": {"anyOf": scalar}}]}
    example = {"type": "object", "additionalProperties": feature}
    return {
        "type": "object",
        "description": _EXAMPLES,
        "properties": {
            "signature_name": {"enum": names},
            "context": example,
            "examples": {"type": "array", "minItems": 1, "items": example},
        },
        "required": ["examples", *([] if DEFAULT_SIGNATURE in names else ["signature_name"])],
    }


def _tensor(info: TensorInfo, shape: tuple[int | None, ...] | None) -> _Json:
    leaf = _leaf(info.dtype)
    if shape is None:  # any rank
        return {"anyOf": [leaf, {"type": "array", "items": leaf}]}
    for size in reversed(shape):
        leaf = {"type": "array", "items": leaf} | ({} if size is None else {"minItems": size, "maxItems": size})
    return leaf


def _leaf(dtype: str) -> _Json:
    if dtype == "string":
        return {"anyOf": [{"type": "string"}, _BYTES]}
    if dtype == "bool":
        return {"type": "boolean"}
    if dtype in ("float", "double"):
        return {"type": "number"}
    bounds = np.iinfo(DTYPES[dtype])
    return {"type": "integer", "minimum": int(bounds.min), "maximum": int(bounds.max)}

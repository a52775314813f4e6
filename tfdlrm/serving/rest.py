"""What TensorFlow Serving's REST paths mean and answer, apart from any web framework."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from tfdlrm.serving.codec import decode_inputs, encode_error, encode_outputs, parse_predict
from tfdlrm.serving.errors import StatusError, invalid
from tfdlrm.serving.examples import encode_classes, encode_values, parse_examples
from tfdlrm.serving.inference import classify, regress
from tfdlrm.serving.models import find_servable, find_statuses
from tfdlrm.serving.servable import Servable
from tfdlrm.serving.store import ModelStore, VersionStatus

_LOG = logging.getLogger(__name__)
_VERSION = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_POST = re.compile(rf"/v1/models/(?P<model>[^/:]+){_VERSION}:(?P<verb>classify|regress|predict)", re.IGNORECASE)
_GET = re.compile(rf"/v1/models(?:/(?P<model>[^/:]+))?{_VERSION}(?:/(?P<verb>metadata))?", re.IGNORECASE)
_LAST_VERSION = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Answer:
    """A status and a JSON body."""

    status: int
    body: bytes


@dataclasses.dataclass(frozen=True)
class _Target:
    model: str
    version: int | None
    label: str | None
    verb: str


class Rest:
    """The REST contract over the models of a server; free of state, so any thread may call it."""

    def __init__(self, models: Mapping[str, ModelStore]) -> None:
        """Take the models by name."""
        self._models = models

    def answer(self, method: str, target: str, body: bytes) -> Answer:
        """Answer one request; whatever happens comes back as an answer.

        Args:
            method: HTTP method, in capitals.
            target: Path and query string as they were sent, percent-encoding included.
            body: The whole body.

        Returns:
            The status and the JSON to send.
        """
        try:
            return Answer(200, self._dispatch(method, target, body))
        except _SilentError:
            return Answer(400, b"")
        except StatusError as error:
            return Answer(error.code.http_status, encode_error(error.message))
        except Exception:
            _LOG.exception("%s %s failed", method, target)
            return Answer(500, encode_error("Internal error; the log of the server says more"))

    def _dispatch(self, method: str, target: str, body: bytes) -> bytes:
        wanted = _parse_target(method, target)
        if wanted is None:
            raise invalid(f"Malformed request: {method} {target}")
        if method == "POST":
            return {"predict": self._predict, "classify": self._classify, "regress": self._regress}[wanted.verb](
                wanted, body
            )
        if not wanted.model:
            raise invalid("Missing model name in request.")
        return _dump(self._metadata(wanted) if wanted.verb else self._status(wanted))

    def _predict(self, wanted: _Target, body: bytes) -> bytes:
        # In the order of TensorFlow Serving: a body that is no JSON is refused before the model is looked up.
        request = parse_predict(body)
        servable = self._servable(wanted)
        signature = servable.signature(request.signature_name)
        arrays, rows = decode_inputs(request, signature.inputs)
        return encode_outputs(signature(arrays), rows)

    def _classify(self, wanted: _Target, body: bytes) -> bytes:
        request = parse_examples(body)
        servable = self._servable(wanted)
        return encode_classes(*classify(servable, request.signature_name, request.examples))

    def _regress(self, wanted: _Target, body: bytes) -> bytes:
        request = parse_examples(body)
        servable = self._servable(wanted)
        return encode_values(regress(servable, request.signature_name, request.examples))

    def _status(self, wanted: _Target) -> Any:
        # Labels are ignored here: TensorFlow Serving answers with all versions.
        statuses = find_statuses(self._models, wanted.model, wanted.version)
        return {"model_version_status": [_version_status(status) for status in statuses]}

    def _metadata(self, wanted: _Target) -> Any:
        servable = self._servable(wanted)
        return {
            "model_spec": {"name": wanted.model, "signature_name": "", "version": str(servable.version)},
            "metadata": {"signature_def": {"signature_def": servable.metadata}},
        }

    def _servable(self, wanted: _Target) -> Servable:
        return find_servable(self._models, wanted.model, wanted.version, wanted.label)


class _SilentError(Exception):
    """A refusal that TensorFlow Serving sends without a body."""


def _parse_target(method: str, target: str) -> _Target | None:
    """Return what a path asks for, or None if it is none of the contract's."""
    pattern = {"GET": _GET, "POST": _POST}.get(method)
    match = pattern.fullmatch(target) if pattern is not None else None
    if match is None:
        return None
    parts = match.groupdict(default="")
    version = None
    if parts["version"]:
        # More digits than any version has are not converted: that alone would take time.
        if len(parts["version"].lstrip("0")) > 19 or int(parts["version"]) > _LAST_VERSION:
            raise _SilentError
        version = int(parts["version"])
    # The patterns ignore case, the words do not: `:PREDICT` is malformed, `/METADATA` asks for the status.
    if method == "POST" and parts["verb"] not in ("predict", "classify", "regress"):
        return None
    verb = parts["verb"] if method == "POST" or parts["verb"] == "metadata" else ""
    return _Target(unquote(parts["model"]), version, unquote(parts["label"]) or None, verb)


def _version_status(status: VersionStatus) -> dict[str, Any]:
    return {
        "version": str(status.version),
        "state": status.state,
        "status": {"error_code": status.code.name, "error_message": status.message},
    }


def _dump(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
